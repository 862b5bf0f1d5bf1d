"""LISA, layerwise importance sampled training (arXiv 2403.17919): a few layers of the region open at a time.

The layers that train are sampled again every so many steps (`train.resample`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle, islice
from random import Random
from typing import Any

from torch import nn

from striate.artifacts import Region, Resampled
from striate.config import ResampleSection
from striate.errors import TrainingError
from striate.models.structure.anatomy import find_anatomy, layer_of

OPEN_LAYERS = "open_layers"
"""The key under which `train_log.jsonl` has the layers that were open in a step."""


def sampled_layers(layers: Sequence[int], active: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of `active` layers without end, dealt like cards: none comes again before all have come once.

    LISA samples every set on its own, uniformly. The share of time in which a layer is open is the same here, and a
    short training leaves out no layer by chance.
    """
    random = Random(seed)
    deck: list[int] = []
    while True:
        hand = deck[:active]
        deck = deck[active:]
        if len(hand) < active:
            # A layer that is in the hand already waits in the new deck.
            fresh = _shuffled(layers, random)
            more = [layer for layer in fresh if layer not in hand][: active - len(hand)]
            hand += more
            deck = [layer for layer in fresh if layer not in more]
        yield tuple(sorted(hand))


def moving_layers(layers: Sequence[int], active: int) -> Iterator[tuple[int, ...]]:
    """Yield sets of `active` of the layers without end, evenly spread, each set one layer further than the last."""
    total = len(layers)
    # The widest gap between two of them is as many sets as it takes until every layer has been open.
    for offset in cycle(range(math.ceil(total / active))):
        yield tuple(sorted(layers[(i * total // active + offset) % total] for i in range(active)))


def turns(layers: Sequence[int], section: ResampleSection, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield without end which of the layers are open together, in the order that the section asks for."""
    assert section.active is not None
    if section.order == "moving":
        return moving_layers(layers, section.active)
    return sampled_layers(layers, section.active, seed)


def never_sampled(region: Region, section: ResampleSection, steps: int, seed: int) -> tuple[int, ...]:
    """Return the layers of `region` that are not open in any of `steps` steps."""
    if section.active is None:
        return ()
    samples = islice(turns(region.layers, section, seed), math.ceil(steps / section.every))
    return tuple(sorted(set(region.layers).difference(*samples)))


def check_lisa(region: Region, section: ResampleSection) -> None:
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


class LisaSchedule:
    """Opens the sampled layers of a model's region at each step (LISA); the closed ones are as good as frozen.

    A closed layer's tensors need no gradients, so the optimizer, which holds the tensors of the whole region, neither
    updates nor decays them. Its state of them is kept until they open again, or dropped.

    Attributes:
        open_layers: the layers that are open now.
    """

    def __init__(self, model: nn.Module, region: Region, section: ResampleSection, seed: int) -> None:
        """Take a model whose region is open, and leave it so until the first step."""
        assert section.active is not None
        self.open_layers: tuple[int, ...] = region.layers
        self._region = region.layers
        self._active = section.active
        self._section = section
        self._tensors = _tensors_by_layer(model)
        self._samples = enumerate(turns(region.layers, section, seed))
        self._period = -1

    def open_for_step(self, step: int, optimizer: Any) -> bool:
        """Open the layers of `step` (counted from 0), close the others, and return whether they were sampled anew.

        Which layers these are follows from the step and the seed alone. Steps may be left out, but not go back.
        """
        period = step // self._section.every
        if period == self._period:
            return False
        self._period, layers = next(sample for sample in self._samples if sample[0] == period)
        self._open(layers)
        if self._section.state == "drop":
            self._forget(optimizer)
        return True

    def open_each_set(self) -> Iterator[tuple[int, ...]]:
        """Open the layers in rising order, as many at a time as in training, and yield which; then all of them again.

        What is done with each set so takes no more memory than a step does.
        """
        for start in range(0, len(self._region), self._active):
            self._open(self._region[start : start + self._active])
            yield self.open_layers
        self.open_all()

    def open_all(self) -> None:
        """Open the whole region again, as it was before the first step."""
        self._open(self._region)

    def check_gradients(self) -> None:
        """Check that after a backward pass exactly the open layers have gradients.

        Raises:
            TrainingError: an open layer has none, or a closed one has some.
        """
        reached = {layer for layer, tensors in self._tensors.items() if any(t.grad is not None for t in tensors)}
        if reached != set(self.open_layers):
            raise TrainingError(
                f"layers {', '.join(map(str, self.open_layers))} are open, and layers"
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
        self.open_layers = layers

    def _forget(self, optimizer: Any) -> None:
        """Drop the optimizer's state of closed layers."""
        for layer, tensors in self._tensors.items():
            if layer not in self.open_layers:
                for tensor in tensors:
                    optimizer.state.pop(tensor, None)


def lisa_record(section: ResampleSection, layers: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> Resampled:
    """Return the record of a training whose log lines are `rows`."""
    assert section.active is not None
    steps_open = Counter(layer for row in rows for layer in row[OPEN_LAYERS])
    return Resampled(
        active=section.active,
        every=section.every,
        state=section.state,
        order=section.order,
        steps_open={layer: steps_open[layer] for layer in layers},
    )


def _tensors_by_layer(model: nn.Module) -> dict[int, list[nn.Parameter]]:
    """Return the open parameters of every decoder layer that has some."""
    anatomy = find_anatomy(model)
    tensors: dict[int, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        layer = layer_of(anatomy, name)
        if layer is not None and parameter.requires_grad:
            tensors.setdefault(layer, []).append(parameter)
    return tensors


def _shuffled(layers: Sequence[int], random: Random) -> list[int]:
    """Return the layers in a random order, by numbers that Python keeps the same over its versions."""
    keys = [random.random() for _ in layers]
    return [layer for _, layer in sorted(zip(keys, layers, strict=True))]
