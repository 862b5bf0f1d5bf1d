#!/usr/bin/env python3
"""Check that a release is ready, build its wheel and source distribution, and look into both; `--tag` tags it.

python scripts/release.py [--out dist] [--tag]

It pushes and uploads nothing. `--any-tree` leaves out what only a release needs: a clean tree and a new version.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
SDIST_NEEDS = (
    "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "mkdocs.yml",
    "docs/index.md", "examples/README.md", "configs/photos.yaml", "tests/conftest.py", "scripts/release.py",
)  # fmt: skip
"""Files that a source distribution must have beside the package itself."""
STRAY = re.compile(r"^(runs|dist|build)/|(^|/)(__pycache__|\.git|\.venv|\.\w+_cache)(/|$)|\.py[cod]$|\.egg-info(/|$)")
LARGEST = 40 * 2**20
"""Bytes; what ships in the package is one projector, not a model."""


def version_of(root: Path = ROOT) -> str:
    """Return the version that the package tells."""
    found = re.search(r'__version__ = "(\d+\.\d+\.\d+)"', (root / "striate/version.py").read_text(encoding="utf-8"))
    return found[1] if found else ""


def told_otherwise(version: str, changes: str, citation: str) -> list[str]:
    """Return what says another version than `version`: the newest head of the changes, the citation."""
    newest = re.search(r"^## (\S+)", changes, re.MULTILINE)
    cited = re.search(r"^version: (\S+)", citation, re.MULTILINE)
    places = (("CHANGELOG.md", newest), ("CITATION.cff", cited))
    return [
        f"{name} is of {found[1] if found else 'no version'}, striate/version.py of {version or 'none'}"
        for name, found in places
        if not found or found[1] != version
    ]


def not_releasable(version: str, git: Callable[..., str]) -> list[str]:
    """Return what keeps this tree from being tagged: changes that are not committed, a tag that exists."""
    faults = []
    if changed := git("status", "--porcelain"):
        faults.append(f"{len(changed.splitlines())} files are not committed")
    if git("tag", "--list", f"v{version}"):
        faults.append(f"the tag v{version} exists: set another version in striate/version.py")
    return faults


def wheel_faults(names: Iterable[str], sources: Iterable[str], version: str) -> list[str]:
    """Return what is wrong with a wheel's files: it has the package as it lies here, metadata, nothing else."""
    names, info = set(names), f"striate-{version}.dist-info"
    package = {name for name in names if not name.startswith(f"{info}/")}
    needed = {name for name in sources if name.startswith("striate/")}
    metadata = [f"{info}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")]
    missing = sorted(needed - package) + [name for name in metadata if name not in names]
    if "striate/py.typed" not in needed:
        missing.append("striate/py.typed")
    return [f"the wheel lacks {name}" for name in missing] + [
        f"the wheel has {name}, which is not a source" for name in sorted(package - needed)
    ]


def sdist_faults(names: Iterable[str], sources: Iterable[str], version: str) -> list[str]:
    """Return what is wrong with a source distribution's files: all under one folder, package and tests whole."""
    names, top = set(names), f"striate-{version}"
    outside = sorted(name for name in names if PurePosixPath(name).parts[0] != top)
    inside = {str(PurePosixPath(name).relative_to(top)) for name in names.difference(outside)}
    needed = {name for name in sources if name.startswith(("striate/", "tests/"))} | set(SDIST_NEEDS)
    return (
        [f"the source distribution lacks {name}" for name in sorted(needed - inside)]
        + [f"the source distribution has {name} outside {top}/" for name in outside]
        + [f"the source distribution has {name}" for name in sorted(inside) if STRAY.search(name)]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Do all of it, and end with the first kind of fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where wheel and source distribution go")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--tag", action="store_true", help="tag the commit vX.Y.Z after all checks")
    only.add_argument("--any-tree", action="store_true", help="build and check whatever lies here")
    asked = parser.parse_args(arguments)

    version = version_of()
    _stop_at(
        told_otherwise(
            version,
            (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
            (ROOT / "CITATION.cff").read_text(encoding="utf-8"),
        )
    )
    if not asked.any_tree:
        _stop_at(not_releasable(version, _git))
    wheel, sdist = _built(asked.out, version)
    _look_into(wheel, sdist, version)
    _try(wheel, version)
    if asked.tag:
        _git("tag", "--annotate", f"v{version}", "--message", f"striate {version}")
        print(f"tagged v{version}; `git push origin v{version}` publishes the tag")


def _built(out: Path, version: str) -> tuple[Path, Path]:
    """Return the wheel, which is built from the source distribution, and that."""
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(out), str(ROOT)], check=True)
    return out / f"striate-{version}-py3-none-any.whl", out / f"striate-{version}.tar.gz"


def _look_into(wheel: Path, sdist: Path, version: str) -> None:
    """Stop at what is wrong with the files of either."""
    sources = _sources()
    with zipfile.ZipFile(wheel) as archive:
        faults = wheel_faults(archive.namelist(), sources, version)
        metadata = archive.read(f"striate-{version}.dist-info/METADATA").decode()
    if f"\nVersion: {version}\n" not in metadata:
        faults.append(f"the wheel's metadata is not of {version}")
    with tarfile.open(sdist) as archive:
        faults += sdist_faults((member.name for member in archive if member.isfile()), sources, version)
    faults += [
        f"{path.name} takes {path.stat().st_size:,} bytes" for path in (wheel, sdist) if path.stat().st_size > LARGEST
    ]
    _stop_at(faults)
    for path in (wheel, sdist):
        print(f"{path} {path.stat().st_size / 1e6:.1f} MB")


def _sources() -> list[str]:
    """Return the files of the package and of its tests that lie here, caches left out: a clean tree has no others."""
    found = (path.relative_to(ROOT).as_posix() for top in ("striate", "tests") for path in (ROOT / top).rglob("*"))
    return [name for name in found if (ROOT / name).is_file() and not STRAY.search(name)]


def _try(wheel: Path, version: str) -> None:
    """Stop unless the wheel, unpacked in a folder of its own, starts and tells its version."""
    with tempfile.TemporaryDirectory() as made:
        folder = str(Path(made).resolve())
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, str(wheel)]
        subprocess.run(pip, check=True)
        code = "import striate, striate.cli; print(striate.__file__); sys.argv = ['', '--version']; striate.cli.main()"
        command = [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {folder!r}); {code}"]
        told = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True).stdout
    if told != f"{Path(folder) / 'striate/__init__.py'}\n{version}\n":
        _stop_at([f"the wheel tells {told!r}, not {version}"])
    print(f"the wheel starts: striate {version}")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", "-C", str(ROOT), *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def _stop_at(faults: Sequence[str]) -> None:
    if faults:
        raise SystemExit("\n".join(f"error: {fault}" for fault in faults))


if __name__ == "__main__":
    main()
