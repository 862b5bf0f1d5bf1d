"""One decoder layer whose calls are led through the function of its kind."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint

from striate.models.interventions.kv_cache_names import given_cache
from striate.training.compile.equivalence_check import DifferenceError, compare, tried
from striate.training.compile.last_layer_answers import answer_places
from striate.training.compile.layer_form import LayerTensors
from striate.training.compile.layer_function import LayerFunction
from striate.training.packing.packed_attention import current_layout
from striate.training.packing.traced_attention import packed_inputs

if TYPE_CHECKING:
    from striate.training.compile.regional import FastLayers

# Which of a layer's functions: whether it gives answer positions only.
Way = bool


class LedLayer:
    """One layer and the function that stands in for its forward method.

    Attributes:
        layer: the layer.
        can_answer: whether it may run at answer positions only.
        function: what its last call ran.
        index: its place in the stack.
    """

    index = 0

    def __init__(self, owner: FastLayers, layer: Any, compiled: bool, recomputed: bool) -> None:
        """Keep both; `recomputed` says whether only the layer's input is kept."""
        self._owner, self.layer = owner, layer
        self._compiled, self._recomputed = compiled, recomputed
        self._tensors = LayerTensors(layer)
        self._flags: tuple[bool, ...] = ()
        self._functions: dict[Way, LayerFunction | None] = {}
        self._compared: set[Way] = set()
        self._saved: dict[str, Any] = {}
        self.can_answer = False
        self.function: LayerFunction | None = None

    def install(self) -> None:
        """Take the place of the layer's forward method, and over its checkpointing."""
        layer = self.layer
        own = vars(layer)
        self._saved = {name: own[name] for name in ("forward", "gradient_checkpointing") if name in own}
        self._recomputed = self._recomputed or bool(getattr(layer, "gradient_checkpointing", False))
        layer.gradient_checkpointing = False
        self._original = layer.forward
        layer.forward = self._forward

    def remove(self) -> None:
        """Put back what `install` found."""
        for name in ("forward", "gradient_checkpointing"):
            vars(self.layer).pop(name, None)
        vars(self.layer).update(self._saved)
        self._tensors.take_apart()

    def _forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the layer's output, by the way that fits the call."""
        if not torch.is_grad_enabled() or given_cache(kwargs) is not None:
            return self._original(*args, **kwargs)
        self.function = None
        more: dict[str, Any] = {}
        for way, more in self._ways() if self._compiled else ():
            self.function = self._current(way, args, kwargs, more)
            if self.function:
                break
        function = self.function
        if function is None:
            return self._kept(self._original, args, kwargs)
        given = function.inputs(kwargs, more)
        tensors, keys = self._tensors.current(function.groups), function.keys(_hidden(args, kwargs))
        graphs = self._owner.graphs
        if graphs and not (self._recomputed or self._owner.plain):
            return graphs.run(self.index, function, tensors, keys, args, given)
        run = function.plain if self._owner.plain else function
        return self._kept(lambda *a, **k: run(tensors, keys, a, k), args, given)

    def _ways(self) -> Iterator[tuple[Way, dict[str, Any]]]:
        """Yield the ways to run the layer, best first, each with what its function is handed besides."""
        more = _packed()
        places = answer_places() if self.can_answer else None
        if places is not None:
            yield True, {**more, "places": places}
        yield False, more

    def _kept(self, run: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Run it, keeping all that the backward pass needs or the input alone."""
        if not self._recomputed:
            return run(*args, **kwargs)
        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    def _current(self, way: Way, args: Any, kwargs: Any, more: Mapping[str, Any]) -> LayerFunction | None:
        """Return the function of what the layer is now, compared with the layer at its first use."""
        flags = self._tensors.flags()
        if flags != self._flags:
            self._flags, self._compared, self._functions = flags, set(), {}
        if way not in self._functions:
            self._functions[way] = self._owner.function_of(self.layer, way)
        function = self._functions[way]
        if function is None or function.refused:
            return None
        if way not in self._compared and not self._owner.plain:
            self._compared.add(way)
            self._compare(function, args, kwargs, more)
        return None if function.refused else function

    def _compare(self, function: LayerFunction, args: Any, kwargs: Any, more: Mapping[str, Any]) -> None:
        """Compare the function with the layer on this batch, and refuse it where they differ or it can't be had."""
        begin = time.perf_counter()
        if self._owner.merged and not function.checked:
            with contextlib.suppress(DifferenceError):
                tried(function.merge, self._tensors.current(), args, function.inputs(kwargs, more))
        try:
            self._compare_once(function, args, kwargs, more)
        except DifferenceError as found:
            function.refused = str(found)
            self._owner.tell(self.layer, function.refused)
        finally:
            self._owner.compile_seconds += time.perf_counter() - begin
        function.checked = True

    def _compare_once(self, function: LayerFunction, args: Any, kwargs: Any, more: Mapping[str, Any]) -> None:
        """Compare the function with the layer; where it fails with merged products, compare it without."""
        how = self.layer, self._original
        try:
            compare(function, *how, self._tensors.current(function.groups), args, kwargs, more)
        except DifferenceError as found:
            if not function.merged:
                raise
            function.unmerge()
            compare(function, *how, self._tensors.current(), args, kwargs, more)
            self._owner.tell_unmerged(self.layer, str(found))


def _packed() -> dict[str, Any]:
    """Return what keeps the samples of a packed row apart, for attention that a compiler follows."""
    layout = current_layout()
    return packed_inputs(layout.lengths, layout.ends) if layout else {}


def _hidden(args: Any, kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return the hidden states that a layer was called with."""
    hidden: torch.Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden
