"""Analyze: score every decoder layer on calibration data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from striate.artifacts import LayerScores, Scores
from striate.data.collate import Collator
from striate.data.picture_pairs import ATTRIBUTES
from striate.data.samples import Sample
from striate.errors import ConfigError, DataError, SpecError
from striate.models.interventions.eval_mode import evaluating
from striate.models.structure.anatomy import Anatomy, check_decoder_only, find_anatomy, unwrap
from striate.progress import Progress, Silent
from striate.scorers import SCORERS, scorer_of
from striate.scorers.base import LayerScorer
from striate.scorers.runners.altered import run_altered
from striate.scorers.runners.gradients import run_gradients
from striate.scorers.runners.one_pass import run_pass
from striate.scorers.runners.pairs import run_pairs
from striate.scorers.runners.weights import run_weights
from striate.scorers.statistics.score_summary import has_tokens, of_weights, summarise
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.batches import Batches
from striate.scorers.streaming.spans import Spans

NO_TASK = "other"
_WITHOUT_SAMPLES = ("weights", "weight change", "picture pairs")


def analyze(
    model: nn.Module,
    processor: Any,
    samples: Sequence[Sample],
    scorers: Sequence[str] = ("block-influence",),
    *,
    by: Literal["all", "task"] = "all",
    base: Path | str | None = None,
    pairs: int = 32,
    batch_size: int = 8,
    max_length: int = 2048,
    seed: int = 0,
    progress: Progress | None = None,
) -> Scores:
    """Return the importance of every decoder layer on `samples`, one entry a scorer, higher = keep.

    All scorers of hidden states and attention share one forward pass over the whole conversations, answers included;
    the others run only where they are named. Neither padding nor batch size nor the order of the samples changes a
    score. The model is left as it was: no hook, same training mode, same attention function, also after an exception.

    Args:
        model: an LVLM, PEFT-wrapped or not.
        processor: its processor.
        samples: the calibration set; samples without a picture add text tokens only. Scorers of weights and of made-up
            pictures need none.
        scorers: names that `striate ls scorers` lists.
        by: `task` scores the samples of each task apart as well; samples that name none are of task `other`.
        base: the folder of the untuned checkpoint, for scorers that compare with it.
        pairs: pairs of pictures for each attribute, for `token-swap`.
        batch_size: samples in one forward pass; halved where memory runs out.
        max_length: longer conversations lose text at their end.
        seed: for intervals, splits and made-up pictures.
        progress: where to say how far it is; silent by default.

    Raises:
        SpecError: unknown scorer, or none.
        DataError: no samples, or none with tokens that a scorer needs.
        ConfigError: a scorer needs `base` and there is none, or a number that is too small.
        ModelError: not an LVLM, an encoder-decoder, one whose layers can't be scored, or too little memory.
    """
    chosen = [scorer_of(name) for name in dict.fromkeys(scorers)]
    _check(chosen, samples, base, pairs, batch_size)
    core, anatomy = unwrap(model), find_anatomy(model)
    check_decoder_only(anatomy)
    order = _longest_first(samples)
    run = _Run(
        core,
        processor,
        anatomy,
        Batches([samples[index] for index in order], Collator(processor, max_length, train=True), batch_size),
        None if base is None else Path(base),
        pairs,
        seed,
        progress or Silent(),
    )
    with evaluating(core):
        found = run.everything(chosen)
    # Resamples go through the rows in this order, so that intervals don't depend on the input's order.
    rows = np.array(sorted(range(len(order)), key=lambda row: (samples[order[row]].id, order[row])), dtype=np.intp)
    tasks = [samples[order[row]].task or NO_TASK for row in rows] if by == "task" else []
    return Scores(
        num_layers=anatomy.num_layers,
        samples=len(samples),
        scorers=tuple(one.summary(rows, seed) for one in found),
        tasks={task: run.of_task(task, found, rows[np.array(tasks) == task]) for task in sorted(set(tasks))},
    )


@dataclass(frozen=True)
class _Found:
    """What a runner found for one scorer: sums per sample (or pair), or values that follow from weights alone."""

    scorer: LayerScorer
    parts: Mapping[str, PartSums]
    spans: Spans | None = None
    values: NDArray[np.float64] | None = None

    @property
    def by_sample(self) -> bool:
        """Whether rows are samples of the calibration set."""
        return self.scorer.source not in _WITHOUT_SAMPLES

    def rows(self, chosen: NDArray[np.intp]) -> dict[str, PartSums]:
        """Return the sums of the chosen rows, in their order."""
        return {part: PartSums(sums.sums[chosen], sums.counts[chosen]) for part, sums in self.parts.items()}

    def summary(self, chosen: NDArray[np.intp], seed: int) -> LayerScores:
        """Return the scores on the chosen samples; pairs and weights have no samples to choose from."""
        if self.values is not None:
            return of_weights(self.scorer.name, self.values)
        if not self.by_sample:
            return summarise(self.scorer.name, self.parts, seed, self.scorer.shown)
        spans = None if self.spans is None else self.spans[chosen]
        return summarise(self.scorer.name, self.rows(chosen), seed, self.scorer.shown, spans)


@dataclass(frozen=True)
class _Run:
    """One analysis: the model, the data, and which runner serves which scorers."""

    core: Any
    processor: Any
    anatomy: Anatomy
    batches: Batches
    base: Path | None
    pairs: int
    seed: int
    progress: Progress

    def everything(self, scorers: Sequence[LayerScorer]) -> list[_Found]:
        """Return what was found for every scorer, in the order in which they are given."""
        runners = (
            (("hidden states", "attention"), self._pass),
            (("altered layers",), self._altered),
            (("gradients",), self._gradients),
            (("weights", "weight change"), self._weights),
            (("picture pairs",), self._pairs),
        )
        found: dict[str, _Found] = {}
        for sources, runner in runners:
            served = [scorer for scorer in scorers if scorer.source in sources]
            if served:
                found |= {one.scorer.name: one for one in runner(served)}
        return [found[scorer.name] for scorer in scorers]

    def of_task(self, task: str, found: Sequence[_Found], rows: NDArray[np.intp]) -> tuple[LayerScores, ...]:
        """Return the scores on the samples of one task, leaving out scorers that it has no tokens for."""
        entries = []
        for one in found:
            if one.by_sample and has_tokens(one.rows(rows), one.scorer.shown):
                entries.append(one.summary(rows, self.seed))
            elif one.by_sample:
                self.progress.say(f"analyze: task {task!r} has no tokens that {one.scorer.name} needs; left out there")
        return tuple(entries)

    def _pass(self, scorers: Sequence[LayerScorer]) -> list[_Found]:
        """Run the one plain forward pass."""
        with self.progress.track("analyze", len(self.batches.samples)) as advance:
            passed = run_pass(self.core, self.anatomy, self.batches, scorers, advance)
        return [_Found(scorer, passed.sums[scorer.name], passed.spans.get(scorer.name)) for scorer in scorers]

    def _altered(self, scorers: Sequence[LayerScorer]) -> list[_Found]:
        """Run the scorers that skip a layer."""
        with self.progress.track("analyze: altered layers", len(self.batches.samples)) as advance:
            found = run_altered(self.core, self.anatomy, self.batches, scorers, advance)
        return [_Found(scorer, found[scorer.name]) for scorer in scorers]

    def _gradients(self, scorers: Sequence[LayerScorer]) -> list[_Found]:
        """Run the scorers that need a backward pass."""
        with self.progress.track("analyze: gradients", len(self.batches.samples)) as advance:
            found = run_gradients(self.core, self.anatomy, self.batches, scorers, advance)
        return [_Found(scorer, found[scorer.name]) for scorer in scorers]

    def _weights(self, scorers: Sequence[LayerScorer]) -> list[_Found]:
        """Run the scorers that read weights alone."""
        found = run_weights(self.core, self.anatomy, scorers, self.base)
        return [_Found(scorer, {}, values=found[scorer.name]) for scorer in scorers]

    def _pairs(self, scorers: Sequence[LayerScorer]) -> list[_Found]:
        """Run the scorers that draw pairs of pictures."""
        total = self.pairs * len(ATTRIBUTES)
        with self.progress.track("analyze: picture pairs", total) as advance:
            found = run_pairs(
                self.core, self.processor, self.anatomy, scorers, self.pairs, self.seed, advance, self.batches.size
            )
        return [_Found(scorer, found[scorer.name]) for scorer in scorers]


def _check(
    chosen: Sequence[LayerScorer], samples: Sequence[Sample], base: Path | str | None, pairs: int, batch_size: int
) -> None:
    """Raise for what a person can get wrong, before anything runs."""
    if not chosen:
        raise SpecError("no scorer was named", ", ".join(SCORERS.names()), "name at least one in analyze.scorers")
    if not samples and any(scorer.source not in _WITHOUT_SAMPLES for scorer in chosen):
        raise DataError("the calibration set is empty", "one sample or more", "check data.calibration or data.train")
    if batch_size < 1:
        raise ConfigError(f"a batch of {batch_size} samples can't run", "1 or more", "set the batch size to 1 or more")
    if pairs < 2:
        raise ConfigError(f"{pairs} pairs of pictures have no interval", "2 or more", "set analyze.pairs to 2 or more")
    needing = [scorer.name for scorer in chosen if scorer.source == "weight change"]
    if needing and base is None:
        raise ConfigError(
            f"{', '.join(needing)} compares with the untuned checkpoint, and none is named",
            "the folder of the checkpoint from which the model was tuned",
            "set analyze.base to it",
        )


def _longest_first(samples: Sequence[Sample]) -> list[int]:
    """Return an order with little padding, in which a lack of memory shows at once."""
    return sorted(
        range(len(samples)),
        key=lambda index: (len(samples[index].images), sum(len(turn.text) for turn in samples[index].messages)),
        reverse=True,
    )
