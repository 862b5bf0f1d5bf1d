"""Forward hooks that feed scorers with the input and output of every decoder layer, summed per sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.errors import ModelError
from striate.models.interventions.attention_capture import AttentionCall, watched_attention
from striate.scorers.base import LayerScorer
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.attention_view import AttentionView, QueryGroups
from striate.scorers.streaming.groups import TokenGroups
from striate.scorers.streaming.masks import TokenMasks
from striate.scorers.streaming.spans import Spans, SpanStates
from striate.scorers.streaming.view import LayerBlock, Tally

Key = tuple[str, str]
# Half precision rounds weights and outputs of attention; other formulas are off by far more.
_CLOSE = 0.05
# Layers that scorers see together: enough to save small operations, few enough to hold little.
_BLOCK = 8


@dataclass
class _Batch:
    """What the hooks have gathered in one forward pass: per scorer and part, tallies of a few layers each."""

    groups: TokenGroups
    block: LayerBlock
    queries: QueryGroups | None = None
    spans: SpanStates | None = None
    device: torch.device | None = None
    seen: int = 0
    attended: set[int] = field(default_factory=set)
    deviations: list[Tensor] = field(default_factory=list)
    tallies: dict[Key, list[Tally]] = field(default_factory=dict)

    def add(self, scorer: LayerScorer, tallies: dict[str, Tally]) -> None:
        for part, tally in tallies.items():
            self.tallies.setdefault((scorer.name, part), []).append(tally)


class LayerStream:
    """Hooks on the decoder layers that feed scorers while the model runs; a context manager that leaves none behind.

    Only per-sample sums stay (samples x layers numbers a scorer and part), never hidden states or attention maps. Sums
    stay on the device until a batch is through, and move once.
    """

    def __init__(self, layers: nn.ModuleList, scorers: Sequence[LayerScorer]) -> None:
        """Keep the decoder `layers`, first to last, and the `scorers` of hidden states and attention."""
        self._layers = layers
        self._scorers = [scorer for scorer in scorers if scorer.source == "hidden states"]
        self._watchers = [scorer for scorer in scorers if scorer.source == "attention"]
        self._stack = ExitStack()
        self._batch: _Batch | None = None
        self._checked = False
        self._done: dict[Key, list[tuple[Tensor, Tensor]]] = {}
        self._spans: list[Tensor] = []

    def __enter__(self) -> LayerStream:
        with ExitStack() as stack:
            for index, layer in enumerate(self._layers):
                stack.enter_context(_hooked(layer, self._hook(index)))
            if self._watchers:
                stack.enter_context(watched_attention(self._layers, self._attention))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def batch(self, masks: TokenMasks) -> Iterator[None]:
        """Score the one forward pass that runs inside this context; `masks` says what its positions hold.

        Masks on the CPU save a wait for the device. Nothing of a pass that fails is kept.

        Raises:
            ModelError: a layer ran twice or not at all, its hidden states are not of shape (B, T, D), or its attention
                can't be watched.
        """
        groups = TokenGroups(masks)
        self._batch = _Batch(
            groups,
            LayerBlock(groups, frozenset(scorer.reads for scorer in self._scorers)),
            QueryGroups(groups) if self._watchers else None,
            SpanStates() if any(scorer.spans for scorer in self._scorers) else None,
        )
        try:
            yield
            self._close(self._batch)
        finally:
            self._batch = None

    def results(self, scorer: str) -> dict[str, PartSums]:
        """Return the sums of `scorer` by part, samples in the order in which they ran."""
        return {
            part: PartSums(
                torch.cat([sums_NL for sums_NL, _ in rows]).numpy().astype(np.float64),
                torch.cat([counts_N for _, counts_N in rows]).numpy().astype(np.float64),
            )
            for (name, part), rows in self._done.items()
            if name == scorer
        }

    def spans(self) -> Spans:
        """Return the angles of all spans at the last token, shape (N, L, L), see `SpanStates.angles`."""
        return torch.cat(self._spans).numpy()

    def _hook(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if self._batch is not None:
                x_in = args[0] if args else kwargs["hidden_states"]
                self._update(self._batch, index, x_in, output[0] if isinstance(output, tuple) else output)

        return hook

    def _update(self, batch: _Batch, layer: int, x_in_BTD: Tensor, x_out_BTD: Tensor) -> None:
        if layer != batch.seen:
            raise _not_plain(f"layer {layer} did not run exactly once, in order")
        masks = batch.groups.masks
        for hidden in (x_in_BTD, x_out_BTD):
            if hidden.ndim != 3 or hidden.shape[:2] != masks.attended.shape:
                expected = (*masks.attended.shape, "D")
                raise _not_plain(f"layer {layer} has hidden states of shape {tuple(hidden.shape)}, not {expected}")
        if batch.device not in (None, x_out_BTD.device):
            self._see(batch)
        batch.seen, batch.device = batch.seen + 1, x_out_BTD.device
        x_in_BTD = x_in_BTD.to(x_out_BTD.device)
        batch.block.add(x_in_BTD, x_out_BTD)
        if batch.block.size == _BLOCK:
            self._see(batch)
        if batch.spans is not None:
            batch.spans.add(x_in_BTD, x_out_BTD, batch.groups.on("last_index", x_out_BTD.device))

    def _see(self, batch: _Batch) -> None:
        if batch.block.size:
            view = batch.block.view()
            for scorer in self._scorers:
                batch.add(scorer, scorer.function(view))

    def _attention(self, layer: int, call: AttentionCall) -> None:
        batch = self._batch
        if batch is None or batch.queries is None:
            return
        view = AttentionView(call, batch.queries)
        problem = view.problem() or ("it attends twice" if layer in batch.attended else "")
        if problem:
            raise _not_watched(f"layer {layer}: {problem}")
        batch.attended.add(layer)
        if not self._checked:
            batch.deviations.append(view.deviation())
        for scorer in self._watchers:
            batch.add(scorer, scorer.function(view))

    def _close(self, batch: _Batch) -> None:
        """Move the sums of a finished forward pass off the device, once a batch."""
        if batch.seen != len(self._layers):
            raise _not_plain(f"only {batch.seen} of {len(self._layers)} layers ran")
        self._see(batch)
        if self._watchers:
            self._check_attention(batch)
        tallies = batch.tallies
        if tallies:
            device = next(iter(tallies.values()))[0].total.device
            stacked = [torch.cat([tally.total.to(device) for tally in blocks]) for blocks in tallies.values()]
            for (key, blocks), sums_LN in zip(tallies.items(), torch.stack(stacked).cpu(), strict=True):
                self._done.setdefault(key, []).append((sums_LN.T, blocks[0].tokens.cpu()))
        if batch.spans is not None:
            self._spans.append(batch.spans.angles().float().cpu())

    def _check_attention(self, batch: _Batch) -> None:
        """Raise where a layer's attention was not seen, or is not what its queries and keys say."""
        missing = [str(layer) for layer in range(len(self._layers)) if layer not in batch.attended]
        if missing:
            raise _not_watched(f"no attention over tokens was seen in layer {', '.join(missing)}")
        if batch.deviations:
            deviations = torch.stack([deviation.cpu() for deviation in batch.deviations]).tolist()
            for layer, deviation in enumerate(deviations):
                if not deviation < _CLOSE:
                    raise _not_watched(
                        f"layer {layer}: its attention is not the softmax of its queries and keys "
                        f"(outputs differ by {deviation:.0%})"
                    )
            self._checked = True


@contextmanager
def _hooked(layer: nn.Module, hook: Callable[..., None]) -> Iterator[None]:
    handle = layer.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _not_plain(problem: str) -> ModelError:
    return ModelError(
        f"this language model can't be scored layer by layer: {problem}",
        "decoder layers that run once each, in order, on hidden states of shape (batch, tokens, width)",
        "choose the region by a rule instead, for example uniform:25%",
    )


def _not_watched(problem: str) -> ModelError:
    return ModelError(
        f"this language model's attention can't be watched: {problem}",
        "decoder layers that attend once each, by softmax over the tokens of the conversation",
        "leave image-attention out; scorers of hidden states need no attention",
    )
