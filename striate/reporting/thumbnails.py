"""Small copies of pictures, as text that stands inside the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

from PIL import Image, ImageOps

LONGEST = 400
TINY = 120


def find_picture(image: str, pack: str, run: Path, packs: tuple[str, ...]) -> Path | None:
    """Return the file of a prediction's `image`: absolute, in the run folder, or in the pack of that name."""
    folders = [Path(folder) for folder in packs]
    named = [folder for folder in folders if folder.name == pack]
    candidates = [Path(image), run / image, run / pack / image, *(folder / image for folder in [*named, *folders])]
    return next((path for path in candidates if path.is_file()), None)


def thumbnail(path: Path) -> tuple[str, int, int] | None:
    """Return a picture as a `data:` address with its width and height; None where Pillow can't read it."""
    try:
        with Image.open(path) as source:
            picture = _on_white(ImageOps.exif_transpose(source))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    picture.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    kinds = {"jpeg": _encode(picture, "JPEG"), "png": _encode(picture, "PNG")}
    kind = min(kinds, key=lambda name: len(kinds[name])) if max(picture.size) > TINY else "png"
    return f"data:image/{kind};base64,{base64.b64encode(kinds[kind]).decode('ascii')}", *picture.size


def _on_white(picture: Image.Image) -> Image.Image:
    """Return the picture in RGB, what is transparent over white."""
    layered = picture.convert("RGBA")
    ground = Image.new("RGBA", layered.size, "white")
    return Image.alpha_composite(ground, layered).convert("RGB")


def _encode(picture: Image.Image, kind: str) -> bytes:
    """Return the picture as the bytes of a JPEG or PNG file."""
    stream = io.BytesIO()
    picture.save(stream, kind, optimize=True, **({"quality": 82} if kind == "JPEG" else {}))
    return stream.getvalue()
