"""Writes an adapter with its base model, or a whole checkpoint, as one ordinary checkpoint in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from striate.errors import ModelError
from striate.models.convert.beside_weights import write_beside, write_card_beside
from striate.models.convert.legacy.legacy_sources import folder_of
from striate.models.interventions.model_rule import save_rule
from striate.models.io.adapter_folder import ADAPTER_CONFIG, base_of, base_revision_of, is_adapter
from striate.models.io.adapters import add_adapter, merged
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.load import load_processor, load_weights
from striate.models.io.model_folder import check_source
from striate.models.io.quiet import quietly
from striate.models.io.sane_model import check_finite, check_image_token, check_special_tokens
from striate.models.io.weights.adapter_merge import cannot_stream
from striate.models.io.weights.merged_shards import MergedShards, chosen_format, main_format, set_dtype
from striate.models.io.weights.safetensors_shards import parameter_count, read_shards, write_shards
from striate.models.io.weights.stored_model import check_unquantized, write_config
from striate.models.io.weights.tensor_bytes import FLOATS
from striate.models.structure.meta_model import Blueprint, blueprint
from striate.models.visual_token_skipping.rule import load_rule
from striate.storage.atomic import new_folder


@dataclass(frozen=True)
class MergedCheckpoint:
    """What was written.

    Attributes:
        base: the folder whose weights the adapter was added to; the source itself where it was whole.
        modules: how many modules the adapter changed; 0 where there was none.
        parameters: stored in all.
        dtype: of the weights, such as `bfloat16`.
        in_memory: why all weights were in memory at once; empty where they were not.
    """

    base: Path
    modules: int
    parameters: int
    dtype: str
    in_memory: str = ""


def merge_checkpoint(
    source: Path, out: Path, *, base: str | None = None, dtype: str = "auto", card: CardFacts | None = None
) -> MergedCheckpoint:
    """Return what was written to `out`: the model in `source` as an ordinary checkpoint, its adapter merged.

    Each module's weight is read, changed by PEFT's own layer in float32, rounded once and written: in memory are a few
    copies of the largest tensor, and nothing of the rest. Adapters that PEFT can't put on a model without weights, and
    checkpoints whose changed tensors transformers joins or splits, are loaded whole instead.

    Args:
        source: folder of an adapter or of a whole model.
        out: a new or empty folder.
        base: folder or hub id of the adapter's base model, in place of the one that it names.
        dtype: `bfloat16`, `float16` or `float32`; `auto` keeps 16-bit weights as they are, and makes others bfloat16.
        card: what the model card tells; None copies that of the source, if it has one.

    Raises:
        ModelError: no such model, a quantised base model, or an adapter that does not fit or can't be merged.
        ArtifactError: `out` holds files already or can't be written.
    """
    check_source(str(source))
    adapter = source if is_adapter(source) else None
    if base and adapter is None:
        raise ModelError(
            f"--base gives the base model of an adapter, and {source} holds a whole model",
            "an adapter, or no --base",
            "leave --base out, or name the adapter; of a run with --model tuned",
        )
    with quietly(True), new_folder(out) as target:
        folder = _base_folder(adapter, base) if adapter else source
        plan = blueprint(str(folder))
        processor = _processor(source, folder)
        check_unquantized(plan.model.config, folder, _advice(adapter))
        check_image_token(plan.model, processor, str(source))
        check_special_tokens(plan.model, processor, str(source))
        load_rule(plan.model, source)
        done = write_weights(plan, folder, adapter, dtype, target)
        processor.save_pretrained(target)
        save_rule(plan.model, target)
        write_beside(source, folder, target)
        facts = card and replace(card, adapter=False, merged=done.dtype if adapter else "")
        write_card_beside(source, target, facts, out.name)
    return done


def _base_folder(adapter: Path, base: str | None) -> Path:
    folder = folder_of(base, "base model") if base else _named_base(adapter)
    if is_adapter(folder):
        raise ModelError(
            f"{folder} is an adapter itself, and {adapter} names it as its base model",
            "a whole base model",
            f"merge {folder} into its own base first, and give the result with --base",
        )
    return folder


def _named_base(adapter: Path) -> Path:
    try:
        return folder_of(base_of(adapter), "base model", base_revision_of(adapter))
    except ModelError as error:
        raise ModelError(error.given, error.allowed, f"{error.next_step}; --base names another place") from error


def _processor(source: Path, folder: Path) -> Any:
    """Return the processor beside an adapter, else that of its base in `folder`, which may be another than it names."""
    try:
        return load_processor(source)
    except ModelError:
        if folder == source:
            raise
        return load_processor(folder)


def _advice(adapter: Path | None) -> str:
    if adapter is None:
        return "take the model as it was before it was quantised"
    file = adapter / ADAPTER_CONFIG
    return (
        f"give the base model as it was before it was quantised: with --base, or in base_model_name_or_path of {file}"
    )


def write_weights(plan: Blueprint, folder: Path, adapter: Path | None, dtype: str, target: Path) -> MergedCheckpoint:
    """Return what was written to `target`: config and weights of the model of `plan`, which that changes."""
    reason = cannot_stream(adapter) if adapter else ""
    if not reason:
        shards = MergedShards(plan, folder, adapter, dtype)
        reason = shards.cannot
    if adapter and reason:
        return _write_in_memory(folder, adapter, dtype, target, reason)
    groups = shards.groups()
    write_shards(target, groups)
    if shards.untied:
        plan.model.config.tie_word_embeddings = False
        plan.model.config.get_text_config().tie_word_embeddings = False
    set_dtype(plan.model.config, shards.dtype)
    write_config(plan.model, target)
    count = sum(parameter_count(group) for group in groups)
    return MergedCheckpoint(folder, shards.modules, count, _name(shards.dtype))


def _write_in_memory(folder: Path, adapter: Path, dtype: str, target: Path, reason: str) -> MergedCheckpoint:
    """Write config and weights of the whole model, loaded in float32."""
    stored = read_shards(folder)
    kind = FLOATS[chosen_format(dtype, stored) or main_format(stored)]
    wrapped = add_adapter(load_weights(folder, device=torch.device("cpu"), dtype=torch.float32), adapter)
    modules = sum(hasattr(module, "lora_A") or hasattr(module, "modules_to_save") for module in wrapped.modules())
    model: Any = merged(wrapped).to(kind)
    check_finite(model, str(adapter))
    try:
        model.save_pretrained(target)
    except SafetensorError as error:
        # The folder's own writer says it, under the name that was asked for.
        raise OSError(str(error)) from error
    count = parameter_count(read_shards(target))
    return MergedCheckpoint(folder, modules, count, _name(kind), reason)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
