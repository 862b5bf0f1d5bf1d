"""Normalize answers for comparison: lightly, or as the VQA evaluation does. No torch."""

import re

ARTICLES = frozenset({"a", "an", "the"})
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {**{word: str(value) for value, word in enumerate(NUMBER_WORDS)}, "none": "0"}
MARKS = ';/[]"{}()=+\\_-><@`,?!'
DIGIT_COMMA = re.compile(r"\d,\d")
FULL_STOP = re.compile(r"\.(?!\d)")
APOSTROPHES = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's i'm i've
isn't it'd it'll let's might've mightn't must've mustn't needn't she'd've should've shouldn't somebody's someone's
something's that's there'd there're there's they'd they'll they're they've wasn't we've weren't what'll what're what's
what've when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all
you'd you'll you're you've o'clock ma'am
"""
CONTRACTIONS = {word.replace("'", ""): word for word in APOSTROPHES.split()}
BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]*)\}+")
MARKUP = re.compile(r"[*`$]+|(?<!\w)_+|_+(?!\w)")
LIST_MARK = re.compile(r"(?:[\s>#]|-(?=\s))*(?:\d{1,2}[.)](?=\s))?\s*")


def unformatted(text: str) -> str:
    """Return a reply without what only shapes it.

    Reasoning before `</think>`, all but what `<answer>` tags hold, Markdown's marks, LaTeX's box; quotes are straight.
    """
    answer = text.rpartition("</think>")[2].rpartition("<answer>")[2].partition("</answer>")[0]
    straight = BOXED.sub(r"\1", answer).translate(str.maketrans("\u2018\u2019\u201c\u201d", "''\"\""))
    plain = MARKUP.sub("", straight)
    return plain[LIST_MARK.match(plain).end() :].strip()  # type: ignore[union-attr]


def normalize(text: str) -> str:
    """Return `text` trimmed, lower-cased and without one final full stop."""
    return text.strip().lower().removesuffix(".").rstrip()


def vqa_text(text: str) -> str:
    """Return `text` in the form in which the VQA evaluation compares answers.

    The steps of Antol et al. 2015 (arXiv 1505.00468) as visualqa.org/evaluation.html lists them: lower case; no full
    stop, except before a digit; marks other than apostrophe and colon become a space, or go without one where the text
    has them beside a space or has a comma between digits; number words up to ten and `none` become digits; articles go;
    contractions get their apostrophe. White space is trimmed and runs of it are one space.
    """
    words = _without_marks(" ".join(text.split())).lower().split()
    numbered = [NUMBERS.get(word, word) for word in words]
    return " ".join(CONTRACTIONS.get(word, word) for word in numbered if word not in ARTICLES)


def _without_marks(text: str) -> str:
    """Return `text` without punctuation; which marks leave a space is decided on the text as it was given."""
    digits = DIGIT_COMMA.search(text) is not None
    cleaned = text
    for mark in MARKS:
        tight = digits or f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if tight else " ")
    return FULL_STOP.sub("", cleaned)
