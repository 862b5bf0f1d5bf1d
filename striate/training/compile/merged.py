"""One matrix product for several linear layers that read the same tensor, such as those of queries, keys and values.

[y_1; y_2; ...] = [W_1; W_2; ...] x. A product of many outputs leaves less of the accelerator idle than several of few,
and the gradient of x is one product over all outputs, with nothing left to add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from striate.training.compile.lora_dropout import FastLora, narrow
from striate.training.compile.products import Gated, Joined, Turned

# Paths of the linear layers that read one tensor, in the order in which they are called.
Group = tuple[str, ...]


class Shared:
    """The product of several linear layers: whichever is called first computes it, the others take their part.

    Attributes:
        names: paths of the layers.
        trained: whether their weights train; if not, the first layer holds them all.
        positions: cosines and sines where the first two outputs are given rotated, or nothing.
    """

    def __init__(self, members: Sequence[Any], names: Group, copies: bool = True) -> None:
        """Take the members, plain linear layers or such with adapters; `copies` gives values memory of their own."""
        self.members, self.names = list(members), names
        self.linears = [_linear(member) for member in members]
        self.sizes = tuple(one.out_features for one in self.linears)
        self.adapted = tuple(index for index, member in enumerate(members) if isinstance(member, FastLora))
        self.trained = bool(self.linears[0].weight.requires_grad)
        # Attention keeps values as they are; all else goes through something that writes it anew.
        values = [index for index, name in enumerate(names) if name.rpartition(".")[2].startswith("v")]
        self.copied = tuple(index for index in values if copies and len(names) > 2 and index not in self.adapted)
        self.positions: tuple[Tensor | None, Tensor | None] = (None, None)
        self._hidden: Tensor | None = None
        self._parts: tuple[Tensor, ...] = ()
        self._left = 0

    def part(self, place: int, hidden: Tensor) -> Tensor:
        """Return the output of one member for `hidden`, (..., its outputs)."""
        if hidden is not self._hidden:
            self._hidden, self._parts, self._left = hidden, self.product(hidden), len(self.members)
        found = self._parts[place]
        self._left -= 1
        if self._left == 0:
            self._hidden, self._parts = None, ()
        return found

    def product(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of all members."""
        given, factors = self._given(hidden)
        cos, sin = self.positions
        found: tuple[Tensor, ...] = (
            Joined.apply(*given, *factors) if cos is None else Turned.apply(*given, cos, sin, *factors)
        )
        return found

    def gated(self, hidden: Tensor) -> Tensor:
        """Return silu(output of the first member) times output of the second."""
        given, factors = self._given(hidden)
        found: Tensor = Gated.apply(*given, *factors)
        return found

    def _given(self, hidden: Tensor) -> tuple[tuple[Any, ...], list[Tensor]]:
        """Return what every kind of product is called with first, and the adapters' factors, with which it ends."""
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        weight, bias = (self._tensors(name, dtype) for name in ("weight", "bias"))
        adapted = [self.members[index] for index in self.adapted]
        factors = [*self._narrow(adapted, hidden), *(member.wide(hidden) for member in adapted)]
        wanted = torch.is_grad_enabled() and (hidden.requires_grad or len(adapted) > 0)
        form = self.sizes, self.adapted, self.trained, self.copied if wanted else ()
        return (hidden.to(dtype), weight, bias, form), factors

    def _tensors(self, name: str, dtype: torch.dtype) -> Tensor | None:
        """Return weights or biases of all members as one tensor; where they are frozen the first member holds it."""
        tensors = [getattr(one, name) for one in self.linears]
        if tensors[0] is None:
            return None
        found: Tensor = torch.cat(tensors) if self.trained else tensors[0]
        return found.to(dtype)

    @staticmethod
    def _narrow(adapted: list[FastLora], hidden: Tensor) -> list[Tensor]:
        """Return A x of every adapter, with its own dropout; one pass over x, or without dropout one product."""
        if len({member.drops and member.probability for member in adapted}) != 1:
            return [member.narrow(hidden) for member in adapted]
        if adapted[0].drops:
            return narrow(adapted, hidden)
        factors = [member.first.weight for member in adapted]
        hidden = adapted[0].cast(hidden)
        return list(linear(hidden, torch.cat(factors)).split([one.shape[0] for one in factors], -1))


class SharedLinear(nn.Linear):
    """A linear layer whose output is part of a product."""

    shared: Shared
    place: int

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the layer's output for `hidden`."""
        return self.shared.part(self.place, hidden)


