"""A stack of decoder layers whose kernels are recorded for each form of batch, and launched with few calls.

The work that a layer gives the processor before its kernels run does not shrink with the model. For a small one it
takes longer than the kernels; CUDA graphs launch all kernels of a layer's pass at once. Memory between layers is
chained: a layer's results lie where the next one reads them, and gradients likewise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from striate.training.compile.cuda_graphs.layer_calls import Call, Signature
from striate.training.compile.cuda_graphs.layer_graphs import Noted, RecordedLayer, Slot, Turn, same_form
from striate.training.compile.cuda_graphs.recorded import Recorder
from striate.training.compile.equivalence_check import other_dropout
from striate.training.compile.layer_function import LayerFunction

# Passes of one form before it is recorded: the first ones compile.
TRIED = 2
# Forms of batches that are recorded: each takes memory and about two seconds.
MOST_FORMS = 8
Say = Callable[[str], None]


class StackGraphs:
    """Runs the layers of one stack, recorded where that is possible and as ever where not.

    Every layer decides anew at every call: one whose inputs, weights or form are not those that were recorded runs
    as ever, between recorded ones.

    Attributes:
        recorded: how many forms of batches are recorded.
        replayed: how many calls of layers were replayed since the first was recorded.
        missed: how many were not.
        refused: why nothing is recorded any more, or empty.
    """

    def __init__(self, recorder: Recorder, say: Say = lambda line: None) -> None:
        """Take what records, and whom to tell what can't be recorded."""
        self._recorder, self._say = recorder, say
        self._forms: dict[Signature, _Form] = {}
        self._form: _Form | None = None
        self._turn = Turn(0)
        self._last = -1
        self.recorded = self.replayed = self.missed = 0
        self.refused = ""

    def run(
        self,
        index: int,
        function: LayerFunction,
        tensors: Mapping[str, torch.Tensor],
        keys: torch.Tensor | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """Return what `function` gives for the layer at `index`; layers are called in their order."""
        call = None if self.refused else Call.of(function, tensors, keys, args, kwargs)
        if call is None:
            return function(tensors, keys, args, kwargs)
        if index <= self._last or self._last < 0:
            self._begin(call)
        self._last = index
        layer = self._form.layers.get(index) if self._form else None
        if layer is not None and layer.fits(call, self._turn):
            self.replayed += 1
            return layer.replay(call, self._turn)
        self.missed += self.recorded > 0
        if self._form:
            self._form.note(index, call)
        return function(tensors, keys, args, kwargs)

    def describe(self) -> str:
        """Return in a few words what was recorded."""
        share = self.replayed / max(1, self.replayed + self.missed)
        forms = f"{self.recorded} form{'s' * (self.recorded != 1)} of batches"
        return f"CUDA graphs of {forms}, used in {share:.0%} of later layer calls"

    def _begin(self, call: Call) -> None:
        """Begin a forward pass: choose what was recorded for its form, or record it if it has been seen enough."""
        self._form = None
        # What an earlier pass left for its backward pass must not be written over.
        if self._turn.pending:
            return
        self._turn = Turn(self._turn.number + 1)
        form = self._forms.setdefault(call.signature(), _Form())
        form.passes += 1
        if form.ready and self.recorded < MOST_FORMS:
            self._record(form)
        elif form.ready:
            self._say(f"batches have more than {MOST_FORMS} forms: CUDA graphs are made of the first ones alone")
            form.passes = -(2**60)
        self._form = None if self.refused else form

    def _record(self, form: _Form) -> None:
        """Record the layers of a form; none at all from now on if that fails."""
        try:
            with self._recorder.recording():
                form.record(self._recorder)
            self.recorded += 1
        except torch.OutOfMemoryError:
            self.refused = "there is no memory for them"
        except Exception as error:
            # Whatever can't be recorded about a family is a reason to launch it as ever.
            self.refused = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        if self.refused:
            self._forms = {}
            self._say(f"decoder layers run without CUDA graphs: {self.refused}")


class _Form:
    """What is known of one form of batches."""

    def __init__(self) -> None:
        """Know nothing."""
        self.passes = 0
        self.layers: dict[int, RecordedLayer] = {}
        self._noted: dict[int, Noted] = {}

    @property
    def ready(self) -> bool:
        """Whether it has been seen enough to be recorded, and is not."""
        return self.passes > TRIED and not self.layers and bool(self._noted)

    def note(self, index: int, call: Call) -> None:
        """Keep a layer's call of the last pass before recording."""
        if self.passes == TRIED and not other_dropout(call.function.template):
            self._noted[index] = Noted.of(call)

    def record(self, recorder: Recorder) -> None:
        """Record the noted calls: all forward passes, then all backward passes the other way, as they will run."""
        noted, self._noted = self._noted, {}
        slots: dict[int, Slot] = {}
        for one in noted.values():
            for tensor in one.call.given[1:]:
                if id(tensor) not in slots:
                    slots[id(tensor)] = Slot(tensor)
        read = {index: [slots[id(tensor)] for tensor in one.call.given[1:]] for index, one in noted.items()}
        for index, one in noted.items():
            RecordedLayer(index, one, one.memory(), read[index]).try_out()
        layers: list[RecordedLayer] = []
        before: dict[int, torch.Tensor] = {}
        for index, one in noted.items():
            made = before.get(index - 1)
            hidden = made if made is not None and same_form(made, one.call.hidden) else one.memory()
            layers.append(RecordedLayer(index, one, hidden, read[index]))
            before[index] = layers[-1].record_forward(recorder)
        after: dict[int, torch.Tensor | None] = {}
        for layer in reversed(layers):
            after[layer.index] = layer.record_backward(recorder, after.get(layer.index + 1))
        self.layers = {layer.index: layer for layer in layers}
