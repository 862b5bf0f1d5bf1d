"""Training the vision encoder's layers of one model type: proved, stepped, saved, read back; LoRA and in full."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from family_inputs import Batch

from striate.artifacts import Region
from striate.errors import StriateError
from striate.models.io.save import save_model
from striate.models.structure.anatomy import VISION, component_of, find_anatomy
from striate.models.structure.vision_stack import find_vision_stack
from striate.models.trainable.apply import apply_region, lora_config
from striate.models.trainable.beside import Beside, Part
from striate.models.trainable.gradient_proof import prove_trainable
from striate.models.trainable.parameter_selection import chosen_parameters

Logits = Callable[[Any, Batch], torch.Tensor]


def vision_training(model: Any, region: Region, inputs: Batch, labelled: Batch, logits_of: Logits) -> tuple[str, str]:
    """Return in which ways the encoder's layers train, `LoRA, full` at most, and why not in others."""
    cells, reasons = [], []
    for part, name in (("lora", "LoRA"), ("full", "full")):
        try:
            find_vision_stack(model)
            _trained(copy.deepcopy(model), model, region, part, inputs, labelled, logits_of)  # type: ignore[arg-type]
            cells.append(name)
        except StriateError as error:
            reasons.append(str(error).splitlines()[0])
    return ", ".join(cells) or "no", "; ".join(dict.fromkeys(reasons))


def projector_training(model: Any, region: Region) -> str:
    """Return in which ways the projector trains, `full, LoRA` at most; with LoRA the adapter holds pairs alone."""
    if not find_anatomy(model).projector_names:
        return "none"
    try:
        config = lora_config(model, region, r=2, projector="lora")
    except StriateError:
        return "full"
    assert not config.modules_to_save
    return "full, LoRA"


def _trained(
    model: Any, base: Any, region: Region, part: Part, inputs: Batch, labelled: Batch, logits_of: Logits
) -> None:
    method, beside = ("lora" if part == "lora" else "full"), Beside("full", part)
    if method == "lora":
        model = peft.get_peft_model(model, lora_config(model, region, r=2, dropout=0.0, vision=part))
    apply_region(model, region, method, vision=part)
    prove_trainable(model, region, labelled, beside)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    model(**labelled, use_cache=False).loss.backward()
    torch.optim.SGD((tensor for tensor in model.parameters() if tensor.requires_grad), lr=0.1).step()
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert moved <= chosen_parameters(model, region, beside), "a tensor outside the choice moved"
    anatomy = find_anatomy(model)
    assert any(component_of(anatomy, name) == VISION for name in moved), "the encoder did not move"
    model.zero_grad(set_to_none=True)
    expected = logits_of(model.eval(), inputs)
    assert _read_back(model, base, expected, inputs, logits_of), "it reloads to other values"


def _read_back(model: Any, base: Any, expected: torch.Tensor, inputs: Batch, logits_of: Logits) -> bool:
    """Return whether the saved model has the same tensors to the bit, and so the same logits but for rounding."""
    with TemporaryDirectory() as folder:
        save_model(model, None, Path(folder) / "tuned")
        place, adapted = Path(folder) / "tuned", hasattr(model, "peft_config")
        plain = copy.deepcopy(base) if adapted else type(base).from_pretrained(place)
        again = peft.PeftModel.from_pretrained(plain, place) if adapted else plain
    found, wanted = again.state_dict(), model.state_dict()
    same = found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    # Kernels round by where tensors lie in memory, of which some models (ovis2) make ten thousand times as much.
    return same and torch.allclose(logits_of(again.eval(), inputs), expected, rtol=1e-2, atol=5e-2)
