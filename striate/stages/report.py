"""Report: write one self-contained HTML page about a run folder."""

from pathlib import Path

from striate.artifacts import Region, Scores
from striate.errors import StriateError
from striate.reporting.data.run_artifacts import RunArtifacts, gather
from striate.reporting.html.page import draw_page
from striate.selectors.spec.grammar import resolve
from striate.storage.atomic import write_text

RULES = ("uniform", "bottom", "middle", "top", "hybrid")


def report(run: Path, out: Path | None = None) -> Path:
    """Return the path of the page written about the run folder `run`: `out`, or `report.html` in it.

    The page is one file without network requests. Artifacts that are missing are named as not run yet. The same
    artifacts give the same bytes.

    Raises:
        ArtifactError: no such folder, nothing of striate in it, a damaged artifact, or no room to write.
    """
    run = Path(run)
    target = Path(out) if out else run / "report.html"
    artifacts = gather(run)
    write_text(target, draw_page(artifacts, side_by_side(artifacts)))
    return target


def side_by_side(artifacts: RunArtifacts) -> list[Region]:
    """Return the regions of other strategies with as many layers as the run's own, which comes first;
    one that equals it is not repeated.

    Without a region they have a quarter of the layers; without scores there is nothing to hold rules against, and the
    list is empty. Strategies that can't choose so few layers, or not from these scores, are left out.
    """
    if not artifacts.scores:
        return []
    own = [artifacts.region] if artifacts.region and artifacts.region.layers else []
    size = len(own[0]) if own else max(1, round(artifacts.scores.num_layers / 4))
    regions = [region for spec in _specs(artifacts.scores, size) if (region := _resolved(spec, artifacts.scores))]
    return own + [region for region in regions if region.layers not in {chosen.layers for chosen in own}]


def _specs(scores: Scores, size: int) -> list[str]:
    return [
        *(f"{rule}:{size}" for rule in RULES),
        f"random:{size}@seed0",
        *(f"scores:{entry.scorer}:{size}" for entry in scores.scorers),
    ]


def _resolved(spec: str, scores: Scores) -> Region | None:
    try:
        return resolve(spec, scores.num_layers, scores)
    except StriateError:
        return None
