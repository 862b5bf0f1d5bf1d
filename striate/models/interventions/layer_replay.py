"""Activation patching: runs an LVLM again from any decoder layer on, with another output of that layer.

One plain forward pass is recorded first: what enters and leaves every layer, and what the vision modules return.

The model's own forward runs each time, so that masks, positions, features injected between layers, the final norm and
the LM head are the family's own code. Only the calls whose outcome is known already are answered from the recording:
the vision encoder, the projector, and the decoder layers before the patched one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from striate.errors import ModelError
from striate.models.interventions.patched_forward import own_forward
from striate.models.interventions.selected_logits import answer_logits
from striate.models.structure.anatomy import Anatomy, decoder_layers

# What a layer that lacks the state of earlier layers raises when it runs without them.
_MISSING = (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError)
Forward = Callable[..., Any]


@dataclass(frozen=True)
class LayerCall:
    """One call of a decoder layer: what it was given, and what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any

    @property
    def x_in(self) -> Tensor:
        """What entered the layer, shape (B, T, D)."""
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    @property
    def x_out(self) -> Tensor:
        """What left the layer, shape (B, T, D)."""
        return self.output[0] if isinstance(self.output, tuple) else self.output

    def returning(self, hidden_BTD: Tensor) -> Any:
        """Return an output of the layer's own form that holds `hidden_BTD`."""
        return (hidden_BTD, *self.output[1:]) if isinstance(self.output, tuple) else hidden_BTD


@dataclass
class Recording:
    """One plain forward pass.

    Attributes:
        inputs: what the model was given.
        rows: the samples of the chosen positions, shape (N,).
        columns: their places, shape (N,).
        calls: every decoder layer's call.
        vision_outputs: what the vision modules returned, by name.
        logits: those of the chosen positions, shape (N, V).
    """

    inputs: Mapping[str, Any]
    rows: Tensor
    columns: Tensor
    calls: list[LayerCall] = field(default_factory=list)
    vision_outputs: dict[str, list[Any]] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass
class _Patch:
    """A forward pass in which layer `layer` returns `output` (B, T, D), and only those after it run."""

    recording: Recording
    layer: int
    output: Tensor
    used: dict[str, int] = field(default_factory=dict)


