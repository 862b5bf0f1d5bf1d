"""Encode prompts in windows, ahead of the model; items that ask about one picture stay together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.tasks.inference.item_prefetch import ahead
from striate.tasks.inference.prompts import chat_sample
from striate.tasks.packs.items import Item

Prefix = tuple[tuple[Path, ...], tuple[int, ...]]

WINDOW_BYTES = 2**30
TOGETHER = 32


@dataclass(frozen=True)
class Prompt:
    """One item's prompt: its place among the items, its tokens and pictures, and its prefix.

    Attributes:
        place: index of the item.
        encoded: the prompt as tensors.
        ids: its token ids.
        prefix: the pictures and the ids up to the last image token; prompts with equal prefixes share it.
    """

    place: int
    encoded: Encoded
    ids: tuple[int, ...]
    prefix: Prefix

    @property
    def prefix_length(self) -> int:
        """How many tokens the prefix has."""
        return len(self.prefix[1])


def windows(items: Sequence[Item], collator: Collator, size: int) -> Iterator[list[Prompt]]:
    """Yield the prompts of all items in windows of about `size`, longest questions first.

    A window also closes at 1 GiB of pictures. Items that ask about the same pictures follow one another. The prompts of
    the next items are made ahead while a window is used.

    Raises:
        DataError: a picture that can't be read, or a prompt that is too long.
    """

    def encode(places: list[int]) -> Callable[[], list[Prompt]]:
        return lambda: _prompts(places, items, collator)

    window: list[Prompt] = []
    taken = 0
    for prompts in ahead((encode(places) for places in _groups(items)), depth=max(size // 4, 8)):
        window += prompts
        taken += sum(_picture_bytes(prompt) for prompt in prompts)
        if len(window) >= size or taken >= WINDOW_BYTES:
            yield window
            window, taken = [], 0
    if window:
        yield window


def _groups(items: Sequence[Item]) -> list[list[int]]:
    """Return the places of items that share their pictures, 32 at most together; groups with long questions first."""
    by_pictures: dict[object, list[int]] = {}
    for place, item in enumerate(items):
        by_pictures.setdefault(item.images or place, []).append(place)
    parts = [
        places[begin : begin + TOGETHER] for places in by_pictures.values() for begin in range(0, len(places), TOGETHER)
    ]
    return sorted(parts, key=lambda places: max(len(items[place].question) for place in places), reverse=True)


def _prompts(places: list[int], items: Sequence[Item], collator: Collator) -> list[Prompt]:
    prompts: list[Prompt] = []
    pictures: dict[tuple[Path, ...], dict[str, Tensor]] = {}
    for place, encoded in zip(places, collator.prompts([chat_sample(items[place]) for place in places]), strict=True):
        ids = tuple(encoded.tokens["input_ids"][0].tolist())
        seen = collator.image_mask(encoded.tokens)[0].nonzero()
        prefix = (items[place].images, ids[: int(seen.max()) + 1] if len(seen) else ())
        # Equal pictures as one object: a window then holds each of them once.
        same = pictures.setdefault(items[place].images, encoded.pictures)
        prompts.append(Prompt(place, Encoded(encoded.tokens, same), ids, prefix))
    return prompts


def _picture_bytes(prompt: Prompt) -> int:
    return sum(value.nbytes for value in prompt.encoded.pictures.values())
