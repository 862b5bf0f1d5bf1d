"""The base class of metrics: a pure scoring function with metadata that says how the model is asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from striate.artifacts import Prediction
from striate.registry import Strategy
from striate.tasks.packs.items import Item, Mark, Reply

AskingMode = Literal["generate", "choose", "next_word", "perplexity"]
ScoreFunction = Callable[[Item, Reply], Mark]
CorpusFunction = Callable[[Sequence[Item], Sequence[Reply]], list[Mark]]
DetailsFunction = Callable[[Sequence[Prediction]], dict[str, float]]


@dataclass(frozen=True)
class Metric(Strategy[ScoreFunction]):
    """One registered metric.

    Attributes:
        mode: how the model is asked. `generate`: chat prompt, greedy answer. `choose`: log-probability of every choice.
            `next_word`: plain text continued greedily by one word. `perplexity`: log-probability of a text.
        higher_is_better: False only for perplexity.
        check: returns what is wrong with an item for this metric, or an empty string.
        corpus: scores all items of a task together, for a metric that needs them all (CIDEr); else None.
        details: further figures of a task from its predictions, such as precision and yes-rate.
    """

    mode: AskingMode = "generate"
    higher_is_better: bool = True
    check: Callable[[Item], str] = lambda item: ""
    corpus: CorpusFunction | None = None
    details: DetailsFunction = lambda predictions: {}
