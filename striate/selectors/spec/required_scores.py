"""Checks before a run that it will have the scores that its region SPECs name."""

from __future__ import annotations

from striate.config import BESIDE, REGION, AnalyzeSection, RunConfig, specs_of
from striate.errors import SpecError, did_you_mean
from striate.selectors.spec.grammar import Spec, parse_spec

# The SPEC of training that may need scores: a run has these before it trains.
IMAGE_ALSO = "image_also"
_OTHER_STACKS = {"heal.region": "the smaller model", "train.vision_layers": "the vision encoder"}


def check_specs(config: RunConfig, region: Spec) -> None:
    """Check that every SPEC of a run can be had: `region`, that of the region itself, and those of its training.

    Raises:
        SpecError: one that can't be read, or whose scores there will not be.
    """
    check_needs(region, config.analyze)
    for name, spec in specs_of(config.train).items():
        if name == IMAGE_ALSO:
            check_needs(parse_spec(spec), config.analyze, f"train.{name}")
        else:
            parse_unscored(f"train.{name}", spec)
    if config.heals and config.heal.region not in (REGION, BESIDE):
        parse_unscored("heal.region", config.heal.region)


def parse_unscored(name: str, spec: str) -> Spec:
    """Return the SPEC of the setting `name`, parsed and checked as far as possible without a model.

    Raises:
        SpecError: unknown strategy, an argument that it can't take, or one that needs scores.
    """
    parsed = parse_spec(spec)
    if parsed.needs_scores and name in _OTHER_STACKS:
        # A region.json of the scores is of the model as it was scored.
        raise SpecError(
            f"{name} {spec!r} needs scores, and of {_OTHER_STACKS[name]} there are none",
            "a SPEC that needs none, such as uniform:50%, bottom:8 or ids:0,4",
            f"name the layers in {name} with ids:...",
        )
    if parsed.needs_scores:
        raise SpecError(
            f"{name} {spec!r} needs scores, which training does not read",
            "a region that needs none, such as uniform:50% or bottom:8, or the path of a region.json",
            f"choose it first with `striate select --set select.region={spec}`, and give its region.json",
        )
    return parsed


def check_needs(spec: Spec, section: AnalyzeSection, setting: str = "region") -> None:
    """Check that `analyze`, with the settings of `section`, will make every score that the `spec` of a setting names.

    Raises:
        SpecError: a scorer that will not run, or tasks that will not be scored apart.
    """
    for name in spec.score_names:
        if name.scorer not in section.scorers:
            hint = did_you_mean(name.scorer, section.scorers)
            raise SpecError(
                f"{setting} {spec.text!r} needs scores of {name.scorer!r}, and analyze.scorers does not name it",
                ", ".join(section.scorers),
                f"{hint}add {name.scorer!r} to analyze.scorers, or choose other layers",
            )
    by_task = any(name.task is not None for name in spec.score_names)
    if section.by != "task" and (by_task or (spec.params is not None and spec.params.needs_tasks)):
        raise SpecError(
            f"{setting} {spec.text!r} needs scores by task, and analyze.by is {section.by!r}",
            "analyze.by=task, on samples that name their task",
            "use --set analyze.by=task",
        )
