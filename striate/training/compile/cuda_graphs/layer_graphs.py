"""One decoder layer whose kernels are recorded: forward and backward are launched with one call each."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from striate.training.compile.cuda_graphs.layer_calls import Call, Signature
from striate.training.compile.cuda_graphs.recorded import Recorder, Recording


class UnrecordableError(Exception):
    """A layer gives something that can't be given again; the text says what."""


class Slot:
    """Memory that recorded layers read one of their inputs from."""

    def __init__(self, like: torch.Tensor) -> None:
        """Make memory for tensors like this one, with its values: some are places, and must be valid ones."""
        self.buffer = torch.empty_like(like, requires_grad=False).copy_(like.detach())
        self._source: torch.Tensor | None = None
        self._of = -1

    def takes(self, tensor: torch.Tensor, turn: int) -> bool:
        """Return whether it holds `tensor` now: a slot that several layers read takes one tensor a turn."""
        if self._of == turn:
            return self._source is tensor
        self._of, self._source = turn, tensor
        fill(self.buffer, tensor)
        return True


@dataclass(frozen=True)
class Noted:
    """A call to be recorded, without its hidden states: these hold all that came before."""

    call: Call
    signature: Signature

    @classmethod
    def of(cls, call: Call) -> Noted:
        """Return a call as it may be kept."""
        hidden = call.hidden
        alike = torch.empty_strided(hidden.size(), hidden.stride(), dtype=hidden.dtype, device="meta")
        return cls(replace(call, given=(alike.requires_grad_(hidden.requires_grad), *call.given[1:])), call.signature())

    def memory(self) -> torch.Tensor:
        """Return memory for hidden states of this form, where the layer's weights are."""
        device = next(iter(self.call.tensors.values())).device
        return torch.zeros_like(self.call.hidden, device=device, requires_grad=False)


class Turn:
    """One forward pass through recorded layers, up to the end of its backward pass.

    Attributes:
        number: counts the turns of a stack.
        last_back: the layer whose backward pass comes last.
        over: whether it has run.
    """

    def __init__(self, number: int) -> None:
        """Begin it."""
        self.number = number
        self.last_back: int | None = None
        self.over = False
        self._alive: weakref.ref[_Token] | None = None

    def follow(self, token: _Token) -> None:
        """Note that a layer's results may be asked for their gradients for as long as `token` is there."""
        self._alive = self._alive or weakref.ref(token)

    @property
    def pending(self) -> bool:
        """Whether its backward pass may still come and needs what its forward pass left in memory."""
        return not self.over and self._alive is not None and self._alive() is not None


class _Token:
    """Lives as long as the piece of autograd's graph that holds it."""


