"""Whether a run will have the scores that its region SPEC asks for, before anything has run."""

from __future__ import annotations

from striate.config import AnalyzeSection
from striate.errors import SpecError, did_you_mean
from striate.selectors.spec.grammar import Spec


def check_needs(spec: Spec, section: AnalyzeSection) -> None:
    """Check that `analyze`, with the settings of `section`, will make every score that `spec` names.

    Raises:
        SpecError: a scorer that will not run, or tasks that will not be scored apart.
    """
    for name in spec.score_names:
        if name.scorer not in section.scorers:
            hint = did_you_mean(name.scorer, section.scorers)
            raise SpecError(
                f"region {spec.text!r} needs scores of {name.scorer!r}, and analyze.scorers does not name it",
                ", ".join(section.scorers),
                f"{hint}add {name.scorer!r} to analyze.scorers, or choose another region",
            )
    by_task = any(name.task is not None for name in spec.score_names)
    if section.by != "task" and (by_task or (spec.params is not None and spec.params.needs_tasks)):
        raise SpecError(
            f"region {spec.text!r} needs scores by task, and analyze.by is {section.by!r}",
            "analyze.by=task, on samples that name their task",
            "use --set analyze.by=task",
        )
