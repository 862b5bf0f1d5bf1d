"""Benchmark metrics: one a file, in one explicit list. No torch here."""

from striate.registry import Registry
from striate.tasks.metrics.base import Metric
from striate.tasks.metrics.choices.choice import CHOICE
from striate.tasks.metrics.choices.choice_logprob import CHOICE_LOGPROB
from striate.tasks.metrics.choices.letter import LETTER
from striate.tasks.metrics.choices.yes_no import MME, YES_NO
from striate.tasks.metrics.cider import CIDER
from striate.tasks.metrics.iou50 import IOU50
from striate.tasks.metrics.perplexity import PERPLEXITY
from striate.tasks.metrics.text_match.anls import ANLS
from striate.tasks.metrics.text_match.containment import CONTAINMENT
from striate.tasks.metrics.text_match.exact import EXACT
from striate.tasks.metrics.text_match.final_answer import FINAL_ANSWER
from striate.tasks.metrics.text_match.first_line import FIRST_LINE
from striate.tasks.metrics.text_match.last_word import LAST_WORD
from striate.tasks.metrics.text_match.normalized import NORMALIZED
from striate.tasks.metrics.text_match.relaxed import RELAXED
from striate.tasks.metrics.text_match.vqa import VQA

METRICS: Registry[Metric] = Registry(
    "task",
    [
        EXACT,
        NORMALIZED,
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
