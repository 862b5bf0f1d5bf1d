"""Average normalised Levenshtein similarity of a generated answer."""

from striate.tasks.metrics.base import Metric
from striate.tasks.packs.items import Item, Mark, Reply

THRESHOLD = 0.5


def edit_distance(first: str, second: str) -> int:
    """Return the Levenshtein distance: the fewest insertions, deletions and substitutions of one character."""
    row = list(range(len(second) + 1))
    for index, left in enumerate(first, start=1):
        diagonal, row[0] = row[0], index
        for column, right in enumerate(second, start=1):
            diagonal, row[column] = row[column], min(row[column] + 1, row[column - 1] + 1, diagonal + (left != right))
    return row[-1]


def similarity(answer: str, accepted: str) -> float:
    """Return `1 - distance / longer length`, ignoring case and runs of white space; 1 for two empty strings.

    Lengths that alone keep it below `THRESHOLD` give their bound, unmeasured: an endless reply costs no time.
    """
    shorter, longer = sorted((" ".join(text.lower().split()) for text in (answer, accepted)), key=len)
    bound = len(shorter) / len(longer) if longer else 1.0
    return bound if bound < THRESHOLD or not longer else 1.0 - edit_distance(shorter, longer) / len(longer)


def score_anls(item: Item, reply: Reply) -> Mark:
    """Return the similarity to the nearest accepted answer; 0 where that is below 0.5.

    ANLS of Biten et al. 2019 (arXiv 1905.13648, equation 1). At exactly 0.5 the similarity is kept, as the
    challenge's own scoring script does. An empty answer is unparsed.
    """
    best = max(similarity(reply.text, accepted) for accepted in item.answers)
    return Mark(best if best >= THRESHOLD else 0.0, reply.text.strip(), unparsed=not reply.text.strip())


ANLS = Metric(
    name="anls",
    title="ANLS",
    summary="1 - edit distance / longer length against the nearest accepted answer; 0 below 0.5",
    function=score_anls,
    paper="https://arxiv.org/abs/1905.13648",
)
