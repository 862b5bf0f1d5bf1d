"""The prompts that LLaVA-1.5's evaluation made standard (Liu et al. 2023, arXiv 2310.03744, table 9 and scripts)."""

from string import ascii_uppercase

from striate.data.rows import Row
from striate.printable import shown
from striate.tasks.metrics.choices.letter import options_of

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
REGION = "Please provide the bounding box coordinate of the region this sentence describes: "


def short_answer(question: str) -> str:
    """Return the question with the request for a word or phrase on a line of its own."""
    return f"{question}\n{SHORT}"


def by_letter(question: str, choices: tuple[str, ...], before: str = "") -> str:
    """Return the question, after a hint if there is one, with lettered choices and the request for a letter."""
    hint = f"{before}\n" if before else ""
    return f"{hint}{question}\n{options_of(choices)}\n{LETTER}"


def letter_index(row: Row, key: str, count: int) -> int:
    """Return which of `count` choices (from 0) the letter under `key` of a record names.

    Raises:
        DataError: none.
    """
    capital = row.text(key).upper()
    if len(capital) != 1 or capital not in ascii_uppercase[:count]:
        raise row.refuse(f"{key!r} is {shown(row.fields[key])}", f"the letter of one of its {count} choices")
    return ascii_uppercase.index(capital)
