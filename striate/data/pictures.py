"""Opens pictures: upright, in RGB, of a few formats and sizes; errors name the sample and the file.

Pictures are strangers' files. Only the decoders of `FORMATS` see them, chosen by content and not by name, and only
where `PictureLimits` holds. Of a picture with several frames (GIF, WebP, PNG, TIFF) the first is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from striate.config import MachineSection
from striate.data.sources.stored_pictures import Picture, StoredPicture
from striate.errors import DataError, first_line
from striate.storage.fingerprints import LENGTH, fingerprint

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
ALLOWED = f"a whole picture in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, whatever its name"
REPLACE = "replace the picture or remove the sample"
# Modes of 8 bits a channel or less, which Pillow converts to RGB as they are meant.
_EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})
_SIXTEEN_BITS = frozenset({"I;16", "I;16L", "I;16B", "I;16N"})
_TWELVE_BITS = 4095
# Tags of TIFF: bits of a sample, and whether 0 means black or white, which Pillow passes over for deep grey.
_DEPTH, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# How EXIF says that a picture was taken with the camera on its side.
_ORIENTATION, _ON_ITS_SIDE = 274, range(5, 9)
_PREFIX_BYTES = 16
# How other formats begin, or go on after four bytes: for errors only.
_OTHERS = (
    (b"%!PS", "PostScript"),
    (b"\xc5\xd0\xd3\xc6", "PostScript"),
    (b"%PDF", "PDF"),
    (b"SIMPLE  =", "FITS"),
    (b"qoif", "QOI"),
    (b"8BPS", "Photoshop"),
    (b"DDS ", "DDS"),
    (b"jP  ", "JPEG 2000"),
    (b"\xff\x4f\xff\x51", "JPEG 2000"),
    (b"ftypavif", "AVIF"),
    (b"ftyphei", "HEIC"),
    (b"ftypmif1", "HEIC"),
    (b"\0\0\1\0", "ICO"),
    (b"<svg", "SVG"),
    (b"<?xml", "XML, perhaps SVG,"),
    *((b"P%d" % number, "Netpbm") for number in range(1, 8)),
)
_READERS = 8
# How many pictures that can't be used are named at once.
_NAMED = 20


@dataclass(frozen=True)
class PictureLimits:
    """The largest picture that is decoded: pixels, and the ratio of its longer side to the shorter."""

    pixels: int = MachineSection.model_fields["max_pixels"].default
    ratio: float = MachineSection.model_fields["max_ratio"].default

    @classmethod
    def of(cls, machine: MachineSection) -> PictureLimits:
        """Return the limits of a run."""
        return cls(machine.max_pixels, machine.max_ratio)

    def check(self, size: tuple[int, int], path: Picture, owner: str) -> None:
        """Raise if a picture of `size` is larger: processors make gigabytes of a line of pixels.

        Raises:
            DataError: it is.
        """
        long, short = max(size), max(1, min(size))
        if size[0] * size[1] <= self.pixels and long <= self.ratio * short:
            return
        raise DataError(
            f"sample {owner!r}: picture {path} is {size[0]} x {size[1]} pixels",
            f"at most {self.pixels} pixels (machine.max_pixels), and sides of at most {self.ratio:g} to 1"
            " (machine.max_ratio)",
            "make it smaller, cut it, remove the sample, or raise the limit",
        )


ORDINARY = PictureLimits()


def open_image(
    path: Picture, owner: str, limits: PictureLimits = ORDINARY, near: tuple[int, int] | None = None
) -> Image.Image:
    """Return the picture at `path`, turned as its EXIF says, in RGB; what is transparent is white.

    Grey of 16 bits is scaled by its own depth (of 65,535 levels), grey of real numbers from 0 to 1.

    Args:
        path: the picture's file, or a picture inside another.
        owner: the sample's id, for errors.
        limits: the largest picture that is decoded.
        near: a width and height near which a JPEG may be decoded, where a small picture is wanted.

    Raises:
        DataError: missing, damaged, not a picture, in another format, too large, or of numbers without a known range.
    """
    with _decoded(path, owner, limits, near) as image:
        shallow = _eight_bits(image)
        return _on_white(shallow) if shallow.has_transparency_data else shallow.convert("RGB")


def upright_size(path: Picture, owner: str, limits: PictureLimits = ORDINARY) -> tuple[int, int]:
    """Return the width and height that `open_image` would give the picture, without decoding it.

    Raises:
        DataError: as `open_image`, of what its head tells.
    """
    try:
        with Image.open(pillow_source(path), formats=FORMATS) as image:
            limits.check(image.size, path, owner)
            width, height = image.size
            return (height, width) if image.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE else (width, height)
    except DataError:
        raise
    # Pillow's decoders raise errors of every kind for damaged files.
    except Exception as error:
        raise _unreadable(path, owner, first_line(error)) from error


def check_pictures(owners: Mapping[Picture, str], limits: PictureLimits = ORDINARY) -> str:
    """Return how many pictures there are and how many have several frames, in words, after decoding each.

    Args:
        owners: the pictures, each with the id of a sample that shows it.
        limits: the largest picture that is decoded.

    Raises:
        DataError: as `open_image`, for the first that can't be used; names the sample and the file, and how many more.
    """
    with ThreadPoolExecutor(_READERS) as pool:
        found = list(pool.map(partial(_verified, limits=limits), owners, owners.values()))
    if wrong := [error for error in found if isinstance(error, DataError)]:
        others = [error.given for error in wrong[1:_NAMED]]
        left = f"\nand {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise DataError("\n".join([wrong[0].given, *others]) + left, wrong[0].allowed, wrong[0].next_step)
    several = sum(one is True for one in found)
    return f"{len(owners)} pictures" + (f" ({several} of several frames: the first is used)" if several else "")


def read_picture(path: Picture, owner: str) -> bytes:
    """Return what the picture's file holds; `owner` is the sample id for errors.

    Raises:
        DataError: it can't be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, owner, first_line(error)) from error


