"""The release script sees what is wrong with a tree, a wheel and a source distribution."""

from __future__ import annotations

from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import pytest

from striate.version import __version__

ROOT = Path(__file__).parents[2]
RELEASE = SimpleNamespace(**run_path(str(ROOT / "scripts" / "release.py")))
SOURCES = ["striate/__init__.py", "striate/py.typed", "tests/conftest.py", "README.md"]
PARTS = ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
INFO = [f"striate-1.2.3.dist-info/{name}" for name in PARTS]


def test_this_tree_tells_one_version() -> None:
    changes, citation = ((ROOT / name).read_text(encoding="utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    assert RELEASE.version_of() == __version__
    assert RELEASE.told_otherwise(__version__, changes, citation) == []


def test_places_that_tell_another_version_are_named() -> None:
    assert RELEASE.told_otherwise("1.2.3", "# Changes\n\n## 1.2.3\n\n## 1.2.2\n", "version: 1.2.2\n") == [
        "CITATION.cff is of 1.2.2, striate/version.py of 1.2.3"
    ]
    assert RELEASE.told_otherwise("1.2.3", "# Changes\n", "version: 1.2.3\n") == [
        "CHANGELOG.md is of no version, striate/version.py of 1.2.3"
    ]


@pytest.mark.parametrize(
    ("changed", "tags", "told"),
    [
        ("", "", []),
        (" M a.py\n?? b.py", "", ["2 files are not committed"]),
        ("", "v1.2.3", ["the tag v1.2.3 exists: set another version in striate/version.py"]),
    ],
)
def test_a_tree_that_can_not_be_tagged(changed: str, tags: str, told: list[str]) -> None:
    def git(verb: str, *rest: Any) -> str:
        return {"status": changed, "tag": tags}[verb]

    assert RELEASE.not_releasable("1.2.3", git) == told


def test_a_wheel_has_the_package_and_nothing_else() -> None:
    whole = [*SOURCES[:2], *INFO]
    assert RELEASE.wheel_faults(whole, SOURCES, "1.2.3") == []
    assert RELEASE.wheel_faults([*whole[1:], "striate/own_notes.txt", "tests/conftest.py"], SOURCES, "1.2.3") == [
        "the wheel lacks striate/__init__.py",
        "the wheel has striate/own_notes.txt, which is not a source",
        "the wheel has tests/conftest.py, which is not a source",
    ]
    assert RELEASE.wheel_faults(whole[:-2], SOURCES, "1.2.3") == [f"the wheel lacks {name}" for name in INFO[-2:]]
    assert RELEASE.wheel_faults(whole, SOURCES[:1], "1.2.3")[0] == "the wheel lacks striate/py.typed"


def test_a_source_distribution_is_whole_and_clean() -> None:
    names = [f"striate-1.2.3/{name}" for name in {*SOURCES, *RELEASE.SDIST_NEEDS}]
    assert RELEASE.sdist_faults(names, SOURCES, "1.2.3") == []
    more = ["pax_header", "striate-1.2.3/runs/a/run.json", "striate-1.2.3/striate/__pycache__/a.pyc"]
    fewer = [name for name in names if not name.endswith(("py.typed", "mkdocs.yml"))]
    assert RELEASE.sdist_faults([*fewer, *more], SOURCES, "1.2.3") == [
        "the source distribution lacks mkdocs.yml",
        "the source distribution lacks striate/py.typed",
        "the source distribution has pax_header outside striate-1.2.3/",
        "the source distribution has runs/a/run.json",
        "the source distribution has striate/__pycache__/a.pyc",
    ]
