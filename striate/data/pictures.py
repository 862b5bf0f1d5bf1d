"""Opens pictures: upright, in RGB, and with an error that names the sample when one is damaged."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageOps

from striate.errors import DataError

BROKEN = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
ALLOWED = "a whole picture in a format that Pillow reads (PNG, JPEG, WebP, ...)"


def open_image(path: Path, owner: str) -> Image.Image:
    """Return the picture at `path`, turned as its EXIF says, in RGB; `owner` is the sample id for errors.

    Raises:
        DataError: missing, damaged, or not a picture.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image)
            return _on_white(upright) if upright.has_transparency_data else upright.convert("RGB")
    except BROKEN as error:
        raise _unreadable(path, owner, error) from error


def read_picture(path: Path, owner: str) -> bytes:
    """Return what the picture's file holds; `owner` is the sample id for errors.

    Raises:
        DataError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, owner, error) from error


def verify_image(path: Path, owner: str) -> None:
    """Check that Pillow accepts the picture's header and structure, without decoding it.

    Raises:
        DataError: missing, damaged, or not a picture.
    """
    try:
        with Image.open(path) as image:
            image.verify()
    except BROKEN as error:
        raise _unreadable(path, owner, error) from error


def _on_white(image: Image.Image) -> Image.Image:
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page.convert("RGB")


def _unreadable(path: Path, owner: str, error: Exception) -> DataError:
    return DataError(
        f"sample {owner!r}: can't read picture {path}: {error}", ALLOWED, "replace the picture or remove the sample"
    )
