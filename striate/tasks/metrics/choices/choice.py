"""Multiple choice by a generated answer."""

from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.reading.answer_text import normalize
from striate.tasks.packs.items import Item, Mark, Reply


def score_choice(item: Item, reply: Reply) -> Mark:
    """Return 1 if the answer is the right choice, else 0.

    The answer counts only if, after `normalize`, the whole of it is one of the choices: `Yes.` is `yes`, but `yes, it
    is` and `the answer is yes` are no choice. A choice is never searched for inside a longer answer, so an answer that
    names two choices, or says `no` within another word, can't be right by accident. Anything else scores 0 and is
    marked unparsed, so that a model which does not keep to the choices shows as such. Accuracy over choices as in
    ScienceQA (Lu et al. 2022, arXiv 2209.09513, section 5).
    """
    answer = normalize(reply.text)
    unparsed = answer not in {normalize(choice) for choice in item.choices}
    right = not unparsed and answer in {normalize(accepted) for accepted in item.answers}
    return Mark(float(right), reply.text.strip(), unparsed=unparsed)


def _check(item: Item) -> str:
    known = [normalize(choice) for choice in item.choices]
    if len(known) < 2:
        return "'choices' needs at least two entries"
    if len(set(known)) < len(known):
        return "two of 'choices' are the same, ignoring case and a final full stop"
    strangers = [answer for answer in item.answers if normalize(answer) not in known]
    return f"answer {strangers[0]!r} is not one of 'choices'" if strangers else ""


CHOICE = Metric(
    name="choice",
    title="Multiple choice",
    summary="the generated answer is exactly the right choice; an answer that is no choice scores 0 and is counted",
    function=score_choice,
    paper="https://arxiv.org/abs/2209.09513",
    check=_check,
)
