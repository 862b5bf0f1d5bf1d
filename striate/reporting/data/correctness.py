"""What counts as right, and which answers changed between two models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from striate.artifacts import Prediction

RIGHT = 0.5
NO_ANSWER = "perplexity"
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Example:
    """One question and every model's answer to it."""

    first: Prediction
    answers: dict[str, Prediction]

    @property
    def changed(self) -> bool:
        """Whether one model is right, by a score of at least one half, and another wrong."""
        return len({answer.score >= RIGHT for answer in self.answers.values()}) > 1


def examples_of(predictions: Mapping[str, Sequence[Prediction]]) -> list[Example]:
    """Return every question that all models answered; texts that are only read (perplexity) have no answer."""
    tables: dict[str, dict[Key, Prediction]] = {
        label: {(row.pack, row.task, row.id): row for row in rows if row.metric != NO_ANSWER}
        for label, rows in predictions.items()
    }
    if not tables:
        return []
    first = next(iter(tables.values()))
    shared = [key for key in first if all(key in other for other in tables.values())]
    return [Example(first[key], {label: other[key] for label, other in tables.items()}) for key in shared]
