"""The state of one evaluation while it runs: batch budget, counters, and the sink of finished replies."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

from striate.artifacts import AskingFacts
from striate.data.pictures import ORDINARY, PictureLimits
from striate.tasks.packs.items import Item, Reply

MOST_PADDED = 4 / 3


@dataclass
class Budget:
    """How much runs side by side: at most `rows` rows, and at most `tokens` tokens with padding and new tokens.

    Attributes:
        rows: the most rows.
        tokens: the most tokens, rows times the longest of them.
        out_of_memory: how often it had to shrink.
        largest: the most rows that have run side by side.
    """

    rows: int
    tokens: int
    out_of_memory: int = 0
    largest: int = 0

    def fitting(self, entries: Sequence[tuple[int, int, int]]) -> int:
        """Return how many of `entries` fit side by side; one is the least.

        An entry is its length in tokens, its rows, and how many tokens of each row are read at once. A batch of a
        quarter of `rows` takes no more rows once a quarter of what it reads would be padding.
        """
        count = taken = longest = widest = read = 0
        for length, rows, width in entries:
            longest, widest = max(longest, length), max(widest, width)
            padded = widest * (taken + rows) > MOST_PADDED * (read + rows * width)
            if count and (not self.holds(taken + rows, longest) or (padded and 4 * taken >= self.rows)):
                break
            count, taken, read = count + 1, taken + rows, read + rows * width
        return count

    def holds(self, rows: int, longest: int) -> bool:
        """Return whether `rows` rows of `longest` tokens fit."""
        return rows <= self.rows and rows * max(longest, 1) <= self.tokens

    def fitted(self, rows: int) -> None:
        """Note that `rows` rows have run side by side."""
        self.largest = max(self.largest, rows)

    def shrink(self, rows: int, longest: int) -> None:
        """Keep later batches to half of one of `rows` rows and `longest` tokens that did not fit."""
        self.out_of_memory += 1
        self.tokens = max(1, min(self.tokens, rows * max(longest, 1)) // 2)


@dataclass
class AskCounts:
    """What was read and written, and what was not done twice."""

    prompt_tokens: int = 0
    shared_tokens: int = 0
    new_tokens: int = 0
    batches: int = 0
    pictures_encoded: int = 0
    pictures_reused: int = 0
    reuse: str = ""


@dataclass(frozen=True)
class AskState:
    """One call of `ask` while it runs.

    Attributes:
        budget: how much runs side by side.
        counts: what was counted so far.
        keep: gets every batch's items with their replies.
        limits: the largest picture that is decoded.
    """

    budget: Budget = field(default_factory=lambda: Budget(rows=32, tokens=16384))
    counts: AskCounts = field(default_factory=AskCounts)
    keep: Callable[[Sequence[Item], Sequence[Reply]], None] = lambda items, replies: None
    limits: PictureLimits = ORDINARY

    def stats(self, items: int, resumed: int, seconds: float) -> AskingFacts:
        """Return what is recorded of asking `items` items in `seconds`, beside `resumed` replies of an earlier call."""
        return AskingFacts(
            items=items,
            resumed=resumed,
            seconds=seconds,
            largest_batch=self.budget.largest,
            token_budget=self.budget.tokens,
            out_of_memory=self.budget.out_of_memory,
            **asdict(self.counts),
        )

    def finisher(self, items: Sequence[Item]) -> Callable[[list[int], Sequence[Reply]], None]:
        """Return a function that keeps the replies to the items at some places of `items`."""

        def finished(places: list[int], replies: Sequence[Reply]) -> None:
            self.counts.batches += 1
            self.keep([items[place] for place in places], replies)

        return finished
