"""Thumbnails of pictures as data URLs, within a budget of bytes."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from striate.data.pictures import ORDINARY, PictureLimits, open_image
from striate.errors import DataError

# Longest side in pixels, by the number of pictures that the page holds.
SIZES = ((60, 400), (400, 256))
SMALLEST, TINY = 160, 120
BUDGET_BYTES = 18_000_000
Thumbnail = tuple[str, int, int]


def longest_side(pictures: int) -> int:
    """Return how large thumbnails may be where the page holds so many pictures."""
    return next((size for most, size in SIZES if pictures <= most), SMALLEST)


def find_picture(image: str, pack: str, run: Path, packs: tuple[str, ...]) -> Path | None:
    """Return the file of a prediction's `image`: absolute, in the run folder, or in the pack of that name."""
    folders = [Path(folder) for folder in packs]
    named = [folder for folder in folders if folder.name == pack]
    candidates = [Path(image), run / image, run / pack / image, *(folder / image for folder in [*named, *folders])]
    return next((path for path in candidates if path.is_file()), None)


def thumbnail(path: Path, longest: int, limits: PictureLimits = ORDINARY) -> Thumbnail | None:
    """Return a picture as a `data:` address with its width and height; None where it can't be shown to a model either.

    Pictures that are tiny already stay as they are, in PNG.
    """
    try:
        # A JPEG is decoded at a fraction of its size where that is enough: much faster for photos.
        picture = open_image(path, path.name, limits, near=(2 * longest, 2 * longest))
    except DataError:
        return None
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    kind, data = ("png", _encode(picture, "PNG")) if max(picture.size) <= TINY else ("webp", _encode(picture, "WEBP"))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}", *picture.size


@dataclass
class Album:
    """The pictures of the page, each once, until `BUDGET_BYTES` are used up."""

    run: Path
    packs: tuple[str, ...]
    longest: int
    pictures: list[Thumbnail] = field(default_factory=list)
    left_out: int = 0
    _places: dict[tuple[str, str], int | None] = field(default_factory=dict)
    _by_path: dict[Path, int | None] = field(default_factory=dict)
    _bytes: int = 0

    def add(self, image: str, pack: str) -> int | None:
        """Return the place of a picture among `pictures`; None where it can't be shown."""
        if (image, pack) not in self._places:
            path = find_picture(image, pack, self.run, self.packs)
            self._places[image, pack] = self._add(path) if path else None
        return self._places[image, pack]

    def _add(self, path: Path) -> int | None:
        if path not in self._by_path:
            small = thumbnail(path, self.longest) if self._bytes < BUDGET_BYTES else None
            self.left_out += self._bytes >= BUDGET_BYTES
            self._by_path[path] = len(self.pictures) if small else None
            if small:
                self._bytes += len(small[0])
                self.pictures.append(small)
        return self._by_path[path]


def _encode(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    options = {"optimize": True} if kind == "PNG" else {"quality": 72, "method": 2}
    picture.save(stream, kind, **options)
    return stream.getvalue()
