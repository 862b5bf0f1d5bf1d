"""Bench: how fast models read a prompt and write an answer on this machine, and the memory that takes."""

from __future__ import annotations

import gc
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import torch
import transformers

from striate.artifacts import Bench, SpeedRatio, Spread
from striate.errors import DataError
from striate.models.io.load import Loaded
from striate.models.structure.anatomy import unwrap
from striate.progress import Progress, Silent
from striate.pruning.generation_speed import SpeedTest, speed_prompts
from striate.tasks.inference.text_tokens import context_limit

PROMPT_TOKENS = 776
"""A picture of 576 tokens and a question of 200; of models that take fewer, as many as they take."""


@dataclass(frozen=True)
class BenchSettings:
    """What every model is given.

    Attributes:
        prompt_tokens: length of a prompt, image tokens included; None: `PROMPT_TOKENS`, or what all models take.
        new_tokens: tokens to write after it.
        prompts: prompts side by side.
        repeats: rounds that count, after one that warms up.
    """

    prompt_tokens: int | None = None
    new_tokens: int = 64
    prompts: int = 1
    repeats: int = 5


def bench(
    loads: Mapping[str, Callable[[], Loaded]],
    settings: BenchSettings | None = None,
    progress: Progress | None = None,
) -> Bench:
    """Return what was measured of each model; they take turns, a round each, and all lie in memory meanwhile.

    On a CPU, where memory is known of the process alone, each model is loaded and runs once by itself before, which
    tells the memory that it takes.

    Args:
        loads: what loads each model, by its name; the first is what the others are compared with.
        settings: of prompts and rounds.
        progress: where to say how far it is.

    Raises:
        ConfigError: fewer than two new tokens.
        DataError: prompt and new tokens are more than a model takes, or the prompt is shorter than its picture.
        ModelError: a model that can't be loaded.
    """
    settings, progress = settings or BenchSettings(), progress or Silent()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    first_runs = len(loads) if len(loads) > 1 else 0
    with progress.track("bench", first_runs + settings.repeats * len(loads)) as advance:
        alone: dict[str, float | None] = {}
        for name, read in loads.items() if len(loads) > 1 else ():
            alone[name] = _peak_alone(read, settings)
            advance(1)
        tests = _tests({name: read() for name, read in loads.items()}, settings)
        for test in tests.values():
            test.warm_up()
        for _ in range(settings.repeats):
            for test in tests.values():
                test.round()
                advance(1)
    return _record(tests, alone, load)


def _peak_alone(read: Callable[[], Loaded], settings: BenchSettings) -> float | None:
    """Return the peak memory of the process with this model alone, in GiB; None on an accelerator, which tells it."""
    loaded = read()
    if unwrap(loaded.model).device.type != "cpu":
        return None
    (test,) = _tests({"": loaded}, settings).values()
    test.round()
    peak = test.record().peak_memory_gib
    del loaded, test
    gc.collect()
    return peak


def _tests(models: Mapping[str, Loaded], settings: BenchSettings) -> dict[str, SpeedTest]:
    """Return a test of each model, all with prompts of one length."""
    limit = min(context_limit(unwrap(loaded.model)) for loaded in models.values())
    length = settings.prompt_tokens or min(PROMPT_TOKENS, limit - settings.new_tokens)
    if not 0 < length <= limit - settings.new_tokens:
        raise DataError(
            f"{max(length, 0)} tokens to read and {settings.new_tokens} to write are more than a model takes",
            f"{limit} tokens together",
            "lower --prompt-tokens or --new-tokens",
        )
    tests = {
        name: SpeedTest(
            loaded.model,
            loaded.processor.tokenizer,
            speed_prompts(loaded.processor, length, settings.prompts),
            settings.new_tokens,
        )
        for name, loaded in models.items()
    }
    shortest = max(test.prompt_tokens for test in tests.values())
    if settings.prompt_tokens and shortest > length:
        raise DataError(
            f"{length} tokens to read, and a picture with the shortest question takes {shortest}",
            f"{shortest} tokens or more",
            "raise --prompt-tokens",
        )
    return tests


def _record(tests: Mapping[str, SpeedTest], alone: Mapping[str, float | None], load: float | None) -> Bench:
    first, *others = tests
    records = {name: test.record() for name, test in tests.items()}
    for name, peak in alone.items():
        if peak is not None:
            records[name] = records[name].model_copy(update={"peak_memory_gib": peak})
    return Bench(
        models=records,
        ratios={name: _ratio(tests[first], tests[name]) for name in others},
        versions={"torch": torch.__version__, "transformers": transformers.__version__},
        load=load,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _ratio(first: SpeedTest, other: SpeedTest) -> SpeedRatio:
    return SpeedRatio(
        prefill=_times(first.prefill_seconds, other.prefill_seconds),
        decode=_times(first.decode_seconds, other.decode_seconds),
    )


def _times(first: Sequence[float], other: Sequence[float]) -> Spread:
    """Return how many times as fast `other` was."""
    rounds = [one / another for one, another in zip(first, other, strict=True)]
    return Spread(median=statistics.median(first) / statistics.median(other), low=min(rounds), high=max(rounds))
