"""Yes-or-no questions: POPE's precision, recall, F1 and yes-rate, and MME's score for pairs of questions."""

import re
from collections.abc import Sequence

from striate.artifacts import Prediction
from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import unformatted
from striate.tasks.packs.items import Item, Mark, Reply

YES, NO = frozenset({"yes", "yep", "yeah", "yup"}), frozenset({"no", "not", "nope", "nah"})
WORDS = re.compile(r"[a-z']+")
SENTENCE = re.compile(r"([^.!?\n。]+)([.!?\n。]?)")
# Words of a sentence that answer neither way.
NEITHER = re.compile(
    r"^yes no$|^no yes$|\byes (?:or|and) no\b|\bno (?:or|and) yes\b|\bno (?:idea|clue|answer|doubt|way (?:to|of))\b"
    r"|\bnot (?:only|sure|certain|enough)\b|\b(?:don't|do not) (?:really )?know\b"
    r"|\bit(?:'s| is) not (?:clear|possible)\b"
    r"|\b(?:can't|cannot|can not|couldn't|could not|not able to) (?:[a-z']+ ){0,2}?"
    r"(?:tell|say|determined?|answer|know|confirm|be sure|help|assist)\b"
)
STATED = re.compile(r"\banswer (?:is )?(yes|no)\b")


def said(text: str) -> str:
    """Return `yes` or `no` as an answer says it, or an empty string where it says neither.

    Markdown and a question said again aside, the first word counts if it is yes or no; else `the answer is yes`; else
    the first of `yes`, `no`, `not` and `...n't` in the first sentence. `I'm not sure`, `no idea`, `I can't tell` and
    `yes or no` say neither, and nor does a sentence without any of these words.
    """
    reply = unformatted(text).lower()
    parts = [(" ".join(WORDS.findall(part)), end) for part, end in SENTENCE.findall(reply)]
    sentences = [part for part, end in parts if part and end != "?"] or [part for part, _ in parts if part]
    words = NEITHER.sub(" ", sentences[0]).split() if sentences else []
    if words and words[0] not in YES | NO and len(stated := set(STATED.findall(" ".join(sentences)))) == 1:
        return str(stated.pop())
    heard = [word for word in words if word in YES | NO or word.endswith("n't")]
    return ("yes" if heard[0] in YES else "no") if heard else ""


def score_yes_no(item: Item, reply: Reply) -> Mark:
    """Return 1 if the answer says yes or no as the truth does, else 0; one that says neither is unparsed and wrong.

    For POPE (Li et al. 2023, arXiv 2305.10355) and MME (Fu et al. 2023, arXiv 2306.13394). POPE's own script takes a
    first sentence with `no` or `not` for a no and anything else for a yes; MME's looks at the first four characters.
    """
    answer = said(reply.text)
    return Mark(float(bool(answer) and answer == said(item.answers[0])), reply.text.strip(), unparsed=not answer)


def pope_details(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return accuracy, precision, recall and F1 of `yes`, and the share of answers that are `yes`.

    As in POPE (arXiv 2305.10355, section 5). An unparsed answer is wrong: a false negative where the truth is yes, a
    false positive where it is no; it is not counted as a yes in the yes-rate. A ratio without a denominator is 0.
    """
    truth = [said(row.expected[0]) == "yes" for row in predictions]
    right = [row.score == 1 for row in predictions]
    hits = sum(yes and good for yes, good in zip(truth, right, strict=True))
    misses = sum(yes and not good for yes, good in zip(truth, right, strict=True))
    alarms = sum(not yes and not good for yes, good in zip(truth, right, strict=True))
    return {
        "accuracy": sum(right) / len(right),
        "precision": hits / (hits + alarms) if hits + alarms else 0.0,
        "recall": hits / (hits + misses) if hits + misses else 0.0,
        "f1": 2 * hits / (2 * hits + alarms + misses) if hits + alarms + misses else 0.0,
        "yes_rate": sum(said(row.answer) == "yes" for row in predictions) / len(predictions),
    }


def mme_details(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Return accuracy and accuracy+ in %, and MME's score: the sum of both, added up over subtasks.

    Accuracy+ is the share of pictures of which every question is answered right (Fu et al. 2023, arXiv 2306.13394,
    section 2.2). A subtask is what stands before `/` in an item's id; its own score, 0 to 200, stands under its name
    where there are several. Items without a picture count one by one.
    """
    subtasks: dict[str, list[Prediction]] = {}
    for row in predictions:
        subtasks.setdefault(row.id.rpartition("/")[0], []).append(row)
    pairs = {name: _accuracies(rows) for name, rows in subtasks.items()}
    overall = _accuracies(predictions)
    scores = {name: sum(pair) for name, pair in pairs.items()} if len(pairs) > 1 else {}
    return {"accuracy": overall[0], "accuracy_plus": overall[1], "mme_score": sum(map(sum, pairs.values())), **scores}


def _accuracies(predictions: Sequence[Prediction]) -> tuple[float, float]:
    """Return the share of right answers and of pictures with right answers only, in %."""
    pictures: dict[str, list[bool]] = {}
    for row in predictions:
        pictures.setdefault(row.image or row.id, []).append(row.score == 1)
    right = sum(row.score == 1 for row in predictions)
    return 100 * right / len(predictions), 100 * sum(map(all, pictures.values())) / len(pictures)


def _check(item: Item) -> str:
    if len(item.answers) == 1 and said(item.answers[0]):
        return ""
    return f"'answers' is {list(item.answers)}, but must be one answer, yes or no"


YES_NO = Metric(
    name="yes_no",
    title="Yes or no",
    summary="the answer says yes or no as the truth does; with precision, recall, F1 and yes-rate (POPE)",
    function=score_yes_no,
    paper="https://arxiv.org/abs/2305.10355",
    check=_check,
    details=pope_details,
)
MME = Metric(
    name="mme",
    title="MME",
    summary="yes or no, two questions a picture; with accuracy+ (both right) and their sum, 0 to 200",
    function=score_yes_no,
    paper="https://arxiv.org/abs/2306.13394",
    check=_check,
    details=mme_details,
)
