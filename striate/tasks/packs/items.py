"""Data classes of evaluation: test items and packs, replies, and marks. No torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Compare = Literal["sum", "mean", "characters"]


@dataclass(frozen=True)
class Item:
    """One test item; which fields are filled depends on its metric.

    Attributes:
        id: name of the item, unique within its pack.
        pack: name of the pack's folder.
        task: the task it counts for.
        metric: name of a registered metric.
        question: what to ask (with the chat template for answers that are generated).
        image: the picture that goes with the question, if any.
        answers: every accepted answer (generated answers; `last_word` has one).
        choices: the possible answers, where there are some.
        answer_index: which of `choices` is right (`choice_logprob`).
        context: text that a choice or the next word continues.
        text: text whose perplexity is measured.
        compare: `choice_logprob` only: compare log-probabilities by their `sum`, their `mean` a token, or their sum a
            character (`characters`).
        more_images: further pictures of the same question, in the order of its placeholders.
        size: width and height of the picture in pixels, where boxes are given in pixels.
    """

    id: str
    pack: str
    task: str
    metric: str
    question: str = ""
    image: Path | None = None
    answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    answer_index: int | None = None
    context: str = ""
    text: str = ""
    compare: Compare = "mean"
    more_images: tuple[Path, ...] = ()
    size: tuple[int, int] | None = None

    @property
    def images(self) -> tuple[Path, ...]:
        """All pictures of the item, in order."""
        return () if self.image is None else (self.image, *self.more_images)


@dataclass(frozen=True)
class Pack:
    """A named folder of test items."""

    name: str
    path: Path
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Reply:
    """What a model gave back for one item, before scoring.

    Attributes:
        text: decoded new tokens (modes `generate` and `next_word`).
        logprobs: summed log-probability in nats, one a choice; or one value, of the whole text (mode `perplexity`).
        tokens: how many tokens each sum covers.
    """

    text: str = ""
    logprobs: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Mark:
    """The score of one reply: 0 to 1, or nats a token; `weight` is its share of the task's mean."""

    score: float
    answer: str
    weight: float = 1.0
    unparsed: bool = False
