"""Linear layers outside the region in another form for a while; the weights themselves wait on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from striate.artifacts import Region
from striate.models.structure.anatomy import decoder_layers


@contextmanager
def swapped(
    model: nn.Module,
    region: Region,
    make: Callable[[Tensor, Tensor | None], nn.Module],
    fits: Callable[[nn.Linear], bool],
) -> Iterator[tuple[int, int]]:
    """Put `make(weight, bias)` in the place of the linear layers of all decoder layers outside `region` for a while.

    Yields how many were changed, and how many stayed because `fits` says that they don't or because they train. At the
    end every weight is back on its device, bit for bit.
    """
    changed: list[tuple[nn.Module, str, nn.Linear, torch.device]] = []
    left = 0
    try:
        for index in region.outside:
            for parent, name, linear in linear_layers(decoder_layers(model)[index]):
                if any(parameter.requires_grad for parameter in linear.parameters()) or not fits(linear):
                    left += 1
                    continue
                setattr(parent, name, make(linear.weight.data, None if linear.bias is None else linear.bias.data))
                changed.append((parent, name, linear, linear.weight.device))
                # What waits needs no room on the device.
                linear.weight.data = linear.weight.data.cpu()
        yield len(changed), left
    finally:
        for parent, name, linear, device in changed:
            linear.weight.data = linear.weight.data.to(device)
            setattr(parent, name, linear)


def linear_layers(layer: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Return the plain linear layers inside `layer`, each with its parent and its name there."""
    return [
        (module, name, child)
        for module in layer.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear
    ]
