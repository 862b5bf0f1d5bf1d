"""Benchmark metrics: one a file, in one explicit list. No torch here."""

from __future__ import annotations

from striate.registry import Registry
from striate.tasks.anls import ANLS
from striate.tasks.choice import CHOICE
from striate.tasks.choice_logprob import CHOICE_LOGPROB
from striate.tasks.cider import CIDER
from striate.tasks.containment import CONTAINMENT
from striate.tasks.exact import EXACT
from striate.tasks.final_answer import FINAL_ANSWER
from striate.tasks.first_line import FIRST_LINE
from striate.tasks.iou50 import IOU50
from striate.tasks.last_word import LAST_WORD
from striate.tasks.letter import LETTER
from striate.tasks.metric import Metric, ScoreFunction
from striate.tasks.normalised import NORMALISED
from striate.tasks.perplexity import PERPLEXITY
from striate.tasks.relaxed import RELAXED
from striate.tasks.vqa import VQA
from striate.tasks.yes_no import MME, YES_NO

METRICS: Registry[ScoreFunction] = Registry(
    "task",
    [
        EXACT,
        NORMALISED,
        CHOICE,
        LETTER,
        YES_NO,
        MME,
        VQA,
        ANLS,
        RELAXED,
        CONTAINMENT,
        FIRST_LINE,
        FINAL_ANSWER,
        IOU50,
        CIDER,
        CHOICE_LOGPROB,
        LAST_WORD,
        PERPLEXITY,
    ],
)


def metric_of(name: str) -> Metric:
    """Return the metric called `name`, with its asking mode.

    Raises:
        SpecError: no such metric; the text names the closest one and lists all.
    """
    metric = METRICS.get(name)
    assert isinstance(metric, Metric), "every entry of METRICS is a Metric"
    return metric
