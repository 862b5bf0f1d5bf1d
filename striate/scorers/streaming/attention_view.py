"""Recompute one layer's attention for some queries: the share that falls on image tokens."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from striate.models.interventions.attention_capture import AttentionCall
from striate.scorers.streaming.groups import TokenGroups
from striate.scorers.streaming.view import Tally, exact, tally

_LOGITS_AT_ONCE = 1 << 24
_PROBES = 2


class AttentionView:
    """One layer's attention call in one forward pass, and the batch that it ran on."""

    def __init__(self, call: AttentionCall, groups: TokenGroups) -> None:
        """Keep the call; `groups` are of the masks of queries that can see an image token."""
        self.call = call
        self.groups = groups

    def problem(self) -> str:
        """Return why this call can't be read as attention between the batch's tokens, or nothing."""
        rows, tokens = self.groups.masks.attended.shape
        query, key = self.call.query, self.call.key
        if query.ndim != 4 or query.shape[0] != rows or query.shape[2] != tokens:
            return f"its queries are of shape {tuple(query.shape)}, not one a token of {rows} x {tokens}"
        if key.shape[2] != tokens:
            return f"it attends to {key.shape[2]} keys, not to the {tokens} tokens"
        mask = self.call.mask
        if not (mask is None or (isinstance(mask, Tensor) and mask.ndim in (2, 4))):
            return f"its mask is a {type(mask).__name__}; load the model with attn_implementation='sdpa'"
        return ""

    @cached_property
    def image_mass(self) -> Tensor:
        """The share of each text query's attention that falls on image tokens, mean over heads, shape (B, T).

        It is 0 where a position is no text token that comes after an image token of its own sample.
        """
        queries_BQ, real_BQ = self._on("queries"), self._on("real")
        image_BS1 = self.groups.on("pictured", self.call.query.device)[:, :, None].float()
        masses = []
        for start in range(0, queries_BQ.shape[1], self._step):
            chosen_BQ = queries_BQ[:, start : start + self._step]
            masses.append((self.probabilities(chosen_BQ).mean(1) @ image_BS1)[:, :, 0])
        mass_BQ = torch.cat(masses, dim=1).masked_fill(~real_BQ, 0.0) if masses else real_BQ.float()
        empty_BT = torch.zeros(self.groups.masks.attended.shape, device=mass_BQ.device)
        return empty_BT.scatter_(1, queries_BQ, mass_BQ).to(exact(mass_BQ.device))

    def tally(self, values_BT: Tensor, *kinds: str) -> dict[str, Tally]:
        """Return the sums of `values_BT` over the queries of each kind."""
        return tally(self.groups, values_BT[None], kinds)

    def probabilities(self, chosen_BQ: Tensor) -> Tensor:
        """Return the attention of the chosen queries of each row, shape (B, H, Q, S), in float32."""
        call = self.call
        query_BHQE = call.query.gather(
            2, chosen_BQ[:, None, :, None].expand(-1, call.query.shape[1], -1, call.query.shape[3])
        )
        logits = _logits(query_BHQE.float(), self._keys) * call.scaling
        if call.softcap is not None:
            logits = torch.tanh(logits / call.softcap) * call.softcap
        for term in (call.bias, call.mask if isinstance(call.mask, Tensor) and call.mask.ndim == 4 else None):
            if term is not None:
                rows = _rows(term, chosen_BQ, logits)
                logits = logits.masked_fill_(~rows, -torch.inf) if rows.dtype is torch.bool else logits.add_(rows)
        if not (isinstance(call.mask, Tensor) and call.mask.ndim == 4):
            logits = logits.masked_fill_(~self._visible(chosen_BQ)[:, None], -torch.inf)
        if call.sinks is None:
            return logits.softmax(-1)
        sinks = call.sinks.float().view(1, -1, 1, 1)
        return logits.softmax(-1) * torch.sigmoid(logits.logsumexp(-1, keepdim=True) - sinks)

    def deviation(self) -> Tensor:
        """Return how far a few outputs are from those that `probabilities` gives, relative to the outputs' size."""
        chosen_BQ = self._on("queries")[:, -_PROBES:]
        real_BQ = self._on("real")[:, -_PROBES:]
        call = self.call
        if not chosen_BQ.shape[1]:
            return torch.zeros((), device=call.query.device)
        values = call.value.float().repeat_interleave(call.query.shape[1] // call.value.shape[1], dim=1)
        expected = (self.probabilities(chosen_BQ) @ values).transpose(1, 2)
        index = chosen_BQ[:, :, None, None].expand(-1, -1, *call.output.shape[2:])
        output = call.output.float().gather(1, index)
        apart = torch.linalg.vector_norm((output - expected).flatten(2), dim=-1)
        size = torch.linalg.vector_norm(expected.flatten(2), dim=-1).clamp_min(1e-6)
        return (apart / size).masked_fill(~real_BQ, 0.0).amax()

    def _on(self, name: str) -> Tensor:
        return self.groups.on(name, self.call.query.device)

    @cached_property
    def _keys(self) -> Tensor:
        """The keys in float32, shape (B, G, S, E)."""
        return self.call.key.float()

    @property
    def _step(self) -> int:
        """How many queries are worked on at once."""
        rows, heads, tokens, _ = self.call.query.shape
        return max(1, _LOGITS_AT_ONCE // (rows * heads * tokens))

    def _visible(self, chosen_BQ: Tensor) -> Tensor:
        """Return which keys each chosen query sees where no mask says so, shape (B, Q, S)."""
        sample_BT = self._on("sample_numbers")
        place_S = torch.arange(sample_BT.shape[1], device=chosen_BQ.device)
        back_BQS = chosen_BQ[:, :, None] - place_S
        seen_BQS = self._on("present")[:, None, :] & (
            sample_BT.gather(1, chosen_BQ)[:, :, None] == sample_BT[:, None, :]
        )
        if self.call.causal:
            seen_BQS = seen_BQS & (back_BQS >= 0)
        if self.call.window is not None:
            seen_BQS = seen_BQS & (back_BQS < self.call.window)
        return seen_BQS


class QueryGroups(TokenGroups):
    """A batch prepared for attention scorers: sums run over text tokens that come after an image token."""

    def __init__(self, whole: TokenGroups) -> None:
        """Keep the batch that `whole` describes."""
        masks = whole.masks
        super().__init__(masks.within(masks.after_image & masks.text))
        self._whole = masks

    @cached_property
    def queries(self) -> Tensor:
        """The positions of each row's queries, shape (B, Q); short rows repeat position 0."""
        return self._choice_of_queries[0]

    @cached_property
    def real(self) -> Tensor:
        """Which of `queries` are queries, shape (B, Q)."""
        return self._choice_of_queries[1]

    @cached_property
    def pictured(self) -> Tensor:
        """Which positions are image tokens, shape (B, T)."""
        return self._whole.image

    @cached_property
    def present(self) -> Tensor:
        """Which positions are no padding, shape (B, T)."""
        return self._whole.attended

    @cached_property
    def sample_numbers(self) -> Tensor:
        """The sample of each position, shape (B, T)."""
        if self._whole.sample is not None:
            return self._whole.sample
        return torch.arange(len(self.present))[:, None].expand(self.present.shape)

    @cached_property
    def _choice_of_queries(self) -> tuple[Tensor, Tensor]:
        """Positions and which of them count; the longest row's last queries stand last in every row."""
        counts_B = self.masks.attended.sum(1)
        width = int(counts_B.max())
        order_BT = self.masks.attended.int().argsort(dim=1, stable=True)
        queries_BQ = order_BT[:, order_BT.shape[1] - width :]
        real_BQ = torch.arange(width) >= width - counts_B[:, None]
        return queries_BQ.masked_fill(~real_BQ, 0), real_BQ


def _logits(query_BHQE: Tensor, key_BGSE: Tensor) -> Tensor:
    """Return inner products, shape (B, H, Q, S); neighbouring query heads share a key head."""
    rows, heads, count, width = query_BHQE.shape
    shared = key_BGSE.shape[1]
    folded = query_BHQE.reshape(rows, shared, heads // shared * count, width)
    return (folded @ key_BGSE.mT).view(rows, heads, count, key_BGSE.shape[2])


def _rows(term: Tensor, chosen_BQ: Tensor, logits: Tensor) -> Tensor:
    """Return the rows of a mask or bias (1 or B, 1 or H, T, S) that belong to the chosen queries."""
    keys = logits.shape[-1]
    wide = term[..., :keys].expand(len(chosen_BQ), -1, -1, -1)
    index: Any = chosen_BQ[:, None, :, None].expand(-1, wide.shape[1], -1, keys)
    return wide.gather(2, index)
