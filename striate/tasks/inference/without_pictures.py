"""Items asked without their pictures: grey ones of the same size stand in their places."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from striate.data.pictures import ORDINARY, PictureLimits, upright_size
from striate.tasks.packs.items import Item

GREY = 128


@contextmanager
def without_pictures(items: Sequence[Item], limits: PictureLimits = ORDINARY) -> Iterator[list[Item]]:
    """Yield `items` with a grey picture for each of theirs, so that prompts are as long as with them.

    Pictures of one size share a file, which a model that caches pictures then encodes once. The files are there
    until the context ends.

    Raises:
        DataError: a picture that can't be read, or is larger than `limits` allow.
    """
    sizes = {path: upright_size(path, item.id, limits) for item in items for path in item.images}
    with TemporaryDirectory(prefix="striate-floor-") as folder:
        grey = {size: _write_grey(Path(folder), size) for size in dict.fromkeys(sizes.values())}
        yield [_shown(item, [grey[sizes[path]] for path in item.images]) for item in items]


def _write_grey(folder: Path, size: tuple[int, int]) -> Path:
    path = folder / f"{size[0]}x{size[1]}.png"
    Image.new("L", size, GREY).save(path)
    return path


def _shown(item: Item, pictures: Sequence[Path]) -> Item:
    return replace(item, image=pictures[0], more_images=tuple(pictures[1:])) if pictures else item