class LayerReplay:
    """A context in which a model is recorded and patched (activation patching); leaving it restores every forward.

    A recording holds (L + 1) x B x T x D hidden states in the model's dtype, and the outputs of the vision encoder.
    `reuse` turns false for a model whose layers share more than hidden states; all layers run then.
    """

    def __init__(self, core: Any, anatomy: Anatomy) -> None:
        """Keep the model, which should be in eval mode and without wrappers."""
        self.reuse = True
        self._core = core
        self._layers = decoder_layers(core)
        names = dict.fromkeys((*anatomy.vision_names, *anatomy.projector_names))
        self._vision_modules = {name: core.get_submodule(name) for name in names}
        self._forwards = ExitStack()
        self._skipped: dict[int, LayerCall | None] = {}
        self._recording: Recording | None = None
        self._patch: _Patch | None = None
        self._checked = False

    def __enter__(self) -> LayerReplay:
        with ExitStack() as forwards:
            for index, layer in enumerate(self._layers):
                forwards.enter_context(own_forward(layer, self._layer_forward(index, layer.forward)))
            for name, module in self._vision_modules.items():
                forwards.enter_context(own_forward(module, self._vision_forward(name, module.forward)))
            self._forwards = forwards.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._forwards.close()

    def skip(self, layers: Iterable[int]) -> None:
        """Let `layers` pass on what they get from now on, as if they were removed."""
        self._skipped |= dict.fromkeys(layers)

    def record(self, inputs: Mapping[str, Any], rows_N: Tensor, columns_N: Tensor) -> Recording:
        """Return a plain forward pass with logits at the positions (`rows_N`, `columns_N`).

        The first recording with any position is patched with each layer's own output: its logits must stay the same.

        Raises:
            ModelError: layers that did not run once each in order, hidden states of another shape than (B, T, D), or
                logits that differ when nothing was patched.
        """
        recording = Recording(inputs, rows_N, columns_N)
        self._recording = recording
        try:
            recording.logits = answer_logits(self._core, inputs, rows_N, columns_N)
        finally:
            self._recording = None
        if len(recording.calls) != len(self._layers):
            raise _unfit(f"only {len(recording.calls)} of {len(self._layers)} layers ran")
        if not self._checked and len(rows_N):
            self._check(recording)
            self._checked = True
        return recording

    def patched(self, recording: Recording, layer: int, output_BTD: Tensor) -> Tensor:
        """Return the logits (N, V) with `output_BTD` patched in as the output of `layer`: only later layers run."""
        self._patch = _Patch(recording, layer, output_BTD)
        try:
            return answer_logits(self._core, recording.inputs, recording.rows, recording.columns)
        finally:
            self._patch = None

    def layer_output(self, recording: Recording, layer: int, input_BTD: Tensor) -> Tensor:
        """Return what `layer` alone makes of `input_BTD`, shape (B, T, D), all else as recorded."""
        call = recording.calls[layer]
        if call.args:
            output = self._layers[layer](input_BTD, *call.args[1:], **call.kwargs)
        else:
            output = self._layers[layer](**{**call.kwargs, "hidden_states": input_BTD})
        return output[0] if isinstance(output, tuple) else output

    def _layer_forward(self, index: int, original: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._patch is not None and index <= self._patch.layer:
                return self._recorded(self._patch, index, original, args, kwargs)
            output = self._skip(index, original, args, kwargs) if index in self._skipped else original(*args, **kwargs)
            if self._recording is not None:
                self._record(self._recording, index, LayerCall(args, kwargs, output))
            return output

        return forward

    def _skip(self, index: int, original: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what layer `index` was given, in the form of its own output, which its first call tells."""
        form = self._skipped[index]
        if form is None:
            output = original(*args, **kwargs)
            form = self._skipped[index] = LayerCall((), {}, (None, *output[1:]) if isinstance(output, tuple) else None)
        return form.returning(LayerCall(args, kwargs, None).x_in)

    def _record(self, recording: Recording, index: int, call: LayerCall) -> None:
        """Record one call of layer `index`, which must be its first, on hidden states (B, T, D)."""
        if index != len(recording.calls):
            raise _unfit(f"layer {index} did not run exactly once, in order")
        shape = tuple(recording.inputs["input_ids"].shape)
        for hidden in (call.x_in, call.x_out):
            if hidden.ndim != 3 or tuple(hidden.shape[:2]) != shape:
                raise _unfit(f"layer {index} has hidden states of shape {tuple(hidden.shape)}, not {(*shape, 'D')}")
        recording.calls.append(call)

    def _recorded(
        self, patch: _Patch, index: int, original: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return what a layer up to the patched one gives: nothing that counts before it, the new output at it."""
        call = patch.recording.calls[index]
        output = None if self.reuse or index in self._skipped else original(*args, **kwargs)
        if index == patch.layer:
            return call.returning(patch.output)
        return output if output is not None else call.returning(LayerCall(args, kwargs, None).x_in)

    def _vision_forward(self, name: str, original: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._patch is not None and self.reuse:
                call = self._patch.used.get(name, 0)
                self._patch.used[name] = call + 1
                return _shallow_copy(self._patch.recording.vision_outputs[name][call])
            output = original(*args, **kwargs)
            if self._recording is not None:
                self._recording.vision_outputs.setdefault(name, []).append(_shallow_copy(output))
            return output

        return forward

    def _check(self, recording: Recording) -> None:
        """Find out whether running on after a layer gives the plain logits; run all layers where it does not."""
        try:
            if self._is_faithful(recording):
                return
        except torch.OutOfMemoryError:
            raise
        except _MISSING:
            # The model can't run without the modules that were left out, so they run from now on.
            pass
        self.reuse = False
        if not self._is_faithful(recording):
            raise _unfit("running on behind a layer, with nothing altered, gives other logits")

    def _is_faithful(self, recording: Recording) -> bool:
        """Return whether each layer run again on its input, and the layers after it, give the recorded logits."""
        # Logits that are no numbers are the same ones each time, and are for the scores to report.
        plain = recording.logits.float().nan_to_num()
        difference = plain.new_zeros(())
        for index, call in enumerate(recording.calls):
            again = self.patched(recording, index, self.layer_output(recording, index, call.x_in))
            difference = torch.maximum(difference, (again.float().nan_to_num() - plain).abs().amax())
        tolerance = 1e-4 if recording.logits.dtype.itemsize >= 4 else 3e-2
        return bool(difference <= tolerance * plain.abs().amax())


def _shallow_copy(output: Any) -> Any:
    """Return an output whose fields can be set without touching this one's: some models write into what they get."""
    return output if isinstance(output, Tensor) else copy(output)


def _unfit(problem: str) -> ModelError:
    return ModelError(
        f"single layers of this language model can't be altered: {problem}",
        "decoder layers that run once each, in order, on hidden states of shape (batch, tokens, width)",
        "choose scorers of the weights, the hidden states or the gradients; `striate ls scorers` lists them",
    )
