"""Learning rates that `find-lr` tried: the picture, and a table of what each reached."""

from __future__ import annotations

from striate.artifacts import RateSearch, RateTrial
from striate.reporting.charts.drawing.svg import picture
from striate.reporting.charts.rate_curve import draw_rates
from striate.reporting.html.markup import Child, tag
from striate.reporting.html.tables import Cell, figures, table
from striate.wording import count, percent, plain_number

_METRICS = {"loss": "answer loss", "exact_match": "answers right word for word"}


def draw_rate_search(found: RateSearch) -> list[Child]:
    """Return the section's content."""
    sane = [trial for trial in found.trials if trial.measured]
    share = not found.metric.endswith("loss")
    reached = [
        (trial.lr, trial.measured[found.metric] * (100 if share else 1), trial.lr == found.best) for trial in sane
    ]
    drawn = (
        picture(
            "rates", "What each learning rate reached", lambda width: draw_rates(reached, width, "%" if share else "")
        )
        if len(reached) > 1
        else None
    )
    return [tag("p", _about(found), class_="caption"), drawn, _table(found)]


def _about(found: RateSearch) -> str:
    kind = found.metric.removesuffix("loss").removesuffix("exact_match").strip("_")
    name = _METRICS["loss" if found.metric.endswith("loss") else "exact_match"]
    samples = found.visual_samples + found.text_samples
    return (
        f"{count(found.steps)} of {count(found.whole_steps)} steps each, with a whole schedule; the picture shows "
        f"{f'{kind} ' if kind else ''}{name}, on {count(samples)} held-out samples."
    )


def _table(found: RateSearch) -> Child:
    head = ["train.lr", "loss of the last steps", "held-out loss", "held-out answers right"]
    return table(head, [_cells(trial, found.best) for trial in found.trials])


def _cells(trial: RateTrial, best: float | None) -> list[Cell]:
    name = Cell(f"{trial.lr:g}{', best' if trial.lr == best else ''}", head=True)
    if trial.last_loss is None:
        return [name, *figures("diverged", "", "")]
    shown = plain_number(trial.last_loss), plain_number(trial.measured["loss"])
    return [name, *figures(*shown, percent(trial.measured["exact_match"]))]
