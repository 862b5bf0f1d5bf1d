"""Whether every stage of a run is up to date: then there is nothing to check ahead, and no library to wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from striate.errors import ArtifactError
from striate.harness.suites import parse_suite
from striate.pipeline.preflight import labels_of
from striate.pipeline.stage_keys import StageKeys


def all_done(keys: StageKeys, *, scores: bool, blind: Sequence[str]) -> bool:
    """Return whether every stage that `striate run` would do ran on today's inputs, and its outputs are whole.

    Args:
        keys: of the run.
        scores: whether layers are scored.
        blind: the models that are asked without their pictures too.
    """
    # Of a stage whose predecessor has not run, or ran on other inputs.
    with suppress(ArtifactError):
        return all(keys.run.is_done(stage, inputs()) for stage, inputs in _stages(keys, scores, blind))
    return False


def _stages(keys: StageKeys, scores: bool, blind: Sequence[str]) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield every stage of the run, with what returns its inputs."""
    config = keys.run.config
    if scores:
        yield "analyze", keys.analyze
    yield from (("select", keys.select), ("train", keys.train))
    if config.prune.remove:
        yield "prune", keys.prune
    if config.heals:
        yield "heal", keys.heal
    suites = [parse_suite(text) for text in config.evaluate.suites]
    for label in labels_of(config):
        if config.evaluate.packs:
            yield f"evaluate:{label}", partial(keys.evaluate, label)
        for suite in suites:
            yield f"suite:{label}.{suite.slug}", partial(keys.suite, label, suite)
    for label in blind if config.evaluate.packs else ():
        yield f"floor:{label}", partial(keys.floor, label)
