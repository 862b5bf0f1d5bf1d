"""Greedy ranking: which layers the answers miss least, every candidate scored again after each cut."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from striate.artifacts import Cut, Region
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.errors import DataError, ModelError
from striate.models.interventions.eval_mode import evaluating
from striate.models.interventions.layer_replay import LayerReplay
from striate.models.io.image_token_count import image_tokens_counted
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import Anatomy, check_decoder_only, find_anatomy, unwrap
from striate.progress import Advance, Progress, Silent
from striate.scorers.streaming.answers import Answers, answer_hits, answer_losses
from striate.scorers.streaming.batches import Batches, longest_first

# What an answer token costs, from logits (N, V) and targets (N,): the lower, the better. A sample's cost is their mean.
MEASURES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "answer-loss": answer_losses,
    "answer-accuracy": lambda logits_NV, targets_N: 1 - answer_hits(logits_NV, targets_N),
}
VISUAL, TEXT = "visual", "text"


@dataclass(frozen=True)
class Question:
    """What is asked of every candidate.

    Attributes:
        measure: `answer-loss` (nats a token) or `answer-accuracy` (share of answer tokens that are not the likeliest).
        text_weight: how much samples without a picture count, from 0 to 1, where there are both kinds.
    """

    measure: str = "answer-loss"
    text_weight: float = 0.5

    def weigh(self, costs: Mapping[str, float]) -> float:
        """Return one number of the mean costs of visual and text samples; the only kind counts whole."""
        if len(costs) == 1:
            return next(iter(costs.values()))
        return (1 - self.text_weight) * costs[VISUAL] + self.text_weight * costs[TEXT]


class _Ranking:
    """Cuts one layer after the other: in each round the one whose absence costs the answers least."""

    def __init__(
        self, model: nn.Module, batches: Batches[Any, dict[str, Tensor]], question: Question, progress: Progress
    ) -> None:
        self._core, self._anatomy = unwrap(model), find_anatomy(model)
        check_decoder_only(self._anatomy)
        self._batches, self._question, self._progress = batches, question, progress

    def cuts(self, candidates: Collection[int], count: int, gone: Collection[int] = ()) -> Iterator[Cut]:
        """Yield the next `count` cuts among `candidates`, in order, in a model without the layers `gone`."""
        left, forecast = sorted(set(candidates) - set(gone)), _Forecast(self._progress, len(self._batches.samples))
        with torch.no_grad(), evaluating(self._core), LayerReplay(self._core, self._anatomy) as replay:
            replay.skip(gone)
            for number in range(count):
                rounds = [len(left) - later for later in range(count - number)]
                with forecast.watching(rounds) as advance:
                    costs = self._costs(replay, left, advance)
                cut = _cheapest(costs, left, self._question)
                replay.skip([cut.layer])
                left.remove(cut.layer)
                yield cut

    def _costs(self, replay: LayerReplay, candidates: Sequence[int], advance: Advance) -> dict[str, list[float]]:
        """Return the mean cost of a sample of each kind: as the model is, then without each candidate."""
        parts = self._batches.each(lambda batch: self._sums(replay, batch, candidates), advance)
        sums, counts = (torch.stack(column).sum(0) for column in zip(*parts, strict=True))
        kinds = {VISUAL: 0, TEXT: 1}
        return {kind: (sums[row] / counts[row]).tolist() for kind, row in kinds.items() if counts[row]}

    def _sums(
        self, replay: LayerReplay, batch: Mapping[str, Tensor], candidates: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Return one batch's costs (2, 1 + C), visual and text, summed over samples with answers, and these counted."""
        inputs = on_device(self._core, batch)
        answers = Answers.of(batch["labels"]).to(inputs["input_ids"].device)
        recording = replay.record(inputs, answers.rows, answers.columns)
        measure = MEASURES[self._question.measure]
        # A sample's answer tokens are averaged first: else long answers, such as boxes, outweigh short ones.
        tokens_B = answers.counts
        shares_N = (1 / tokens_B)[answers.rows]
        columns = [answers.per_sample(measure(recording.logits, answers.targets) * shares_N)]
        for layer in candidates:
            logits_NV = replay.patched(recording, layer, recording.calls[layer].x_in)
            columns.append(answers.per_sample(measure(logits_NV, answers.targets) * shares_N))
        sums_BC, visual_B = torch.stack(columns, 1).double(), _has_picture(batch, self._anatomy).to(columns[0].device)
        kinds_B2 = torch.stack([visual_B, ~visual_B], 1).double()
        return (kinds_B2.T @ sums_BC).cpu(), (kinds_B2.T @ (tokens_B > 0).double()).cpu()


