"""Where text and image tokens stand in a batch, prepared on the CPU: layers that image tokens pass only read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from striate.models.interventions.kv_cache_names import cache_name, without_cache
from striate.models.visual_token_skipping.rule import ImageSkip
from striate.models.visual_token_skipping.token_indices import Places, at_rows, rows_of_mask
from striate.training.packing.packed_attention import current_layout
from striate.training.visual_token_skipping.kv_then_text import AT_KEYS, AT_TEXT, in_two_calls

# Keys that several runs of text see are held once for each: with more than this share of all, a mask is cheaper.
_MOST_KEYS = 1.5
_LEAST_BOUND = 256


@dataclass(frozen=True)
class ImageRows:
    """The tokens of a batch (B, T) as one row of M = B T, and the runs of text among them.

    A run is text without a break within one sample. Its queries see all keys of its sample up to the run's end, each
    query those up to itself: causal attention of as many queries as the run has and as many keys as stand before its
    end. Runs are put one after the other, and so are their keys.

    Attributes:
        batch: B.
        length: T.
        apart: whether the rows are packed: several samples each.
        text: the text tokens, (N,).
        text_back: the place of each token in `text`, or -1, (1, M).
        keys: the keys of all runs, (K,).
        keys_back: the places of each token in `keys`, -1 where fewer than C, a power of 2, (C, M).
        ends: 0 and the end of each run in `text`, int32.
        key_ends: 0 and the end of each run in `keys`, int32.
        longest: at least the queries of the longest run.
        key_longest: at least its keys.
        grid: text tokens of each sample, filled up with -1, (B, X).
        grid_back: the place of each token in the flat `grid`, or -1, (1, M).
        places: the same for layers that run uncompiled.
    """

    batch: int
    length: int
    apart: bool
    text: Tensor
    text_back: Tensor
    keys: Tensor
    keys_back: Tensor
    ends: Tensor
    key_ends: Tensor
    longest: int
    key_longest: int
    grid: Tensor
    grid_back: Tensor
    places: Places
    _cut: dict[tuple[str, int], tuple[Any, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, image_BT: Tensor, device: torch.device, lengths: Sequence[int] | None = None) -> ImageRows | None:
        """Return the rows of a batch on `device`, sent there without waiting, or None where it has no image tokens.

        Args:
            image_BT: which tokens are image tokens, on the CPU.
            device: where the layers run.
            lengths: tokens of each sample of a packed row (1, T).
        """
        if not bool(image_BT.any()):
            return None
        batch, length = image_BT.shape
        image_M = image_BT.flatten()
        runs = _Runs.of(image_M, lengths or [length] * batch)
        every = torch.arange(len(image_M))
        text_BX, image_BI = _filled(~image_BT), _filled(image_BT)
        grid = torch.where(text_BX < length, text_BX + every[::length, None], -1)
        parts = {
            "text": runs.text,
            "text_back": _inverse(runs.text, len(image_M)),
            "keys": runs.keys,
            "keys_back": _inverse(runs.keys, len(image_M), several=True),
            "ends": runs.ends,
            "key_ends": runs.key_ends,
            "grid": grid,
            "grid_back": _inverse(grid.flatten(), len(image_M)),
            "text_BX": text_BX,
            "image_BI": image_BI,
        }
        sent: dict[str, Any] = _sent(parts, device)
        places = Places(sent.pop("image_BI"), sent.pop("text_BX"), length)
        ends = {name: sent.pop(name).to(torch.int32) for name in ("ends", "key_ends")}
        longest: dict[str, Any] = {"longest": _bound(runs.ends), "key_longest": _bound(runs.key_ends)}
        return cls(batch, length, lengths is not None, places=places, **sent, **ends, **longest)

    @cached_property
    def joined(self) -> bool:
        """Whether a kernel takes runs of text with keys of their own: packed rows have no other way."""
        return self.apart or len(self.keys) <= _MOST_KEYS * self.batch * self.length

    def arguments(self, hidden_BTD: Tensor, kwargs: Mapping[str, Any], kernel: bool) -> dict[str, Any]:
        """Return what a `TextFunction` is called with in place of a layer's own arguments.

        Args:
            hidden_BTD: the hidden states.
            kwargs: the layer's other arguments.
            kernel: whether there is a kernel for runs of text; else a mask says which keys a query sees.

        Raises:
            ModelError: an argument of which it is not known how it goes with positions.
        """
        given = {name: value for name, value in without_cache(kwargs).items() if name != "hidden_states"}
        mask = given.pop("attention_mask", None)
        found: dict[str, Any] = {"hidden_states": hidden_BTD} if "hidden_states" in kwargs else {}
        if mask is None and self.joined and (kernel or self.apart):
            found |= {"ends": self.ends, "key_ends": self.key_ends}
            found |= {"longest": self.longest, "key_longest": self.key_longest}
            found |= {"text": self.text[None], "text_back": self.text_back}
            found |= {"keys": self.keys, "keys_back": self.keys_back}
            at_keys = {name: self._at(name, value, "keys") for name, value in given.items()}
            at_text = {name: self._at(name, value, "text") for name, value in given.items()}
        else:
            found |= {"text": self.grid, "text_back": self.grid_back, "keys": None, "keys_back": None}
            at_keys = given
            at_text = {name: self._at(name, value, "grid") for name, value in given.items()}
            at_text["attention_mask"] = self._mask(mask, hidden_BTD)
        found |= {f"{AT_TEXT}{name}": value for name, value in at_text.items()}
        return found | {f"{AT_KEYS}{name}": value for name, value in at_keys.items()}

    def run(self, whole: Callable[..., Any], others: Mapping[str, Any], hidden_BTD: Tensor) -> Any:
        """Return the output of a layer of a packed row that runs uncompiled; `whole` is its forward method."""
        return in_two_calls(whole, hidden_BTD, self.arguments(hidden_BTD, others, True), cache_name(whole))

    def _at(self, name: str, value: Any, which: str) -> Any:
        """Return an argument at some of the tokens; made once a batch, since all layers get the same."""
        if isinstance(value, tuple | list):
            return type(value)(self._at(name, part, which) for part in value)
        known = self._cut.get((which, id(value)))
        if known is None or known[0] is not value:
            rows = getattr(self, which)
            rows = rows if rows.ndim == 2 else rows[None]
            known = value, at_rows(name, value, rows.clamp_min(0), self.length)
            self._cut[which, id(value)] = known
        return known[1]

    def _mask(self, mask: Any, hidden_BTD: Tensor) -> Tensor:
        """Return the rows of text tokens of the attention mask, (B, 1, X, T), made once a batch."""
        known = self._cut.get(("mask", id(mask)))
        if known is None or known[0] is not mask:
            known = mask, rows_of_mask(mask, hidden_BTD, self.places, 0)
            self._cut["mask", id(mask)] = known
        found: Tensor = known[1]
        return found


# Not a context variable: the backward pass computes checkpointed layers again in a thread of its own.
_current: list[ImageRows | None] = [None]


@contextmanager
def reading(
    rule: ImageSkip, ids_BT: Tensor, device: torch.device, lengths: Sequence[int] | None = None
) -> Iterator[ImageRows | None]:
    """Tell the rule and the compiled layers for a block where a batch's image tokens are, so that nothing waits.

    Args:
        rule: of the model.
        ids_BT: the batch's token ids, on the CPU.
        device: where the layers run.
        lengths: tokens of each sample of a packed row (1, T).
    """
    rows = ImageRows.of(rule.image_mask(ids_BT), device, lengths)
    outer, _current[0] = _current[0], rows
    try:
        with rule.told(rows.places if rows else None, rows.run if rows and rows.apart else None):
            yield rows
    finally:
        _current[0] = outer


def rows_for(rule: ImageSkip) -> ImageRows | None:
    """Return the rows of the batch in work; where nobody told, by asking the device for them, which makes it wait."""
    places = rule.places
    if places is None:
        return None
    known = _current[0]
    if known is None or known.places is not places:
        image = torch.zeros(places.image.shape[0], places.length + 1, dtype=torch.bool)
        image.scatter_(1, places.image.cpu(), True)
        layout = current_layout()
        known = ImageRows.of(image[:, :-1], places.image.device, layout.lengths if layout else None)
        if known is not None:
            # The next layer finds it by its places.
            known = replace(known, places=places)
            _current[0] = known
    return known


@dataclass(frozen=True)
class _Runs:
    """Text tokens, keys and ends of the runs of text, on the CPU."""

    text: Tensor
    keys: Tensor
    ends: Tensor
    key_ends: Tensor

    @classmethod
    def of(cls, image_M: Tensor, lengths: Sequence[int]) -> _Runs:
        """Return the runs among samples of these lengths."""
        starts = torch.tensor([0, *accumulate(lengths)])
        sample_M = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        before = torch.cat([torch.ones(1, dtype=torch.bool), image_M[:-1] | sample_M.diff().bool()])
        text = (~image_M).nonzero()[:, 0]
        run_N = (before & ~image_M).cumsum(0)[text] - 1
        counts = torch.bincount(run_N)
        ends = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        last = text[ends[1:] - 1]
        first = starts[sample_M[last]]
        key_counts = last + 1 - first
        key_ends = torch.cat([counts.new_zeros(1), key_counts.cumsum(0)])
        offset = torch.repeat_interleave(first - key_ends[:-1], key_counts)
        return cls(text, torch.arange(int(key_ends[-1])) + offset, ends, key_ends)


def _inverse(rows: Tensor, length: int, several: bool = False) -> Tensor:
    """Return the places of each of `length` rows in `rows`, (C, length), -1 where it is there fewer times.

    C is 1, or where rows may be there `several` times one of few numbers: each is compiled.
    """
    places = torch.arange(len(rows))[rows >= 0]
    ordered, order = rows[rows >= 0].sort(stable=True)
    counts = torch.bincount(ordered, minlength=length)
    nth = torch.arange(len(ordered)) - (counts.cumsum(0) - counts)[ordered]
    most = max(2, 1 << (int(counts.max()) - 1).bit_length()) if several else 1
    found = torch.full((most, length), -1)
    found[nth, ordered] = places[order]
    return found


def _filled(mask_BT: Tensor) -> Tensor:
    """Return where each row of `mask_BT` holds, in order, filled up with T, (B, most)."""
    length = mask_BT.shape[1]
    places = torch.arange(length).expand_as(mask_BT).masked_fill(~mask_BT, length)
    return places.sort(1).values[:, : int(mask_BT.sum(1).max())]


def _bound(ends: Tensor) -> int:
    """Return an upper bound of the lengths between `ends`; few different ones, since each is compiled."""
    return max(_LEAST_BOUND, 1 << (int(ends.diff().max()) - 1).bit_length())


def _sent(parts: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Return the parts on `device`, in one copy that the host does not wait for."""
    # Compiled code wants tensors to begin at multiples of 16 bytes.
    rooms = [part.numel() + part.numel() % 2 for part in parts.values()]
    joined = torch.zeros(sum(rooms), dtype=torch.long, pin_memory=device.type == "cuda")
    for part, room in zip(parts.values(), joined.split(rooms), strict=True):
        room[: part.numel()] = part.flatten()
    pieces = joined.to(device, non_blocking=True).split(rooms)
    return {
        name: piece[: part.numel()].view(part.shape) for (name, part), piece in zip(parts.items(), pieces, strict=True)
    }
