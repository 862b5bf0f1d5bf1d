"""A constant step of image tokens in each layer that they skip: what the whole layer adds to them on average.

x_image' = x_image + b_l;   b_l = mean(y_l) - mean(x_l)

y_l are the image tokens' hidden states after layer l where all layers compute them, x_l those before it under the rule,
with the steps of the layers below. So under the rule, too, their mean is that of the model as it was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from striate.errors import ModelError
from striate.models.visual_token_skipping.visual_compute import VisualCompute

SHIFT_FILE = "image_shift.safetensors"
# Of each layer that has one, (D,) float32 on the CPU.
Shift = Mapping[int, Tensor]


def carried(shift: Shift, old_to_new: Mapping[int, int]) -> dict[int, Tensor]:
    """Return the steps in the numbers of a model that lost layers: those of lost layers go to the layer below."""
    moved: dict[int, Tensor] = {}
    for layer, step in sorted(shift.items()):
        below = max((old for old in old_to_new if old <= layer), default=None)
        if below is not None:
            new = old_to_new[below]
            moved[new] = moved[new] + step if new in moved else step
    return moved


def write_shift(folder: Path, shift: Shift) -> None:
    """Write the steps to a checkpoint's folder."""
    save_file({str(layer): step.contiguous() for layer, step in shift.items()}, folder / SHIFT_FILE)


def read_shift(folder: Path, compute: VisualCompute, width: int) -> Shift:
    """Return the steps in `folder`, float32 on the CPU.

    Raises:
        ModelError: no such file, a damaged one, or one of another model.
    """
    file = folder / SHIFT_FILE
    try:
        shift = {int(name): step.float() for name, step in load_file(file).items()}
    except (OSError, SafetensorError, ValueError) as error:
        raise _other_file(
            f"{folder} says that image tokens take a step in layers that they skip, and {SHIFT_FILE} can't be read"
        ) from error
    if any(step.shape != (width,) or not 0 <= layer < compute.num_layers for layer, step in shift.items()):
        raise _other_file(f"{file} is of another model than {compute.num_layers} layers of width {width}")
    return shift


def _other_file(reason: str) -> ModelError:
    """Return the error for steps that are not those of the checkpoint beside them."""
    return ModelError(reason, "the file that training wrote", f"copy {SHIFT_FILE} from where the model was trained")
