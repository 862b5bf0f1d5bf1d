"""Analyze: score every decoder layer on calibration data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from striate.artifacts import LayerScores, Scores
from striate.data.collate import Collator
from striate.data.pictures import ORDINARY, PictureLimits
from striate.data.samples import Sample
from striate.errors import ConfigError, DataError, SpecError
from striate.models.interventions.eval_mode import evaluating
from striate.models.io.image_token_count import image_tokens_counted
from striate.models.io.sane_model import check_finite
from striate.models.structure.anatomy import check_decoder_only, find_anatomy, unwrap
from striate.progress import Progress, Silent, warn
from striate.scorers import SCORERS, measure, runner_of
from striate.scorers.base import LayerScorer, check_base_named
from striate.scorers.runners.runner import Calibration
from striate.scorers.statistics.measurement import Measurement
from striate.scorers.streaming.batches import Batches, longest_first

NO_TASK = "other"


@image_tokens_counted()
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
    limits: PictureLimits = ORDINARY,
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
        limits: the largest picture that is decoded.
        progress: where to say how far it is; silent by default.

    Raises:
        SpecError: unknown scorer, or none.
        DataError: no samples, or none with tokens that a scorer needs.
        ConfigError: a scorer needs `base` and there is none, or a number that is too small.
        ModelError: not an LVLM, an encoder-decoder, one whose layers can't be scored, weights that are not finite, a
            processor that is not the model's, or too little memory.
    """
    chosen = [SCORERS.get(name) for name in dict.fromkeys(scorers)]
    _check(chosen, samples, base, pairs, batch_size)
    core, anatomy = unwrap(model), find_anatomy(model)
    check_decoder_only(anatomy)
    check_finite(core)
    progress, order = progress or Silent(), longest_first(samples)
    ordered = [samples[index] for index in order]
    batches = Batches(ordered, Collator(processor, max_length, True, limits), batch_size)
    calibration = Calibration(core, processor, anatomy, batches, Path(base) if base else None, pairs, seed)
    with evaluating(core):
        measured = measure(calibration, chosen, progress)
    rows = _rows_by_id(ordered, order)
    tasks = _rows_by_task(ordered, rows) if by == "task" else {}
    return Scores(
        num_layers=anatomy.num_layers,
        samples=len(samples),
        scorers=tuple(entry.summary(rows, seed) for entry in measured),
        tasks={task: _task_scores(task, measured, rows, seed, progress) for task, rows in tasks.items()},
    )


def check_calibration(scorers: Sequence[LayerScorer], samples: Sequence[Sample]) -> None:
    """Return if the calibration set has pictures where one of the scorers needs them.

    Raises:
        DataError: it has none.
    """
    needing = [scorer.name for scorer in scorers if scorer.needs_pictures]
    if needing and not any(sample.images for sample in samples):
        raise DataError(
            f"{needing[0]} needs image tokens, and the calibration set has none",
            "a calibration set with pictures, or scorers that need none, such as block-influence",
            "add samples with pictures to data.calibration, or choose other analyze.scorers",
        )


def _rows_by_id(ordered: Sequence[Sample], order: Sequence[int]) -> NDArray[np.intp]:
    """Return the order in which resamples go through the rows, so that intervals don't depend on the input's order."""
    return np.array(sorted(range(len(order)), key=lambda row: (ordered[row].id, order[row])), dtype=np.intp)


def _rows_by_task(samples: Sequence[Sample], rows: NDArray[np.intp]) -> dict[str, NDArray[np.intp]]:
    tasks = np.array([samples[row].task or NO_TASK for row in rows])
    return {str(task): rows[tasks == task] for task in np.unique(tasks)}


def _task_scores(
    task: str, measured: Sequence[Measurement], rows: NDArray[np.intp], seed: int, progress: Progress
) -> tuple[LayerScores, ...]:
    """Return the scores on the samples of one task, leaving out scorers that it has no tokens for."""
    entries = []
    for entry in measured:
        if entry.by_sample and entry.has_tokens(rows):
            entries.append(entry.summary(rows, seed))
        elif entry.by_sample:
            warn(progress, f"analyze: task {task!r} has no tokens that {entry.scorer.name} needs; left out there")
    return tuple(entries)


def _check(
    chosen: Sequence[LayerScorer], samples: Sequence[Sample], base: Path | str | None, pairs: int, batch_size: int
) -> None:
    if not chosen:
        raise SpecError("no scorer was named", ", ".join(SCORERS.names()), "name at least one in analyze.scorers")
    if not samples and any(runner_of(scorer).by_sample for scorer in chosen):
        raise DataError("the calibration set is empty", "one sample or more", "check data.calibration or data.train")
    if batch_size < 1:
        raise ConfigError(f"a batch of {batch_size} samples can't run", "1 or more", "set the batch size to 1 or more")
    if pairs < 2:
        raise ConfigError(f"{pairs} pairs of pictures have no interval", "2 or more", "set analyze.pairs to 2 or more")
    check_base_named(chosen, base)
    check_calibration(chosen, samples)
