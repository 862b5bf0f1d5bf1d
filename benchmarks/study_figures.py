"""The figures of the region study: what each arm keeps of all layers, and the words on the claims (docs/study.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from study_arms import UNIFORM, Arm, Study, rate_of
from study_bars import SEEDS, less_kept, nearly_all_kept, paper_kept, text_kept, would
from study_comparisons import Comparisons

from striate.artifacts import Difference, Region
from striate.pipeline.sweeps.table import of_seeds
from striate.selectors.spec.size import read_size
from striate.wording import PERPLEXITY, plural

_BLOCKS = ("bottom", "middle", "top", "hybrid", "random")
_SCORED = ("scores", "spaced", "coverage")


class Figures:
    """All that is told of a study, as JSON has it: scores and shares in %, differences in points."""

    def __init__(self, study: Study) -> None:
        """Read which tasks count.

        Raises:
            ArtifactError: no run of all layers is done, or none was asked without its pictures.
        """
        self.study, self.over = study, Comparisons(study)
        self.whole = self.over.whole

    def told(self) -> dict[str, Any]:
        """Return everything."""
        arms = self.study.arms.values()
        return {
            "sweep": self.study.folder.resolve().name,
            "chosen_by": self.study.record.chosen_by,
            "tasks": self.over.tasks,
            "arms": [self.arm(arm) for arm in arms],
            "rates": [self.rates(arm) for arm in arms],
            "one_rate": self.one_rate(),
            "left_out": self.study.left_out(),
        }

    def arm(self, arm: Arm) -> dict[str, Any]:
        """Return an arm at its own best rate: its scores, what it keeps of all layers, and the words on the claims."""
        region, rows = self.study.region(arm.best), self.over.rows(of_seeds(self.whole.chosen, arm.chosen), arm.chosen)
        visual, text = rows.get("visual"), rows.get("text")
        uniform = self.study.arms.get(UNIFORM)
        against = (
            self.over.rows(of_seeds(uniform.chosen, arm.chosen), arm.chosen).get("visual")
            if uniform and arm is not uniform
            else None
        )
        spread = self.over.spread_of_difference(uniform, arm) if uniform and against else None
        return {
            "arm": arm.name,
            "layers": len(region),
            "rate": rate_of(arm.best),
            "edge": arm.edge,
            "held_out": self.study.measured(arm.best),
            "seeds": [run.seed for run in arm.chosen],
            "before_it_counts": _before_it_counts(arm),
            "visual": self.over.scores(arm.chosen, "visual"),
            "visual_kept": _kept(visual),
            "above_floor": _kept(visual.kept_above_floor if visual else None),
            "text": self.over.scores(arm.chosen, "text"),
            "text_kept": _kept(text),
            "text_difference": _difference(text) if text else None,
            "perplexity": [_nats(row) for row in _perplexities(rows)],
            "against_uniform": {**_difference(against), "sd": spread} if against else None,
            "words": {} if arm is self.whole else _words(region, rows, less_kept(against, spread)),
        }

    def rates(self, arm: Arm) -> dict[str, Any]:
        """Return the scores of an arm at every rate that is done, with the one seed that chooses."""
        runs = [run for run in arm.asked if run in arm.tried]
        scores = [
            {
                "rate": rate_of(run),
                "visual": self.over.scores([run], "visual"),
                "text": self.over.scores([run], "text"),
                "held_out": self.study.measured(run),
            }
            for run in runs
        ]
        return {"arm": arm.name, "best": rate_of(arm.best), "seed": arm.best.seed, "scores": scores}

    def one_rate(self) -> dict[str, Any]:
        """Return what would be told of claim 1 if `uniform:25%` had the rate of all layers, over the seeds of both."""
        rate, uniform = rate_of(self.whole.best), self.study.arms.get(UNIFORM)
        same = self.study.done_at(uniform, rate) if uniform else []
        seeds = {run.seed for run in same} & {run.seed for run in self.whole.chosen}
        if not seeds:
            return {"rate": rate, "seeds": [], "claim_1": ""}
        base, other = ([run for run in runs if run.seed in seeds] for runs in (self.whole.chosen, same))
        visual = self.over.rows(base, other).get("visual")
        kept = {"kept": _kept(visual), "above_floor": _kept(visual.kept_above_floor if visual else None)}
        return {"rate": rate, "seeds": sorted(seeds), **kept, "claim_1": nearly_all_kept(visual)}


def _words(region: Region, rows: dict[str, Difference], less: str) -> dict[str, str]:
    """Return the words on the claims, by claim; `less` is the one on whether less is kept than of `uniform:25%`."""
    found = {"4": text_kept(rows.get("text"), _perplexities(rows))}
    if not _is_quarter(region):
        word = paper_kept(rows.get("visual"), len(region), region.num_layers) if region.selector == "uniform" else ""
        return {**({"2": word} if word else {}), **found}
    word = nearly_all_kept(rows.get("visual"))
    claim = "3a" if region.selector in _BLOCKS else "3b" if region.selector in _SCORED else ""
    return {"1": word if region.selector == "uniform" else would(word), **({claim: less} if claim else {}), **found}


def _is_quarter(region: Region) -> bool:
    return len(region) == read_size("25%").of(region.num_layers)


def _before_it_counts(arm: Arm) -> list[str]:
    """Return what docs/study.md asks for before a verdict on an arm counts, and is not there."""
    few = [f"{plural(len(arm.chosen), 'seed')} of {SEEDS}"] if len(arm.chosen) < SEEDS else []
    edge = [f"the best rate is the {arm.edge} that was tried"] if arm.edge else []
    waiting = [f"{plural(arm.waiting, 'rate')} of {len(arm.asked)} not done"] if arm.waiting else []
    return [*few, *edge, *waiting]


def _perplexities(rows: dict[str, Difference]) -> Sequence[Difference]:
    return [row for row in rows.values() if row.metric == PERPLEXITY]


def _kept(row: Difference | None) -> dict[str, Any] | None:
    """Return what is kept, with its interval, or why there is none."""
    if row is None:
        return None
    ends = {"low": row.retention_low, "high": row.retention_high, "no_interval": row.no_interval}
    return {"kept": row.retention, **ends, "items": row.n, "pictures": row.clusters}


def _difference(row: Difference) -> dict[str, Any]:
    """Return a difference in points, with its interval."""
    ends = {name: None if end is None else 100 * end for name, end in (("low", row.low), ("high", row.high))}
    return {"points": 100 * row.difference, **ends, "no_interval": row.no_interval}


def _nats(row: Difference) -> dict[str, Any]:
    """Return the change of perplexity in nats a token, with its interval."""
    return {"task": f"{row.pack}/{row.task}", "nats": row.difference, "low": row.low, "high": row.high}
