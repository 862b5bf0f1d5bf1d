"""Write an LVLM and its processor to a folder: all of it or nothing."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from striate.artifacts import Region, cannot_write, write_document
from striate.errors import ArtifactError
from striate.models.quiet import quietly

REGION_FILE = "region.json"


def save_model(model: Any, processor: Any | None, path: Path | str, region: Region | None = None) -> None:
    """Write `model`, `processor` and `region.json` to the folder `path`, whole or not at all.

    A plain model becomes an ordinary checkpoint, a PEFT model an adapter folder. `processor` None writes none:
    such a folder is only good for more work in memory, since nothing can ask the model without a processor.

    Raises:
        ArtifactError: `path` holds files already, can't be written, or the disk is full.
    """
    with new_folder(Path(path)) as folder, quietly(True):
        model.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        if region is not None:
            write_document(folder / REGION_FILE, region)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it takes that name on success and goes away on failure.

    Raises:
        ArtifactError: `path` holds files already, can't be written, or the disk is full.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise ArtifactError(
            f"{path} exists already", "a new or empty folder", "choose another folder, or remove that one first"
        )
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # An ordinary mkdir, unlike tempfile's, gives the checkpoint the rights that the umask asks for.
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    except SafetensorError as error:
        raise cannot_write(path, OSError(str(error))) from error
    finally:
        if temporary is not None and temporary.exists():
            shutil.rmtree(temporary, ignore_errors=True)
