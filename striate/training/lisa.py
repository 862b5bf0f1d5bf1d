"""A few layers of the region train at a time, and others are drawn every so many steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from random import Random
from typing import Any

import torch
from torch import nn

from striate.artifacts import Region, Resampled
from striate.config import ResampleSection
from striate.errors import TrainingError
from striate.models.structure.anatomy import find_anatomy, layer_of

OPEN_LAYERS = "open_layers"
"""The key under which `train_log.jsonl` has the layers that were open in a step."""


def draws(layers: Sequence[int], active: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of `active` layers without end, dealt like cards: none comes again before all have come once.

    LISA (arXiv 2403.17919) draws every set on its own. The share of time in which a layer is open is the same here,
    and a short training leaves out no layer by chance.
    """
    random = Random(seed)
    deck: list[int] = []
    while True:
        hand = deck[:active]
        deck = deck[active:]
        if len(hand) < active:
            # A layer that is in the hand already waits in the new deck for its next turn.
            fresh = _shuffled(layers, random)
            more = [layer for layer in fresh if layer not in hand][: active - len(hand)]
            hand += more
            deck = [layer for layer in fresh if layer not in more]
        yield tuple(sorted(hand))


def never_open(region: Region, section: ResampleSection, steps: int, seed: int) -> tuple[int, ...]:
    """Return the layers of `region` that have no turn in `steps` steps."""
    if section.active is None:
        return ()
    turns = islice(draws(region.layers, section.active, seed), math.ceil(steps / section.every))
    return tuple(sorted(set(region.layers).difference(*turns)))


def check_resampling(region: Region, section: ResampleSection) -> None:
    """Check that `region` has as many layers as shall be open at a time.

    Raises:
        TrainingError: it has fewer.
    """
    if section.active is not None and section.active > len(region):
        raise TrainingError(
            f"train.resample.active is {section.active}, and region {region.spec!r} has {len(region)} layers",
            f"1 to {len(region)} layers open at a time" if len(region) else "a region with layers",
            "set train.resample.active to fewer layers, or choose a larger region",
        )


class LayerTurns:
    """Which layers of a model's region are open, after LISA (arXiv 2403.17919): the others are as good as frozen.

    A closed layer's tensors need no gradients, so the optimizer, which holds the tensors of the whole region, neither
    updates nor decays them. Its state of them is kept until their next turn, or dropped.
    """

    def __init__(self, model: nn.Module, region: Region, section: ResampleSection, seed: int) -> None:
        """Take a model whose region is open, and leave it so until the first turn."""
        assert section.active is not None
        self.open: tuple[int, ...] = region.layers
        self._region = region.layers
        self._active = section.active
        self._section = section
        self._tensors = _tensors_by_layer(model)
        self._draws = enumerate(draws(region.layers, section.active, seed))
        self._turn = -1

    def turn_to(self, step: int, optimizer: Any) -> bool:
        """Open the layers of `step` (counted from 0), close the others, and return whether a new turn began.

        Which layers these are follows from the step and the seed alone. Steps may be left out, but not go back.
        """
        if step // self._section.every == self._turn:
            return False
        self._turn, layers = next((turn, hand) for turn, hand in self._draws if turn == step // self._section.every)
        self._open(layers)
        if self._section.state == "drop":
            self._forget(optimizer)
        return True

    def one_after_another(self) -> Iterator[tuple[int, ...]]:
        """Open the layers in rising order, as many at a time as in training, and yield which; then all of them again.

        What is done with each set so takes no more memory than a step does.
        """
        for start in range(0, len(self._region), self._active):
            self._open(self._region[start : start + self._active])
            yield self.open
        self.open_all()

    def open_all(self) -> None:
        """Open the whole region again, as it was before the first turn."""
        self._open(self._region)

    def check_gradients(self) -> None:
        """Check that after a backward pass exactly the open layers have gradients.

        Raises:
            TrainingError: an open layer has none, or a closed one has some.
        """
        reached = {layer for layer, tensors in self._tensors.items() if any(t.grad is not None for t in tensors)}
        if reached != set(self.open):
            raise TrainingError(
                f"layers {', '.join(map(str, self.open))} are open, and layers"
                f" {', '.join(map(str, sorted(reached))) or 'none'} received gradients",
                "gradients in exactly the open layers",
                "this is a fault: please report it; train without train.resample meanwhile",
            )

    def _open(self, layers: tuple[int, ...]) -> None:
        """Let exactly the tensors of `layers` take gradients, and free those of the others."""
        for layer, tensors in self._tensors.items():
            for tensor in tensors:
                tensor.requires_grad_(layer in layers)
                if layer not in layers:
                    tensor.grad = None
        self.open = layers

    def _forget(self, optimizer: Any) -> None:
        """Drop the optimizer's state of closed layers."""
        for layer, tensors in self._tensors.items():
            if layer not in self.open:
                for tensor in tensors:
                    optimizer.state.pop(tensor, None)


def resampled(section: ResampleSection, layers: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> Resampled:
    """Return the record of a training whose log lines are `rows`."""
    assert section.active is not None
    turns = Counter(layer for row in rows for layer in row[OPEN_LAYERS])
    return Resampled(
        active=section.active,
        every=section.every,
        state=section.state,
        steps_open={layer: turns[layer] for layer in layers},
    )


def _tensors_by_layer(model: nn.Module) -> dict[int, list[torch.nn.Parameter]]:
    """Return the open parameters of every decoder layer that has some."""
    anatomy = find_anatomy(model)
    found: dict[int, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer = layer_of(anatomy, name)
        if layer is not None and parameter.requires_grad:
            found.setdefault(layer, []).append(parameter)
    return found


def _shuffled(layers: Sequence[int], random: Random) -> list[int]:
    """Return the layers in a random order, by numbers that Python keeps the same over its versions."""
    keys = [random.random() for _ in layers]
    return [layer for _, layer in sorted(zip(keys, layers, strict=True))]