def calibration(samples: Sequence[Sample], collator: Collator, batch_size: int) -> Batches[Any, dict[str, Tensor]]:
    """Return calibration samples as training batches, longest first.

    Raises:
        DataError: there is none.
    """
    if not samples:
        raise DataError("there are no samples to rank layers by", "one sample or more", "give calibration samples")
    return Batches([samples[index] for index in longest_first(samples)], collator, batch_size)


@image_tokens_counted()
def rank_greedily(
    model: nn.Module,
    batches: Batches[Any, dict[str, Tensor]],
    region: Region,
    remove: int,
    question: Question = Question(),
    *,
    known: Sequence[Cut] = (),
    keep: Callable[[Sequence[Cut]], None] = lambda cuts: None,
    progress: Progress | None = None,
) -> tuple[Cut, ...]:
    """Return the cuts outside `region`, in order: in each round the layer whose absence costs the answers least.

    Layers that the region gives up (`Region.removable`) go before all others, and are no cuts.

    A round is one pass of the calibration set through the layers that are left, and for each candidate the layers
    behind it, which makes about half a pass a candidate; the vision encoder runs once a batch and round. Papers: SLEB,
    arXiv 2402.09025 (loss); TALE, arXiv 2510.22767 (accuracy).

    Args:
        model: an LVLM without adapters; left as it was.
        batches: the calibration set (`calibration`).
        region: layers that stay.
        remove: how many of the others go.
        question: what is asked of each candidate.
        known: the first cuts, from an earlier call that was interrupted.
        keep: told of all cuts so far after each one.
        progress: where to say how far it is.

    Raises:
        ModelError: layers that can't be skipped one by one, a device with too little memory, or costs that are no
            numbers.
    """
    given_up = region.removable[:remove]
    count = remove - len(given_up)
    cuts = list(known[:count])
    ranking = _Ranking(model, batches, question, progress or Silent())
    for cut in ranking.cuts(region.outside, count - len(cuts), [*given_up, *(cut.layer for cut in cuts)]):
        cuts.append(cut)
        keep(cuts)
    return tuple(cuts)


class _Forecast:
    """Progress of the rounds, and once, after the first samples, how long all of them take."""

    def __init__(self, progress: Progress, samples: int) -> None:
        self._progress, self._samples, self._said = progress, samples, False

    @contextmanager
    def watching(self, rounds: Sequence[int]) -> Iterator[Advance]:
        """Yield what a round reports to; `rounds` has the number of candidates in this one and in each after it."""
        begin = time.perf_counter()
        label = f"prune: {rounds[0]} candidates, {len(rounds)} to go"
        with self._progress.track(label, self._samples) as advance:

            def report(done: int) -> None:
                if not self._said:
                    # A round costs one pass and half a pass a candidate.
                    share = sum(2 + candidates for candidates in rounds) / (2 + rounds[0])
                    minutes = (time.perf_counter() - begin) / done * self._samples * share / 60
                    self._progress.say(f"prune: ranking takes about {minutes:.1f} minutes")
                    self._said = True
                advance(done)

            yield report


def _cheapest(costs: Mapping[str, Sequence[float]], candidates: Sequence[int], question: Question) -> Cut:
    """Return the cut that costs least; of equal ones the deeper layer."""
    weighed = [
        question.weigh({kind: values[row] for kind, values in costs.items()}) for row in range(len(candidates) + 1)
    ]
    best = min(range(len(candidates)), key=lambda index: (weighed[index + 1], -candidates[index]))
    if weighed[best + 1] != weighed[best + 1]:
        raise ModelError(
            f"the {question.measure} of the calibration answers is not a number",
            "a model whose answers have finite losses",
            "check the tuned model's weights, or compute in another machine.dtype",
        )
    return Cut(
        layer=candidates[best],
        before={kind: values[0] for kind, values in costs.items()},
        after={kind: values[best + 1] for kind, values in costs.items()},
        candidates=dict(zip(candidates, weighed[1:], strict=True)),
    )


def _has_picture(batch: Mapping[str, Tensor], anatomy: Anatomy) -> Tensor:
    """Return which samples of a batch hold image tokens, shape (B,)."""
    return anatomy.image_mask(batch["input_ids"]).any(1)
