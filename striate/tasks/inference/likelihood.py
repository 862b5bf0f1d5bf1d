"""Log-likelihood of choices and of whole texts, without materializing all logits."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from striate.errors import DataError
from striate.models.interventions.kv_cache_names import cache_of, model_cache_name
from striate.models.interventions.prefix_cache import last_logits_only
from striate.models.structure.anatomy import unwrap
from striate.tasks.inference.prompts import joined, plain_context
from striate.tasks.inference.run_state import AskState
from striate.tasks.inference.text_tokens import ScoredText, check_length, context_limit, encode
from striate.tasks.inference.token_batches import padded, run_in_batches
from striate.tasks.packs.items import Item, Reply

LOGITS_AT_ONCE = 2048


def choice_replies(model: Any, tokenizer: Any, items: Sequence[Item], state: AskState) -> list[Reply]:
    """Return, for every item, the summed log-probability (nats) and token count of each choice after its context.

    The tokens that all choices of an item share at the start (its context) pass through the model once; the choices
    then continue from that cache. Each choice is a row of the budget.

    Raises:
        DataError: an item that is longer than the model's context.
    """
    limit = context_limit(unwrap(model))
    options = [choice_texts(tokenizer, item, limit) for item in items]

    def choose(batch: list[list[ScoredText]]) -> list[Reply]:
        state.counts.prompt_tokens += sum(len(option.tokens) for group in batch for option in group)
        state.counts.shared_tokens += sum((len(group) - 1) * _shared_length(group) for group in batch)
        return _choose(model, batch)

    return run_in_batches(
        options,
        choose,
        length=lambda group: max(len(option.tokens) for option in group),
        rows=len,
        budget=state.budget,
        finished=state.finisher(items),
    )


def text_replies(model: Any, tokenizer: Any, items: Sequence[Item], state: AskState) -> list[Reply]:
    """Return the summed log-probability (nats) and token count of every item's text.

    A text longer than the model's context is cut into pieces of that length, each on its own. The first token of a
    piece is not scored unless the tokenizer puts a start token before it.

    Raises:
        DataError: a text with no token to score.
    """
    limit = context_limit(unwrap(model))
    pieces = [(index, piece) for index, item in enumerate(items) for piece in text_pieces(tokenizer, item, limit)]
    finish = state.finisher(items)
    pending = [0] * len(items)
    for index, _ in pieces:
        pending[index] += 1
    totals, counts = [0.0] * len(items), [0] * len(items)

    def read(batch: list[tuple[int, ScoredText]]) -> list[float]:
        state.counts.prompt_tokens += sum(len(piece.tokens) for _, piece in batch)
        return _text_logprobs(model, [piece for _, piece in batch])

    def finished(places: list[int], sums: list[float]) -> None:
        done = []
        for place, total in zip(places, sums, strict=True):
            index, piece = pieces[place]
            totals[index] += total
            counts[index] += piece.scored
            pending[index] -= 1
            if not pending[index]:
                done.append(index)
        finish(done, [reply(index) for index in done])

    def reply(index: int) -> Reply:
        return Reply(logprobs=(totals[index],), tokens=(counts[index],))

    run_in_batches(
        pieces,
        read,
        length=lambda entry: len(entry[1].tokens),
        rows=lambda entry: 1,
        budget=state.budget,
        finished=finished,
    )
    return [reply(index) for index in range(len(items))]


def choice_texts(tokenizer: Any, item: Item, limit: int) -> list[ScoredText]:
    """Return the item's context with each of its choices, as tokens.

    Raises:
        DataError: one of them is longer than `limit` tokens, or has none of its own.
    """
    context = plain_context(item)
    options = [encode(tokenizer, joined(context, choice), len(context)) for choice in item.choices]
    for option, choice in zip(options, item.choices, strict=True):
        check_length(len(option.tokens), limit, item.id)
        if option.scored < 1:
            raise DataError(
                f"item {item.id!r}: choice {choice!r} has no token of its own", "choices with text", "fix that item"
            )
    if _shared_length(options) < 1:
        raise DataError(f"item {item.id!r}: its context is too short", "a context of a word or more", "fix that item")
    return options


def text_pieces(tokenizer: Any, item: Item, limit: int) -> list[ScoredText]:
    """Return the item's text in pieces of at most `limit` tokens that have something to score.

    Raises:
        DataError: it has no token to score.
    """
    whole = encode(tokenizer, item.text, 0)
    pieces = [
        ScoredText(whole.tokens[begin : begin + limit], max(whole.start - begin, 1))
        for begin in range(0, len(whole.tokens), limit)
    ]
    pieces = [piece for piece in pieces if piece.scored > 0]
    if not pieces:
        raise DataError(f"item {item.id!r}: its text is too short", "a text of two tokens or more", "remove that item")
    return pieces


def _choose(model: Any, groups: Sequence[Sequence[ScoredText]]) -> list[Reply]:
    """Return the replies of a batch of items: one pass over the shared starts, one over what is left of the choices."""
    shared = [_shared_length(group) for group in groups]
    starts, mask_BT = padded(
        [group[0].tokens[:length] for group, length in zip(groups, shared, strict=True)], 0, "left", model.device
    )
    output = model(
        input_ids=starts,
        attention_mask=mask_BT,
        position_ids=(mask_BT.cumsum(-1) - 1).clamp(min=0),
        use_cache=True,
        **last_logits_only(model),
    )
    owner = [index for index, group in enumerate(groups) for _ in group]
    tails = [option.tokens[shared[index] :] for index, group in enumerate(groups) for option in group]
    logprobs_RT = _tail_logprobs(model, output, mask_BT, torch.tensor(owner, device=model.device), tails)
    replies, row = [], 0
    for group, length in zip(groups, shared, strict=True):
        sums = [
            sum(logprobs_RT[row + place][option.start - length : len(option.tokens) - length])
            for place, option in enumerate(group)
        ]
        replies.append(Reply(logprobs=tuple(sums), tokens=tuple(option.scored for option in group)))
        row += len(group)
    return replies


def _shared_length(group: Sequence[ScoredText]) -> int:
    """Return how many tokens all choices of an item share before the first scored one."""
    columns = zip(*(option.tokens for option in group), strict=False)
    common = next((index for index, column in enumerate(columns) if len(set(column)) > 1), len(group[0].tokens))
    return min(common, *(option.start for option in group))


def _tail_logprobs(
    model: Any, output: Any, mask_BT: Tensor, owner_R: Tensor, tails: Sequence[Sequence[int]]
) -> list[list[float]]:
    """Return the log-probability of every token of every tail, given the shared start of its owner."""
    targets_RT, tail_mask_RT = padded(tails, 0, "right", owner_R.device)
    first_R1 = _token_logprobs(output.logits[:, -1:][owner_R], targets_RT[:, :1])
    if targets_RT.shape[1] == 1:
        return first_R1.tolist()
    cache = cache_of(output)
    cache.batch_select_indices(owner_R)
    mask_RT = mask_BT[owner_R]
    steps = torch.arange(targets_RT.shape[1] - 1, device=owner_R.device)
    logits_RTV = model(
        input_ids=targets_RT[:, :-1],
        attention_mask=torch.cat([mask_RT, tail_mask_RT[:, :-1]], dim=1),
        position_ids=mask_RT.sum(-1, keepdim=True) + steps,
        **{model_cache_name(model): cache},
        use_cache=True,
    ).logits
    return torch.cat([first_R1, _token_logprobs(logits_RTV, targets_RT[:, 1:])], dim=1).tolist()


def _text_logprobs(model: Any, pieces: Sequence[ScoredText]) -> list[float]:
    """Return each piece's summed log-probability; logits exist for `LOGITS_AT_ONCE` tokens of the batch at a time."""
    ids_BT, mask_BT = padded([piece.tokens for piece in pieces], 0, "right", model.device)
    starts_B1 = torch.tensor([[piece.start] for piece in pieces], device=model.device)
    places_T = torch.arange(ids_BT.shape[1], device=model.device)
    scored_BT = (places_T >= starts_B1) & mask_BT.bool()
    step = max(1, LOGITS_AT_ONCE // len(pieces))
    totals_B = torch.zeros(len(pieces), dtype=torch.float64, device="cpu")
    cache = None
    for begin in range(0, ids_BT.shape[1] - 1, step):
        end = min(begin + step, ids_BT.shape[1] - 1)
        output = model(
            input_ids=ids_BT[:, begin:end],
            attention_mask=mask_BT[:, :end],
            position_ids=places_T[begin:end].expand(len(pieces), -1),
            **{model_cache_name(model): cache},
            use_cache=True,
        )
        cache = cache_of(output)
        logprobs_BT = _token_logprobs(output.logits, ids_BT[:, begin + 1 : end + 1])
        totals_B += (logprobs_BT * scored_BT[:, begin + 1 : end + 1]).sum(-1).cpu().double()
    return totals_B.tolist()


def _token_logprobs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """Return the log-probability (B, T) of each target, in float32."""
    logits_BTV = logits_BTV.float()
    chosen_BT = logits_BTV.gather(-1, targets_BT.unsqueeze(-1)).squeeze(-1)
    return chosen_BT - logits_BTV.logsumexp(-1)
