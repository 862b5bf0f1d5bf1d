"""Checks a saved model against the one in memory: logits after a reload, and answers with and without the KV cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.func import functional_call
from transformers import PretrainedConfig

from striate.artifacts import SelfTest
from striate.errors import ModelError
from striate.models.interventions.eval_mode import evaluating
from striate.models.io.load import load_processor, load_weights
from striate.models.structure.anatomy import unwrap

NEW_TOKENS = 8
# Where PyTorch begins new memory on the CPU, in bytes.
_ALIGNMENT = 64
# Off the CPU, kernels may differ between two runs; relative to the largest logit.
_RELOAD_TOLERANCE = {torch.float32: 1e-4}
# Cached and uncached attention add in different orders; only ties within this share of the largest logit may flip.
_TIE = {torch.float32: 1e-5, torch.float64: 1e-10}
_LOW_PRECISION = 2e-2


def self_test(
    model: Any, path: Path | str, batch_inputs: Mapping[str, torch.Tensor], processor: Any | None = None
) -> SelfTest:
    """Return how the model saved at `path`, reloaded in the same dtype, compares with `model` on `batch_inputs`.

    `batch_inputs` is what the processor makes for `generate` (padded on the left). On the CPU the logits must be equal
    to the bit. Greedy answers of `NEW_TOKENS` tokens must be the same with and without the KV cache, but for
    ties within rounding. With a `processor`, the saved one must load too and read text as it does.

    Raises:
        ModelError: it does not load, or differs; the text says by how much.
    """
    core = unwrap(model)
    inputs = {key: _placed(value, core) for key, value in batch_inputs.items() if key != "labels"}
    reloaded = load_weights(path, device=core.device, dtype=core.dtype, attn_implementation=_attention(core.config))
    if processor is not None:
        _check_processor(processor, load_processor(path), path)
    with torch.inference_mode(), evaluating(model):
        difference = _logit_difference(model, reloaded, inputs, path)
        _check_answers(reloaded, inputs, path)
    return SelfTest(prompts=_rows(inputs), max_logit_difference=difference, cached_equals_uncached=True)


def _rows(inputs: Mapping[str, torch.Tensor]) -> int:
    """Return how many prompts there are; models whose main input is the picture may have no prompt of their own."""
    return next(inputs[name].shape[0] for name in ("input_ids", "decoder_input_ids", *inputs) if name in inputs)


def _attention(config: Any) -> dict[str, str]:
    parts = {name: part for name, part in vars(config).items() if isinstance(part, PretrainedConfig)}
    return {name: part._attn_implementation for name, part in {"": config, **parts}.items()}


def _logit_difference(model: Any, reloaded: Any, inputs: Mapping[str, torch.Tensor], path: Path | str) -> float:
    """Return the largest absolute difference of two models' logits, refusing more than the device explains."""
    ours = model(**inputs, use_cache=False).logits
    theirs = reloaded(**inputs, use_cache=False).logits
    if ours.shape != theirs.shape or not bool(torch.isfinite(ours).all()):
        raise _failed(path, f"logits of shape {tuple(theirs.shape)} for {tuple(ours.shape)}, or not finite")
    on_cpu = ours.device.type == "cpu"
    if on_cpu and not torch.equal(ours, theirs):
        ours, theirs = _aligned_logits(model, inputs), _aligned_logits(reloaded, inputs)
    difference = float((ours.float() - theirs.float()).abs().max())
    scale = float(ours.float().abs().max())
    allowed = 0.0 if on_cpu else scale * _RELOAD_TOLERANCE.get(ours.dtype, _LOW_PRECISION)
    if difference > allowed:
        raise _failed(path, f"its logits move by {difference:.3g} on a scale of {scale:.3g}")
    return difference


def _aligned_logits(model: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the model's logits with all its weights where new memory begins, on a boundary of `_ALIGNMENT` bytes.

    Some processors round a product by where its weights begin, which in a mapped file is anywhere.
    """
    weights = {
        name: tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
    }
    logits: torch.Tensor = functional_call(model, weights, (), {**inputs, "use_cache": False}).logits
    return logits


def _check_answers(model: Any, inputs: Mapping[str, torch.Tensor], path: Path | str) -> None:
    """Raise unless greedy answers are the same with and without the cache, up to ties within rounding."""
    cached = _answers(model, inputs, use_cache=True)
    uncached = _answers(model, inputs, use_cache=False)
    for row in range(cached.sequences.shape[0]):
        # Of a model of encoder and decoder, the sequences hold the answer alone.
        first, second = cached.sequences[row, -NEW_TOKENS:], uncached.sequences[row, -NEW_TOKENS:]
        apart = (first != second).nonzero()
        if len(apart) == 0:
            continue
        step = int(apart[0])
        logits = uncached.logits[step][row].float()
        gap = float((logits[second[step]] - logits[first[step]]).abs())
        if gap > float(logits.abs().max()) * _TIE.get(model.dtype, _LOW_PRECISION):
            raise _failed(path, f"answer {row} is another without the key-value cache, from new token {step} on")


def _answers(model: Any, inputs: Mapping[str, torch.Tensor], *, use_cache: bool) -> Any:
    return model.generate(
        **inputs,
        use_cache=use_cache,
        do_sample=False,
        num_beams=1,
        min_new_tokens=NEW_TOKENS,
        max_new_tokens=NEW_TOKENS,
        suppress_tokens=_picture_tokens(unwrap(model).config),
        return_dict_in_generate=True,
        output_logits=True,
    )


def _picture_tokens(config: Any) -> list[int] | None:
    """Return the ids that stand for pictures and video: an answer with one would ask for a missing picture."""
    kinds = ("image", "video", "vision", "visual", "boi", "eoi")
    endings = ("_token_id", "_token_index", "_token_ids")
    fields = [name for name in vars(config) if name.startswith(kinds) and name.endswith(endings)]
    values = [getattr(config, name) for name in fields]
    tokens = {token for value in values for token in (value if isinstance(value, list | tuple) else [value])}
    return sorted(token for token in tokens if isinstance(token, int)) or None


def _check_processor(ours: Any, saved: Any, path: Path | str) -> None:
    text = "What is in the picture? 12.5 %"
    if ours.tokenizer(text)["input_ids"] != saved.tokenizer(text)["input_ids"]:
        raise _failed(path, "the saved tokenizer reads text in another way")
    if getattr(ours, "chat_template", None) != getattr(saved, "chat_template", None):
        raise _failed(path, "the saved chat template is another")


def _failed(path: Path | str, what: str) -> ModelError:
    return ModelError(
        f"the model saved at {path} is not the one in memory: {what}",
        "equal logits and answers after a reload from disk",
        "do not use that folder; save again, and report it if it happens twice",
    )


def _placed(value: Any, core: Any) -> Any:
    """Return a tensor on the model's device, in its dtype where it holds fractions."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.to(core.device, core.dtype) if value.is_floating_point() else value.to(core.device)
