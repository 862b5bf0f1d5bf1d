"""A constant step of image tokens in each layer that they pass: what the whole layer adds to them on average.

x_image' = x_image + b_l;   b_l = mean(y_l) - mean(x_l)

y_l are the image tokens' hidden states after layer l where all layers compute them, x_l those before it under the rule,
with the steps of the layers below. So under the rule, too, their mean is that of the model as it was made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from striate.artifacts import Region
from striate.errors import ModelError
from striate.models.visual_token_skipping.token_indices import Places, hidden_of, with_hidden

SHIFT_FILE = "image_shift.safetensors"
# Of each layer that has one, (D,) float32.
Shift = Mapping[int, Tensor]


def take_step(step_D: Tensor, places: Callable[[], Places | None]) -> Callable[..., Any]:
    """Return a forward hook that adds the step to image tokens of a layer's output; `places` says where they are."""
    held: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def hook(_: Any, args: Any, output: Any) -> Any:
        where = places()
        if where is None:
            return None
        out = hidden_of(output)
        kind = out.dtype, out.device
        if kind not in held:
            held[kind] = step_D.to(device=out.device, dtype=out.dtype)
        return with_hidden(output, torch.addcmul(out, where.image_mask(out.dtype), held[kind]))

    return hook


def carried(shift: Shift, old_to_new: Mapping[int, int]) -> Shift:
    """Return the steps in the numbers of a model that lost layers: those of lost layers go to the layer below."""
    found: dict[int, Tensor] = {}
    for layer, step in sorted(shift.items()):
        below = max((kept for kept in old_to_new if kept <= layer), default=None)
        if below is not None:
            new = old_to_new[below]
            found[new] = found[new] + step if new in found else step
    return found


def write_shift(folder: Path, shift: Shift) -> None:
    """Write the steps beside `region.json`."""
    save_file({str(layer): step.contiguous() for layer, step in shift.items()}, folder / SHIFT_FILE)


def read_shift(folder: Path, region: Region, width: int) -> Shift:
    """Return the steps in `folder`, float32 on the CPU.

    Raises:
        ModelError: no such file, a damaged one, or one of another model.
    """
    file = folder / SHIFT_FILE
    try:
        shift = {int(name): step.float() for name, step in load_file(file).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise _other_file(
            f"{folder} says that image tokens take a step in layers that they pass, and {SHIFT_FILE} can't be read"
        ) from error
    if any(step.shape != (width,) or not 0 <= layer < region.num_layers for layer, step in shift.items()):
        raise _other_file(f"{file} is of another model than {region.num_layers} layers of width {width}")
    return shift


def _other_file(found: str) -> ModelError:
    """Return the error for steps that are not those of the checkpoint beside them."""
    return ModelError(found, "the file that training wrote", f"copy {SHIFT_FILE} from where the model was trained")
