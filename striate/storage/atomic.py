"""Files and folders that appear whole or not at all."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from striate.errors import ArtifactError
from striate.storage.held_folders import check_held
from striate.storage.read_files import user_path

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.partial", re.DOTALL)


def cache_folder() -> Path:
    """Return where fetched and built things are kept: `$STRIATE_CACHE`, else `striate` in the user's cache folder."""
    if os.environ.get("STRIATE_CACHE"):
        return user_path(os.environ["STRIATE_CACHE"]).resolve()
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").resolve() / "striate"


def cannot_write(path: Path, error: OSError) -> ArtifactError:
    """Return the error for a file or folder that can't be written, from the system's own reason."""
    given = f"can't write {path}: {error.strerror or error}"
    if isinstance(error, IsADirectoryError):
        return ArtifactError(given, "a file in that place, or nothing", f"move the folder {path} away")
    if isinstance(error, NotADirectoryError | FileExistsError):
        wrong = next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), path)
        return ArtifactError(given, "folders all the way to it", f"move {wrong} away, or choose another folder")
    return ArtifactError(
        given,
        "a folder that you may write to, on a disk with room",
        "free some space or choose another folder with --out",
    )


def check_file_place(path: Path) -> None:
    """Check that a file can take the name `path`: before what makes its content, which may take hours.

    Raises:
        ArtifactError: a folder has that name.
    """
    if path.is_dir():
        raise cannot_write(path, IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR)))


def sync(path: Path) -> None:
    """Return once the disk holds the content of a file, or the names in a folder.

    Otherwise a power cut can leave a new name for a file without its content.
    """
    # Folders can't be opened on Windows, nor synced on some network file systems.
    with suppress(OSError) if path.is_dir() else nullcontext():
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def sync_folder(folder: Path) -> None:
    """Return once the disk holds everything below `folder`, each file with the rights that the umask asks for.

    Libraries of weights write files that their owner alone may read. The umask is that of `folder`, which is our own.
    """
    rights = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(rights)
        sync(path)
    sync(folder)


def temporary_beside(path: Path) -> Path:
    """Return the name under which `path` is written until it is whole, in its folder, which is made.

    Raises:
        ArtifactError: it lies in a run folder that was moved or removed.
        OSError: the folder can't be made.
    """
    check_held(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.parent / f".{path.name}.{secrets.token_hex(4)}.partial"


def is_temporary(path: Path) -> bool:
    """Return whether the file or folder has a name as `temporary_beside` gives."""
    return bool(_TEMPORARY.fullmatch(path.name))


def remove_temporaries(folder: Path) -> None:
    """Remove what killed processes left half-written anywhere below `folder`, which no other process works in."""
    for path in [path for path in folder.rglob(".*.partial") if is_temporary(path)]:
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` in UTF-8 as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` under a temporary name, then rename it: readers see all of it or nothing.

    Raises:
        ArtifactError: the folder can't be written, or the disk is full.
    """
    temporary: Path | None = None
    try:
        temporary = temporary_beside(path)
        # An ordinary open, unlike tempfile's, gives the file the rights that the umask asks for.
        temporary.write_bytes(content)
        sync(temporary)
        temporary.replace(path)
        temporary = None
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink()


def check_room(needed: int, path: Path) -> None:
    """Check that the disk which `path` will lie on has room for `needed` bytes.

    Raises:
        ArtifactError: it has not.
    """
    place = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ArtifactError(
            f"{path} will take {needed / 2**30:.1f} GiB, and the disk of {place} has {free / 2**30:.1f} GiB free",
            "a disk with room for all of it",
            "free some space, or choose another folder with --out",
        )


def check_new_folder(path: Path) -> None:
    """Check that `path` is a new or empty folder.

    Raises:
        ArtifactError: it holds files, or is one; or a finished folder can't take its place.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ArtifactError(
            f"{path} exists already", "a new or empty folder", "choose another folder, or remove that one first"
        )
    kinds = {
        "is a link": path.is_symlink(),
        "has no name of its own": path.name in ("", ".."),
        "is where a disk is mounted": path.is_mount(),
    }
    if kind := next((kind for kind, found in kinds.items() if found), None):
        raise ArtifactError(
            f"{path} {kind}: the finished folder could not take its place",
            "a new folder, or an empty one of its own",
            f"choose one, such as {path / 'new'}",
        )


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes that name on success and is removed on failure.

    Raises:
        ArtifactError: `path` holds files already, can't be written, or the disk is full.
    """
    check_new_folder(path)
    temporary: Path | None = None
    try:
        # An ordinary mkdir, unlike tempfile's, gives the folder the rights that the umask asks for.
        temporary = temporary_beside(path)
        temporary.mkdir()
        yield temporary
        sync_folder(temporary)
        check_held(path)
        if path.exists():
            path.rmdir()
        temporary.rename(path)
        sync(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