def _verified(picture: Picture, owner: str, limits: PictureLimits) -> bool | DataError:
    try:
        return verify_image(picture, owner, limits)
    except DataError as error:
        return error


def verify_image(path: Picture, owner: str, limits: PictureLimits = ORDINARY) -> bool:
    """Return whether the picture has several frames, after decoding its first.

    Raises:
        DataError: as `open_image`.
    """
    with _decoded(path, owner, limits) as image:
        _eight_bits(image)
        with suppress(Exception):
            return bool(getattr(image, "is_animated", False))
        # Damage behind the first frame, which is all that is used.
        return True


def picture_digest(picture: Picture) -> str:
    """Return a short hash of what the picture's file holds; of a picture inside another file, of its own bytes.

    Raises:
        ArtifactError: the file can't be read.
    """
    return picture.digest[:LENGTH] if isinstance(picture, StoredPicture) else fingerprint(picture)


def picture_size(picture: Picture) -> int:
    """Return how many bytes the picture's file has.

    Raises:
        OSError: it is not there.
    """
    return picture.size if isinstance(picture, StoredPicture) else picture.stat().st_size


def pillow_source(picture: Picture) -> Path | BinaryIO:
    """Return what Pillow opens: the file, or the bytes of a picture inside another.

    Raises:
        OSError: those can't be read.
    """
    return picture if isinstance(picture, Path) else picture.open("rb")


@contextmanager
def _decoded(
    path: Picture, owner: str, limits: PictureLimits, near: tuple[int, int] | None = None
) -> Iterator[Image.Image]:
    """Yield the picture, decoded and upright; what fails meanwhile names it."""
    try:
        with Image.open(pillow_source(path), formats=FORMATS) as image:
            limits.check(image.size, path, owner)
            if near:
                image.draft("RGB", near)
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            yield image
    except DataError:
        raise
    except Image.UnidentifiedImageError as error:
        raise _unreadable(path, owner, _named_format(path)) from error
    # Pillow's decoders raise errors of every kind for damaged files.
    except Exception as error:
        raise _unreadable(path, owner, first_line(error)) from error


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return a picture of 8 bits a channel as it is, and deeper grey scaled to 8.

    Raises:
        ValueError: what its numbers mean is not known.
    """
    if image.mode in ("P", "PA") and image.palette is None:
        raise ValueError("its palette is missing")
    if image.mode in _EIGHT_BITS:
        return image
    values = np.asarray(image)
    if image.mode in _SIXTEEN_BITS:
        shares = values / _white_of(image, int(values.max()))
    elif image.mode == "F":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise ValueError("it holds real numbers that are not all from 0 (black) to 1 (white)")
        shares = values
    else:
        raise ValueError(f"it holds pixels of mode {image.mode}, which have no agreed range; convert it to 8 bits")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        shares = 1 - shares
    grey = Image.fromarray(np.rint(shares * 255).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey


def _white_of(image: Image.Image, highest: int) -> int:
    """Return the number that means white: of a TIFF's own depth, else of 16 bits."""
    depth = getattr(image, "tag_v2", {}).get(_DEPTH, (16,))[0]
    if depth == 16 and 0 < highest <= _TWELVE_BITS:
        raise ValueError(
            f"it has 16 bits, but no value above {highest}: it is nearly black, or of 12 bits or fewer and does not"
            " say so; convert it to 8 bits"
        )
    return 2**depth - 1


def _on_white(image: Image.Image) -> Image.Image:
    page = Image.new("RGBA", image.size, "white")
    page.alpha_composite(image.convert("RGBA"))
    return page.convert("RGB")


def _named_format(path: Picture) -> str:
    """Return what kind of file it is instead, told by its first bytes alone."""
    with path.open("rb") as stream:
        start = stream.read(_PREFIX_BYTES)
    kinds = (kind for begin, kind in _OTHERS if start.startswith(begin) or start[4:].startswith(begin))
    kind = next(kinds, "")
    return f"it is {kind} inside" if kind else "it is empty" if not start else "it is none of these, or damaged"


def _unreadable(path: Picture, owner: str, reason: str) -> DataError:
    return DataError(f"sample {owner!r}: can't read picture {path}: {reason}", ALLOWED, REPLACE)