def siblings(template: nn.Module, run: Callable[[], object]) -> list[Group]:
    """Return the linear layers inside `template` that `run`, which calls it, gives the same tensor.

    Layers in a group are called once each, are alike in number format and in having a bias, and train all or none.
    """
    calls: list[tuple[str, nn.Linear, Tensor]] = []

    def note(name: str, member: nn.Module) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
            if args:
                calls.append((name, _linear(member), args[0]))

        return member.register_forward_pre_hook(hook)

    handles = [note(name, member) for name, member in _members(template)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, *_ in calls]
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, one, hidden in calls:
        if names.count(name) == 1 and (form := _form(one)):
            groups.setdefault((id(hidden), *form), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def merge(template: nn.Module, groups: Sequence[Group], copies: bool = True) -> list[Shared]:
    """Let the layers of each group be one product, and return these.

    Of frozen ones the first member now holds all weights; weights that train stay where they are. `copies` gives an
    output that attention keeps memory of its own; not needed where the whole product is kept anyway.
    """
    found = []
    members = dict(_members(template))
    for group in groups:
        shared = Shared([members[name] for name in group], group, copies)
        for place, member in enumerate(shared.members):
            if not isinstance(member, FastLora):
                member.__class__ = SharedLinear
            member.shared, member.place = shared, place
        if not shared.trained:
            _hold(shared)
        found.append(shared)
    return found


class SideBySide:
    """Frozen weights of one layer, those of each group in one piece of memory; parameters are views of it."""

    def __init__(self, groups: Sequence[Group]) -> None:
        """Take the groups; nothing moves before the first call of `apply`."""
        self._names = [[f"{name}.{kind}" for name in group] for group in groups for kind in ("weight", "bias")]
        self._whole: dict[str, tuple[tuple[int, ...], Tensor]] = {}

    def apply(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the layer's tensors by name, with each group's as one under the first name."""
        for names in self._names:
            if names[0] in tensors:
                parts = [tensors.pop(name) for name in names]
                tensors[names[0]] = self._of(names[0], parts)
        return tensors

    def _of(self, name: str, parts: list[Tensor]) -> Tensor:
        """Return the parts as one tensor; they are moved if they are not where they were put."""
        places = tuple(part.data_ptr() for part in parts)
        if name not in self._whole or self._whole[name][0] != places:
            whole = _as_one(parts)
            self._whole[name] = tuple(part.data_ptr() for part in parts), whole
        return self._whole[name][1]


def take_apart(tensors: Mapping[str, Tensor], groups: Sequence[Group]) -> None:
    """Give parameters of `groups` that lie side by side memory of their own again."""
    for name in (f"{name}.{kind}" for group in groups for name in group for kind in ("weight", "bias")):
        tensor = tensors.get(name)
        if tensor is not None and tensor.untyped_storage().nbytes() > tensor.nbytes:
            tensor.data = tensor.data.clone()


def _as_one(parts: list[Tensor]) -> Tensor:
    """Return a tensor of all rows, of which `parts` are views from now on."""
    first = parts[0].data
    ends = [part.data_ptr() + part.nbytes for part in parts]
    adjacent = [part.data_ptr() for part in parts[1:]] == ends[:-1] and all(part.is_contiguous() for part in parts)
    rows = [part.shape[0] for part in parts]
    if adjacent and len({part.untyped_storage().data_ptr() for part in parts}) == 1:
        return first.as_strided((sum(rows), *first.shape[1:]), first.stride())
    whole = torch.cat([part.data for part in parts])
    for part, view in zip(parts, whole.split(rows), strict=True):
        part.data = view
    if whole.is_cuda:
        # What was moved leaves holes that are too small for the next whole, and for most activations.
        torch.cuda.empty_cache()
    return whole


def _hold(shared: Shared) -> None:
    """Let the first linear layer of a group have the form of all, and the others no tensors."""
    first, *others = shared.linears
    first.out_features = sum(shared.sizes)
    for name in ("weight", "bias"):
        tensor = getattr(first, name)
        if tensor is not None:
            whole = tensor.new_empty((first.out_features, *tensor.shape[1:]))
            setattr(first, name, nn.Parameter(whole, requires_grad=False))
            for other in others:
                setattr(other, name, None)


def _members(template: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what can be part of a product, by the path of its linear layer."""
    found: list[tuple[str, nn.Module]] = []
    for name, module in template.named_modules():
        if isinstance(module, FastLora):
            found.append((f"{name}.base_layer", module))
        elif type(module) is nn.Linear and not isinstance(template.get_submodule(name.rpartition(".")[0]), FastLora):
            found.append((name, module))
    return found


def _linear(member: Any) -> nn.Linear:
    """Return the linear layer itself."""
    found: nn.Linear = member.base_layer if isinstance(member, FastLora) else member
    return found


def _form(one: nn.Linear) -> tuple[Any, ...]:
    """Return what linear layers must share to be one product, or nothing where it can't be part of one."""
    trains = {parameter.requires_grad for parameter in one.parameters()}
    if len(trains) != 1:
        return ()
    return one.in_features, one.weight.dtype, one.weight.device, one.bias is None, *trains