class RecordedLayer:
    """A layer at one place of the stack, with inputs of one form.

    Attributes:
        index: its place.
        output: memory of its results.
    """

    def __init__(self, index: int, noted: Noted, hidden: torch.Tensor, slots: Sequence[Slot]) -> None:
        """Take a call to record.

        Args:
            index: of the layer.
            noted: one of the layer's calls.
            hidden: memory that its hidden states are read from.
            slots: memory of its other tensors, in their order.
        """
        self.index = index
        self.signature, self.places = noted.signature, noted.call.places()
        self.hidden = hidden.detach().requires_grad_(noted.call.hidden.requires_grad)
        self._slots = slots
        # Autograd ties a leaf to the stream of its first use: these are first used where work is recorded.
        tensors = {name: _leaf(tensor) for name, tensor in noted.call.tensors.items()}
        self._call = replace(noted.call, tensors=tensors, given=())
        self._wanted = [*([self.hidden] if self.hidden.requires_grad else []), *self._call.trained()]
        self._made: torch.Tensor | None = None
        self._forward: Recording | None = None
        self._backward: Recording | None = None
        self.gradient: torch.Tensor | None = None

    def try_out(self) -> None:
        """Run both passes once: whatever is compiled or allocated at first use is so before recording."""
        self._run()
        if self._wanted:
            self.gradient = torch.zeros_like(self._output())
            self._differentiate()
        self._made = self.gradient = None

    def record_forward(self, recorder: Recorder) -> torch.Tensor:
        """Return the memory of the layer's results."""
        self._forward = recorder.record(self._run)
        if not self._wanted:
            self._made = None
        return self.output

    def record_backward(self, recorder: Recorder, gradient: torch.Tensor | None) -> torch.Tensor | None:
        """Return the memory of the gradient of its hidden states; that of its results is read from `gradient`."""
        if not self._wanted:
            return None
        own = gradient is None or not same_form(gradient, self.output)
        self.gradient = torch.zeros_like(self.output) if own else gradient
        self._backward = recorder.record(self._differentiate)
        return self._backward.outputs[0] if self.hidden.requires_grad else None

    @property
    def output(self) -> torch.Tensor:
        """Memory of its results."""
        if self._forward is None or self._forward.outputs[0] is None:
            raise RuntimeError("the layer is not recorded")
        return self._forward.outputs[0]

    def fits(self, call: Call, turn: Turn) -> bool:
        """Return whether a call can be replayed; its inputs other than hidden states are in place then."""
        if call.signature() != self.signature or call.places() != self.places:
            return False
        return all(slot.takes(tensor, turn.number) for slot, tensor in zip(self._slots, call.given[1:], strict=True))

    def replay(self, call: Call, turn: Turn) -> torch.Tensor:
        """Return the layer's results for a call that fits, with their gradients."""
        self._turn = turn
        result: torch.Tensor = _Replay.apply(self, call.hidden, *call.trained())
        return result

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the results."""
        fill(self.hidden, hidden)
        self._forward.replay()  # type: ignore[union-attr]
        return self.output.detach()

    def backward(self, gradient: torch.Tensor, turn: Turn) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the hidden states and of what trains.

        Raises:
            RuntimeError: a later forward pass has written over what this needs.
        """
        if turn is not self._turn or turn.over:
            raise RuntimeError("a recorded layer's backward pass can be run once, before its next forward pass")
        turn.over = self.index == turn.last_back
        fill(self.gradient, gradient)  # type: ignore[arg-type]
        self._backward.replay()  # type: ignore[union-attr]
        found = self._backward.outputs  # type: ignore[union-attr]
        # Autograd copies what it keeps, since these are referred to here as well.
        return tuple(found) if self.hidden.requires_grad else (None, *found)

    def _run(self) -> list[torch.Tensor | None]:
        """Run the layer on the memory of its inputs."""
        with torch.enable_grad():
            made = self._call.run((self.hidden, *(slot.buffer for slot in self._slots)))
        if not isinstance(made, torch.Tensor):
            raise UnrecordableError(f"a layer gives a {type(made).__name__}")
        self._made = made
        return [made]

    def _output(self) -> torch.Tensor:
        """Return the results of the last run."""
        if self._made is None:
            raise RuntimeError("the layer has not been run")
        return self._made

    def _differentiate(self) -> list[torch.Tensor | None]:
        """Return the gradients of everything that has one."""
        made, self._made = self._output(), None
        with torch.autocast(made.device.type, enabled=False):
            return list(torch.autograd.grad(made, self._wanted, self.gradient, allow_unused=True))


class _Replay(torch.autograd.Function):
    """Puts a recorded layer into autograd's graph."""

    @staticmethod
    def forward(ctx: Any, layer: RecordedLayer, hidden: torch.Tensor, *trained: torch.Tensor) -> torch.Tensor:
        """Return the layer's results."""
        turn = layer._turn
        ctx.layer, ctx.turn = layer, turn
        if any(ctx.needs_input_grad):
            ctx.token = _Token()
            turn.follow(ctx.token)
            turn.last_back = layer.index if turn.last_back is None else turn.last_back
        return layer.forward(hidden)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients."""
        return (None, *ctx.layer.backward(gradient, ctx.turn))


def fill(memory: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copy `tensor` to `memory`, unless it lies there."""
    if tensor.data_ptr() != memory.data_ptr() or tensor.stride() != memory.stride():
        memory.detach().copy_(tensor.detach())


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    """Return a leaf of its own on the memory of a tensor that trains; another tensor as it is."""
    if not tensor.requires_grad:
        return tensor
    return nn.Parameter(tensor.detach()) if isinstance(tensor, nn.Parameter) else tensor.detach().requires_grad_()


def same_form(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors have one size, number format and order in memory."""
    return (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
