"""What striate can do with each model type, proved on a tiny random model of it."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
import transformers
from family_compensation import compensation
from family_healing import heal_one_step
from family_inputs import Batch, make_inputs
from family_rows import ROWS, Row
from family_vision import projector_training, vision_training
from family_zoo import NUM_LAYERS, NotBuiltError, build_model

from striate.artifacts import Region
from striate.errors import StriateError
from striate.models.io.save import save_model
from striate.models.structure.anatomy import (
    DECODER_LAYER,
    VISION,
    Anatomy,
    component_of,
    find_anatomy,
    find_stack,
    layer_of,
    unwrap,
)
from striate.models.structure.families import BROKEN
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.roundtrip_check import self_test
from striate.models.trainable.apply import apply_region, chosen_parameters, lora_config
from striate.models.trainable.gradient_proof import prove_trainable

COLUMNS = ("anatomy", "full proof", "LoRA proof", "one step", "prune", "reload", "cached == uncached")
# What a family may lack and still pass; `failed` there fails it all the same.
EXTRAS = ("compensation", "healing", "vision", "projector")
REGION = Region(layers=(1, 4, 6), num_layers=NUM_LAYERS, spec="ids:1,4,6")
# One early, one middle and one late layer: the first choice that the model allows.
EARLY, MIDDLE, LATE = (1, 0, 2), (4, 3), (6, 5, 7)
YES = "yes"
RELEASE = ".".join(transformers.__version__.split(".")[:2])
# Listed by transformers beside vision-language models, but no picture goes in, or no text comes out.
NO_LVLM = frozenset({"evolla", "mistral4", "pi0"})


@dataclass
class Result:
    """What one model type showed.

    Attributes:
        model_type: the model type.
        cells: `yes`, `refused`, `broken` or `failed` by column; in the extras also other words.
        reason: why it is refused, not built, or what failed.
        removed: the decoder layers removed.
        note: the reason that other layers stay.
        parts: its anatomy.
        uncompensated: why it can't be compensated in one way or the other.
        untrained: why its vision encoder can't be trained in one way or the other.
        whole: the model before layers were removed.
    """

    model_type: str
    cells: dict[str, str] = field(default_factory=dict)
    reason: str = ""
    removed: tuple[int, ...] = ()
    note: str = ""
    parts: Anatomy | None = None
    uncompensated: str = ""
    untrained: str = ""
    whole: Any = None

    @property
    def state(self) -> str:
        """`green`, `refused`, `failed`, `not built`, `no LVLM` or `broken`: its own code fails in this transformers."""
        if not self.cells:
            return "not built"
        if self.model_type in NO_LVLM:
            return "no LVLM"
        if (self.model_type, RELEASE) in BROKEN:
            return "broken"
        values = [self.cells.get(column, "") for column in COLUMNS]
        if "failed" in self.cells.values():
            return "failed"
        return "green" if all(value == YES for value in values) else "refused"


def check(model_type: str) -> Result:
    """Return what striate can do with the model type, column by column; the first refusal or failure ends it."""
    result = Result(model_type)
    try:
        model = build_model(model_type)
    except NotBuiltError as error:
        result.reason = str(error)
        return result
    inputs: Batch = {}
    for columns, step in _STEPS:
        try:
            inputs = inputs if columns[0] == "anatomy" else inputs or make_inputs(model, ROWS.get(model_type, Row()))
            step(model, inputs, result)
        except StriateError as error:
            first = str(error).splitlines()[0]
            word = "refused" if "can't be" in first or columns[0] == "anatomy" else "failed"
            word = "broken" if (model_type, RELEASE) in BROKEN else word
            result.cells[columns[0]], result.reason = word, first
            break
        except Exception as error:
            if isinstance(error, NotBuiltError):
                return Result(model_type, reason=str(error))
            result.cells[columns[0]], result.reason = "failed", f"{type(error).__name__}: {error}".replace("\n", " ")
            break
        for column in columns:
            result.cells.setdefault(column, YES)
    result.whole = None
    return result


def with_labels(model: Any, inputs: Batch) -> Batch:
    """Return a training batch: every token that is not a picture's is to be predicted."""
    ids = inputs["decoder_input_ids"] if "decoder_input_ids" in inputs else inputs["input_ids"]
    values, counts = ids.unique(return_counts=True)
    picture = values[counts.argmax()] if counts.max() > ids.shape[0] else -1
    batch = {**inputs, "labels": ids.masked_fill(ids == picture, -100)}
    if "moe_mm_token_type_ids" in inspect.signature(type(unwrap(model)).forward).parameters:
        # It routes tokens to experts of text and of pictures, but `generate` does not make it longer.
        batch["moe_mm_token_type_ids"] = inputs["mm_token_type_ids"]
    return batch


def skipping(model: Any, layers: Sequence[int]) -> Any:
    """Return a copy in which hooks turn some layers into the identity: an independent way to leave them out."""
    twin = copy.deepcopy(model)
    stack = find_stack(twin)
    for blocks in (stack.layers, *stack.companions.values()):
        for layer in layers:
            blocks[layer].register_forward_hook(_keep_input, with_kwargs=True)
    return twin


def logits_of(model: Any, inputs: Batch) -> torch.Tensor:
    """Return the model's logits."""
    with torch.inference_mode():
        return model(**inputs, use_cache=False).logits


