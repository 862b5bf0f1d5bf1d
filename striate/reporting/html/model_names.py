"""Names of models on the page, each with its colour: the run's own, and those of `evaluate.others`."""

import re
from collections.abc import Sequence

from striate.config import OWN_MODELS
from striate.reporting.html.markup import Html, tag

SHADES = ("s3", "s4", "s5", "s1", "s2")
_FILLED = "svg .bar.{name}{{fill:var(--{shade})}} .key.{name}{{background:var(--{shade})}}"
_CHANGED = " svg .won.{name},svg .change.{name}{{fill:var(--{shade})}} svg .lost.{name}{{stroke:var(--{shade})}}"
_LINED = " .box.{name}{{border-color:var(--{shade})}} .who.{name}{{color:var(--{shade})}}"


def model_class(label: str) -> str:
    """Return the CSS class of a model: one of the run's own has its label."""
    if label in OWN_MODELS:
        return label
    return f"other-{re.sub(r'[^a-z0-9]+', '-', label.lower()).strip('-')}"


def model_name(label: str) -> Html:
    """Return a model's name behind a patch of its colour."""
    return tag("span", tag("i", class_=f"key {model_class(label)}"), label, class_="named")


def place_of(label: str) -> int:
    """Return a model's position among others: the run's own in the order of their making, then the rest."""
    return (*OWN_MODELS, label).index(label)


def others_css(labels: Sequence[str]) -> str:
    """Return the rules that give models that are not the run's own a colour each; five differ, then they repeat."""
    others = [label for label in labels if label not in OWN_MODELS]
    return "".join(
        (_FILLED + _CHANGED + _LINED).format(name=model_class(label), shade=SHADES[place % len(SHADES)]) + "\n"
        for place, label in enumerate(others)
    )
