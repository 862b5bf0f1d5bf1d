"""Compare two runs' scores: rank correlation by scorer, and the layers that moved most; no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from striate.artifacts import Scores
from striate.errors import ArtifactError
from striate.scores.ranking import ranks, spearman


@dataclass(frozen=True)
class Move:
    """A layer's rank by one scorer in two runs; 1 is the most important layer, and halves are shared ranks."""

    layer: int
    first: float
    second: float

    @property
    def distance(self) -> float:
        """How many ranks the layer moved."""
        return abs(self.second - self.first)


@dataclass(frozen=True)
class ScorerComparison:
    """One scorer in two runs: Spearman's rank correlation over layers, and all layers, those that moved most first."""

    scorer: str
    rank_correlation: float | None
    moves: tuple[Move, ...]


def compare_scores(first: Scores, second: Scores, task: str | None = None) -> tuple[ScorerComparison, ...]:
    """Return, for every scorer that both runs have, how far they rank the layers alike.

    Raises:
        ArtifactError: the runs are of models with different numbers of layers, or share no scorer, or one of them
            did not score `task`.
    """
    if first.num_layers != second.num_layers:
        raise ArtifactError(
            f"the first run scored {first.num_layers} layers, and the second {second.num_layers}",
            "two runs on models with as many layers",
            "compare runs of the same model, or of models of one depth",
        )
    ones = {entry.scorer: entry.values for entry in first.entries(task)}
    others = {entry.scorer: entry.values for entry in second.entries(task)}
    shared = [name for name in ones if name in others]
    if not shared:
        raise ArtifactError(
            f"the runs share no scorer: {', '.join(ones)} against {', '.join(others)}",
            "two runs with a scorer in common",
            "add one to analyze.scorers of either and run `striate analyze` again",
        )
    return tuple(_compared(name, ones[name], others[name]) for name in shared)


def shared_tasks(first: Scores, second: Scores) -> list[str]:
    """Return the tasks that both runs scored apart.

    Raises:
        ArtifactError: there are none.
    """
    shared = [task for task in first.tasks if task in second.tasks]
    if not shared:
        raise ArtifactError(
            f"the runs share no task: {', '.join(first.tasks) or 'none'} against {', '.join(second.tasks) or 'none'}",
            "two runs that scored a task in common apart",
            "run `striate analyze --by task` in both, or compare without --by task",
        )
    return shared


def _compared(scorer: str, first: Sequence[float], second: Sequence[float]) -> ScorerComparison:
    """Return one scorer's comparison; of layers that moved as far, the one nearer to the input comes first."""
    pairs = enumerate(zip(ranks(first), ranks(second), strict=True))
    moves = sorted((Move(layer, a, b) for layer, (a, b) in pairs), key=lambda move: -move.distance)
    return ScorerComparison(scorer, spearman(first, second), tuple(moves))
