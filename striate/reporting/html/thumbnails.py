"""Thumbnails of pictures as data URLs, within a budget of bytes."""

import base64
import io
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from striate.data.pictures import ORDINARY, PictureLimits, open_image
from striate.errors import DataError, StriateError
from striate.storage.atomic import cache_folder
from striate.storage.fingerprints import earlier_fingerprint, fingerprint
from striate.storage.inside import inside

# Longest side in pixels, by the number of pictures that the page holds.
SIZES = ((60, 400), (400, 256))
SMALLEST, TINY = 160, 120
BUDGET_BYTES = 18_000_000
Thumbnail = tuple[str, int, int]


def longest_side(pictures: int) -> int:
    """Return how large thumbnails may be where the page holds so many pictures."""
    return next((size for most, size in SIZES if pictures <= most), SMALLEST)


def find_picture(image: str, pack: str, run: Path, packs: tuple[str, ...], content: str = "") -> Path | None:
    """Return the file of a prediction's `image`: in the run folder, among what striate fetched, or in a pack.

    The run may be a stranger's, who names packs anywhere: what lies outside must have the fingerprint `content`, which
    nobody knows who has not seen the picture.
    """
    own = run, cache_folder()
    # A benchmark is written NAME:FOLDER.
    places = (Path(place) for text in packs for place in dict.fromkeys((text, text.rpartition(":")[2])))
    named = sorted(places, key=lambda folder: folder.name != pack)
    for folder in (*own, run / pack, *named):
        try:
            path = inside(folder, image, what="picture")
            real = path.resolve()
            known = any(real.is_relative_to(place.resolve()) for place in own)
            if path.is_file() and (known or content in (fingerprint(path), earlier_fingerprint(path))):
                return path
        except StriateError:
            continue
    return None


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
    limits: PictureLimits = ORDINARY
    pictures: list[Thumbnail] = field(default_factory=list)
    left_out: int = 0
    _places: dict[tuple[str, str], int | None] = field(default_factory=dict)
    _by_path: dict[Path, int | None] = field(default_factory=dict)
    _bytes: int = 0

    def add(self, image: str, pack: str, content: str = "") -> int | None:
        """Return the place of a picture among `pictures`, which has the fingerprint `content`; None if not shown."""
        if (image, pack) not in self._places:
            path = find_picture(image, pack, self.run, self.packs, content)
            self._places[image, pack] = self._add(path) if path else None
        return self._places[image, pack]

    def _add(self, path: Path) -> int | None:
        if path not in self._by_path:
            small = thumbnail(path, self.longest, self.limits) if self._bytes < BUDGET_BYTES else None
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
