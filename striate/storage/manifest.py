"""The manifest of a folder: a digest of each of its files, written last, so that a damaged one is told and named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from striate.errors import ArtifactError
from striate.storage.atomic import sync_folder, write_text
from striate.storage.file_digests import digest_of
from striate.storage.fingerprints import CARD_FILE
from striate.storage.read_files import Form, read_object

FILES, SELF = "files", "digest"
_FORM = Form(
    ArtifactError, "files as striate wrote them", "restore what is damaged, or use --overwrite to do its stage again"
)


def write_manifest(path: Path, about: Mapping[str, Any]) -> None:
    """Write to `path` what the folder that it lies in is `about`, with the digests of all other files in there.

    They are on the disk before it is. The folder's own README.md is left out, as in fingerprints.

    Raises:
        OSError: a file can't be read or written.
    """
    folder = path.parent
    sync_folder(folder)
    content = {**about, FILES: {name: digest_of(folder / name) for name in _names(folder, path)}}
    write_text(path, json.dumps({**content, SELF: _own_digest(content)}, indent=2) + "\n")


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what the folder of the manifest at `path` is about, after comparing every file with its digest.

    A manifest of earlier versions has no digests: what it says is returned as it is.

    Raises:
        ArtifactError: the manifest or a file that it names is missing or damaged.
    """
    content = read_object(path, _FORM)
    digest = content.pop(SELF, None)
    if (digest or FILES in content) and digest != _own_digest(content):
        raise _damaged(path, "was changed or damaged")
    for name, expected in content.pop(FILES, {}).items():
        file = path.parent / name
        try:
            found = digest_of(file)
        except OSError as error:
            raise _damaged(file, "is missing" if isinstance(error, FileNotFoundError) else "can't be read") from error
        if found != expected:
            raise _damaged(file, "was changed or damaged")
    return content


def _names(folder: Path, manifest: Path) -> list[str]:
    left_out = {manifest, folder / CARD_FILE}
    files = (path for path in folder.rglob("*") if path.is_file() and path not in left_out)
    return sorted(path.relative_to(folder).as_posix() for path in files)


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _damaged(file: Path, how: str) -> ArtifactError:
    return ArtifactError(f"{file} {how}", _FORM.allowed, _FORM.next_step)
