"""Benchmark metrics: one a file, in one explicit list. No torch here."""

from __future__ import annotations

from striate.registry import Registry
from striate.tasks.metrics.anls import ANLS
from striate.tasks.metrics.base import Metric, ScoreFunction
from striate.tasks.metrics.choice import CHOICE
from striate.tasks.metrics.choice_logprob import CHOICE_LOGPROB
from striate.tasks.metrics.cider import CIDER
from striate.tasks.metrics.containment import CONTAINMENT
from striate.tasks.metrics.exact import EXACT
from striate.tasks.metrics.final_answer import FINAL_ANSWER
from striate.tasks.metrics.first_line import FIRST_LINE
from striate.tasks.metrics.iou50 import IOU50
from striate.tasks.metrics.last_word import LAST_WORD
from striate.tasks.metrics.letter import LETTER
from striate.tasks.metrics.normalised import NORMALISED
from striate.tasks.metrics.perplexity import PERPLEXITY
from striate.tasks.metrics.relaxed import RELAXED
from striate.tasks.metrics.vqa import VQA
from striate.tasks.metrics.yes_no import MME, YES_NO

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