def _other_pictures(inputs: Batch) -> Batch:
    """Return the inputs with other pictures in place of theirs."""
    changed = {name: -value for name, value in inputs.items() if name.startswith(("pixel_values", "high_res"))}
    if "flattened_patches" in inputs:
        patches = inputs["flattened_patches"]
        changed["flattened_patches"] = torch.cat([patches[..., :2], -patches[..., 2:]], dim=-1)
    return {**inputs, **changed}


def _keep_input(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Batch, output: Any) -> Any:
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def _anatomy(model: Any, inputs: Batch, result: Result) -> None:
    result.parts = anatomy = find_anatomy(model)
    assert anatomy.num_layers == NUM_LAYERS
    modules = dict(model.named_modules())
    parameters = dict(model.named_parameters())
    layers = {name: layer_of(anatomy, name) for name in parameters}
    assert {layer for layer in layers.values() if layer is not None} == set(range(NUM_LAYERS))
    for name in (*anatomy.vision_names, *anatomy.projector_names):
        assert any(True for _ in modules[name].parameters()), f"{name} has no parameters"
    kinds = {component_of(anatomy, name) for name in parameters}
    assert {DECODER_LAYER, VISION} <= kinds
    assert all((component_of(anatomy, name) == DECODER_LAYER) == (layer is not None) for name, layer in layers.items())


def _full_proof(model: Any, inputs: Batch, result: Result) -> None:
    twin = copy.deepcopy(model)
    apply_region(twin, REGION)
    prove_trainable(twin, REGION, with_labels(twin, inputs))


def _lora_proof(model: Any, inputs: Batch, result: Result) -> None:
    twin = copy.deepcopy(model)
    wrapped = peft.get_peft_model(twin, lora_config(twin, REGION, r=2))
    apply_region(wrapped, REGION, "lora")
    prove_trainable(wrapped, REGION, with_labels(twin, inputs))
    anatomy = find_anatomy(wrapped)
    adapted = {layer_of(anatomy, name) for name, _ in wrapped.named_parameters() if ".lora_" in name}
    assert adapted == set(REGION.layers), f"adapters on {adapted}"


def _one_step(model: Any, inputs: Batch, result: Result) -> None:
    twin = copy.deepcopy(model)
    apply_region(twin, REGION)
    before = {name: tensor.detach().clone() for name, tensor in (*twin.named_parameters(), *twin.named_buffers())}
    twin(**with_labels(twin, inputs), use_cache=False).loss.backward()
    torch.optim.SGD((tensor for tensor in twin.parameters() if tensor.requires_grad), lr=0.1).step()
    after = dict((*twin.named_parameters(), *twin.named_buffers()))
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved <= chosen_parameters(twin, REGION), f"{sorted(moved - chosen_parameters(twin, REGION))} moved"
    anatomy = find_anatomy(twin)
    assert {layer_of(anatomy, name) for name in moved} - {None} == set(REGION.layers)


def _prune(model: Any, inputs: Batch, result: Result) -> None:
    refusals: list[StriateError] = []
    for early, middle, late in itertools.product(EARLY, MIDDLE, LATE):
        removed = tuple(sorted((early, middle, late)))
        try:
            remove_layers(copy.deepcopy(model), removed)
        except StriateError as error:
            refusals.append(error)
            continue
        result.removed = removed
        break
    result.note = str(refusals[0]).splitlines()[0] if refusals else ""
    if not result.removed:
        raise refusals[0]
    expected = logits_of(skipping(model, result.removed), inputs)
    before = logits_of(model, inputs)
    assert not torch.equal(before, logits_of(model, _other_pictures(inputs))), "it does not look at the picture"
    result.whole = copy.deepcopy(model)
    remove_layers(model, result.removed)
    after = logits_of(model, inputs)
    assert torch.equal(after, expected), f"{(after - expected).abs().max():.3g} from a model that skips the layers"
    assert not torch.allclose(after, before), "the removed layers do nothing"


def _reload(model: Any, inputs: Batch, result: Result) -> None:
    with TemporaryDirectory() as folder:
        save_model(model, None, Path(folder) / "small")
        test = self_test(model, Path(folder) / "small", inputs)
    assert test.max_logit_difference == 0


def _compensation(model: Any, inputs: Batch, result: Result) -> None:
    labelled = with_labels(result.whole, inputs)
    cell, result.uncompensated = compensation(result.whole, inputs, labelled, result.removed, skipping)
    result.cells["compensation"] = cell


def _healing(model: Any, inputs: Batch, result: Result) -> None:
    if find_anatomy(model).encoder_decoder:
        # `train` and `heal` say so: its decoder never sees the prompt.
        result.cells["healing"] = "no"
        return
    heal_one_step(result.whole, model, with_labels(result.whole, inputs))


def _vision(model: Any, inputs: Batch, result: Result) -> None:
    labelled = with_labels(result.whole, inputs)
    cell, result.untrained = vision_training(result.whole, REGION, inputs, labelled, logits_of)
    result.cells["vision"] = cell
    result.cells["projector"] = projector_training(result.whole, REGION)


_Step = Callable[[Any, Batch, Result], None]
_STEPS: tuple[tuple[tuple[str, ...], _Step], ...] = (
    (("anatomy",), _anatomy),
    (("full proof",), _full_proof),
    (("LoRA proof",), _lora_proof),
    (("one step",), _one_step),
    (("prune",), _prune),
    (("reload", "cached == uncached"), _reload),
    (("healing",), _healing),
    (("compensation",), _compensation),
    (("vision", "projector"), _vision),
)
