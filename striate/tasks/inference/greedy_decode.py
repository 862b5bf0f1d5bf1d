"""Greedy decoding with a KV cache: shared prefixes are prefilled once, ended rows leave the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.models.interventions.kv_cache_names import cache_of, model_cache_name
from striate.models.interventions.prefix_cache import last_logits_only, select_rows
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import unwrap
from striate.tasks.inference.prompt_windows import Prompt
from striate.tasks.inference.token_batches import padded

LEAVING = 8
STEPS_UNSEEN = 4


@dataclass
class Rows:
    """Rows that are being continued: their next token's logits, their KV cache, and its mask.

    Attributes:
        logits: of the next token of every row, (R, V).
        cache: keys and values of all tokens so far.
        mask: which of them are no padding, (R, T).
    """

    logits: Tensor
    cache: Any
    mask: Tensor


def prefill_whole(model: Any, collator: Collator, prompts: Sequence[Prompt]) -> Rows:
    """Return the rows of whole prompts after one prefill."""
    inputs = on_device(model, collator.join_prompts([prompt.encoded for prompt in prompts]))
    mask = inputs["attention_mask"]
    output = model(**inputs, position_ids=_positions(mask), use_cache=True, **last_logits_only(model))
    return Rows(output.logits[:, -1], cache_of(output), mask)


def prefill_shared(model: Any, collator: Collator, prompts: Sequence[Prompt]) -> Rows:
    """Return the rows of prompts, equal prefixes read once: one prefill of the prefixes, one of what follows.

    Every prompt has a prefix and at least one token after it.
    """
    firsts = {prompt.prefix: prompt for prompt in prompts}
    prefixes = list(firsts)
    inputs = on_device(model, collator.join_prompts([_cut(prompt, prompt.prefix_length) for prompt in firsts.values()]))
    mask = inputs["attention_mask"]
    output = model(**inputs, position_ids=_positions(mask), use_cache=True, **last_logits_only(model))
    cache = cache_of(output)
    owner_R = torch.tensor([prefixes.index(prompt.prefix) for prompt in prompts], device=mask.device)
    select_rows(cache, owner_R)
    rests = [prompt.ids[prompt.prefix_length :] for prompt in prompts]
    ids_RT, rest_RT = padded(rests, int(inputs["input_ids"][0, 0]), "left", mask.device)
    mask_RT = torch.cat([mask[owner_R], rest_RT], dim=1)
    output = model(
        input_ids=ids_RT,
        attention_mask=mask_RT,
        position_ids=_positions(mask_RT)[:, -ids_RT.shape[1] :],
        **{model_cache_name(model): cache},
        use_cache=True,
        **last_logits_only(model),
    )
    return Rows(output.logits[:, -1], cache_of(output), mask_RT)


def decode(model: Any, rows: Rows, ends: Sequence[int], limit: int) -> list[list[int]]:
    """Return each row's greedy tokens, up to and without the first of `ends`, `limit` at most.

    Rows that have ended leave the batch as soon as they are one in eight. On an accelerator the ends are looked at only
    every fourth step, since looking waits for the device.
    """
    device = rows.mask.device
    count = rows.mask.shape[0]
    end_E = torch.tensor(list(ends), device=device, dtype=torch.long)
    written = torch.full((count, limit), -1, dtype=torch.long, device=device)
    row_A = torch.arange(count, device=device)
    ended_A = torch.zeros(count, dtype=torch.bool, device=device)
    position_A = rows.mask.sum(-1)
    mask, logits = rows.mask, rows.logits
    cached = {model_cache_name(model): rows.cache}
    unseen = 1 if device.type == "cpu" else STEPS_UNSEEN
    for step in range(limit):
        next_A = logits.float().argmax(-1)
        written[row_A, step] = next_A
        ended_A = ended_A | torch.isin(next_A, end_E)
        if step == limit - 1:
            break
        if (step + 1) % unseen == 0:
            left = (~ended_A).nonzero()[:, 0]
            if not len(left):
                break
            if (len(ended_A) - len(left)) * LEAVING >= len(ended_A):
                row_A, next_A, position_A, mask = row_A[left], next_A[left], position_A[left], mask[left]
                ended_A = ended_A[left]
                select_rows(rows.cache, left)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        output = model(
            input_ids=next_A[:, None],
            attention_mask=mask,
            position_ids=position_A[:, None],
            **cached,
            use_cache=True,
        )
        logits, position_A = output.logits[:, -1], position_A + 1
    return [before_end(row, {*ends, -1}) for row in written.tolist()]


def shared_equals_whole(model: Any, collator: Collator, prompts: Sequence[Prompt]) -> bool:
    """Return whether prompts with shared prefixes continue as the same prompts read whole, to rounding.

    Compared are the logits of the next token, and those of one more after it. The tolerance is 0.1% of their range in
    float32, and 5% in half precision.
    """
    tolerance = 1e-3 if unwrap(model).dtype == torch.float32 else 0.05
    logits: list[Tensor] = []
    for prefill in (prefill_whole, prefill_shared):
        rows = prefill(model, collator, prompts)
        token_R = logits[0].argmax(-1) if logits else rows.logits.argmax(-1)
        after = model(
            input_ids=token_R[:, None],
            attention_mask=torch.cat([rows.mask, rows.mask.new_ones(len(token_R), 1)], dim=1),
            position_ids=rows.mask.sum(-1)[:, None],
            **{model_cache_name(model): rows.cache},
            use_cache=True,
        ).logits[:, -1]
        logits += [rows.logits.float(), after.float()]
    return all(
        bool((whole - shared).abs().max() <= tolerance * (whole.max() - whole.min()))
        for whole, shared in ((logits[0], logits[2]), (logits[1], logits[3]))
    )


def _positions(mask: Tensor) -> Tensor:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _cut(prompt: Prompt, length: int) -> Encoded:
    tokens = {name: value[:, :length] for name, value in prompt.encoded.tokens.items()}
    return Encoded(tokens, prompt.encoded.pictures)


def before_end(row: list[int], ends: set[int]) -> list[int]:
    """Return the tokens before the first of `ends`."""
    return row[: next((index for index, token in enumerate(row) if token in ends), len(row))]
