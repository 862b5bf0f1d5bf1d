"""Region strategies: which decoder layers train. One a file, pure functions, listed here."""

from __future__ import annotations

from striate.registry import Registry, Strategy
from striate.selectors.all_layers import ALL
from striate.selectors.bottom import BOTTOM
from striate.selectors.combined import COMBINED
from striate.selectors.coverage import COVERAGE
from striate.selectors.from_scores import SCORES
from striate.selectors.hybrid import HYBRID
from striate.selectors.ids import IDS
from striate.selectors.interlace import INTERLACE
from striate.selectors.middle import MIDDLE
from striate.selectors.no_layers import NONE
from striate.selectors.paper import PAPER
from striate.selectors.random import RANDOM
from striate.selectors.spaced import SPACED
from striate.selectors.spec.params import Selector
from striate.selectors.top import TOP
from striate.selectors.uniform import UNIFORM
from striate.selectors.window import WINDOW

SELECTORS: Registry[Strategy[Selector]] = Registry(
    "selector",
    [
        UNIFORM,
        BOTTOM,
        MIDDLE,
        TOP,
        WINDOW,
        HYBRID,
        RANDOM,
        IDS,
        SCORES,
        SPACED,
        COVERAGE,
        COMBINED,
        INTERLACE,
        PAPER,
        ALL,
        NONE,
    ],
)
