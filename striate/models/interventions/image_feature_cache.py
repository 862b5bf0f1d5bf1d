"""Caches image features for inference: a picture that several prompts show is encoded once; bounded, LRU."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from striate.models.structure.decoder_stack import unwrap

METHOD = "get_image_features"
# Fields that no family's forward pass reads once it has the features themselves.
UNREAD = frozenset({"last_hidden_state", "hidden_states", "attentions"})
CPU_BYTES, ACCELERATOR_SHARE = 2**29, 0.1


class ImageFeatureCache:
    """Answers a model's `get_image_features` from what it has seen, picture by picture.

    Each family's own method computes the features; only pictures that are not cached go in. The first batch is computed
    both ways, and where that does not agree, or the pictures of a call can't be told apart, the model is left to itself
    and `why_not` says why.

    Attributes:
        encoded: pictures that went through the vision encoder.
        reused: pictures that did not have to.
        why_not: why features are not cached; empty while they are.
    """

    def __init__(self, owner: Any, limit_bytes: int) -> None:
        """Take the module that has the method, and how many bytes of features may be cached."""
        self.encoded = self.reused = 0
        self.why_not = ""
        self._compute = getattr(owner, METHOD)
        # `generate` reads from the method's signature which inputs it takes.
        self.__signature__ = inspect.signature(self._compute)
        self._limit = limit_bytes
        self._cached: OrderedDict[Hashable, Tensor] = OrderedDict()
        self._output: Any = None
        self._listed: Any = None
        self._keys: list[Hashable] | None = None
        self._proved = False

    def expect(self, keys: Sequence[Hashable]) -> None:
        """Say which pictures the next call shows, in order."""
        self._keys = None if self.why_not else list(keys)

    def settle(self) -> None:
        """Note it if the pictures that were announced were not asked for."""
        if self._keys:
            self.why_not = f"its forward pass does not call {METHOD}"
        self._keys = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return the features as the model's own method does."""
        keys, self._keys = self._keys, None
        if not keys:
            return self._compute(*args, **kwargs)
        bound = self.__signature__.bind(*args, **kwargs).arguments
        arguments = {**bound, **bound.get("kwargs", {})}
        arguments.pop("kwargs", None)
        parts = _by_picture(arguments, len(keys))
        if parts is None:
            self.why_not = "the pictures of a batch can't be told apart"
            return self._compute(*args, **kwargs)
        new = [index for index, key in enumerate(keys) if key not in self._cached and key not in keys[:index]]
        features = {key: self._cached.get(key) for key in keys}
        if new and not self._compute_new(new, keys, parts, features):
            return self._compute(*args, **kwargs)
        answer = self._joined([features[key] for key in keys])
        if not self._proved and len(keys) > 1:
            own = self._compute(*args, **kwargs)
            self._proved = True
            if not _same(own, answer):
                self.why_not = "its features depend on more than the picture"
                return own
        self.encoded += len(new)
        self.reused += len(keys) - len(new)
        self._store(features)
        return answer

    def _compute_new(
        self, new: list[int], keys: list[Hashable], parts: list[dict[str, Any]], features: dict[Hashable, Any]
    ) -> bool:
        """Fill `features` for pictures that are not cached; return whether they could be told apart."""
        output = self._compute(**_together([parts[index] for index in new]))
        value = _features(output)
        self._output = None if value is output else type(output)
        self._listed = type(value) if isinstance(value, list | tuple) else None
        split = _split(output, len(new))
        if split is None:
            self.why_not = "the features of a batch can't be told apart"
            return False
        features.update({keys[index]: part for index, part in zip(new, split, strict=True)})
        return True

    def _joined(self, parts: list[Any]) -> Any:
        value = self._listed(parts) if self._listed else torch.stack(parts)
        if not self._output:
            return value
        # Some families put the features on an output object whose class has no such field.
        answer = self._output()
        answer.pooler_output = value
        return answer

    def _store(self, features: dict[Hashable, Any]) -> None:
        for key, part in features.items():
            self._cached[key] = part
            self._cached.move_to_end(key)
        while self._cached and sum(part.nbytes for part in self._cached.values()) > self._limit:
            self._cached.popitem(last=False)


@contextmanager
def cached_image_features(model: Any) -> Iterator[ImageFeatureCache | None]:
    """Answer `get_image_features` from a cache in the block; None for a model without that method.

    It holds 512 MiB of features, or a tenth of an accelerator's free memory.
    """
    core = unwrap(model)
    owners = [module for module in core.modules() if hasattr(type(module), METHOD)]
    if not owners:
        yield None
        return
    # The innermost one: the others pass the call on to it.
    cache = ImageFeatureCache(owners[-1], _limit_bytes(core))
    owners[-1].__dict__[METHOD] = cache
    try:
        yield cache
    finally:
        del owners[-1].__dict__[METHOD]


def _limit_bytes(core: Any) -> int:
    if core.device.type != "cuda":
        return CPU_BYTES
    return int(ACCELERATOR_SHARE * torch.cuda.mem_get_info(core.device)[0])


def _by_picture(arguments: dict[str, Any], count: int) -> list[dict[str, Any]] | None:
    """Return the arguments of every picture on its own; None where their tensors don't show which is whose."""
    grid = arguments.get("image_grid_thw")
    sizes = [1] * count if grid is None else grid.prod(-1).tolist()
    ends = torch.tensor(sizes).cumsum(0).tolist()
    parts: list[dict[str, Any]] = [dict(arguments) for _ in range(count)]
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        flat = grid is not None and name == "pixel_values"
        if len(sizes) != count or value.shape[0] != (ends[-1] if flat else count):
            return None
        for index, (size, end) in enumerate(zip(sizes, ends, strict=True)):
            parts[index][name] = value[end - size : end] if flat else value[index : index + 1]
    return parts


def _together(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: torch.cat([part[name] for part in parts]) if isinstance(value, Tensor) else value
        for name, value in parts[0].items()
    }


def _features(output: Any) -> Any:
    return getattr(output, "pooler_output", output)


def _split(output: Any, count: int) -> list[Tensor] | None:
    """Return the features of each picture; None where they can't be told apart, or are not all that is given."""
    features = _features(output)
    if features is not output:
        more = {name for name, value in output.items() if value is not None} - UNREAD - {"pooler_output"}
        if more:
            return None
    whole = isinstance(features, list | tuple) and all(isinstance(part, Tensor) for part in features)
    if not whole and not isinstance(features, Tensor):
        return None
    return list(features) if len(features) == count else None


def _same(own: Any, answer: Any) -> bool:
    left, right = _features(own), _features(answer)
    if len(left) != len(right):
        return False
    for ours, theirs in zip(left, right, strict=True):
        tolerance = 1e-4 if ours.dtype == torch.float32 else 0.05
        if ours.shape != theirs.shape or (ours - theirs).abs().max() > tolerance * ours.abs().max().clamp(min=1e-6):
            return False
    return True
