"""The browser of questions: every model's answer with its picture, packed as data that the page's script shows."""

import json
from collections.abc import Sequence
from typing import Any

from striate.config import OWN_MODELS
from striate.data.pictures import ORDINARY, PictureLimits
from striate.reporting.charts.bars import task_name
from striate.reporting.data.correctness import Example, examples_of
from striate.reporting.data.examples import choose
from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.box_overlay import boxes_of
from striate.reporting.html.markup import Html, tag
from striate.reporting.html.model_names import model_class
from striate.reporting.html.thumbnails import TINY, Album, Thumbnail, longest_side
from striate.wording import amount, count, shorten

DEFAULT_EXAMPLES = 1000
LONGEST_QUESTION, LONGEST_ANSWER = 700, 400
PICTURES_A_BLOCK = 40
CHANGES = (
    ("changed", "what changed"),
    ("gained", "wrong to right"),
    ("lost", "right to wrong"),
    ("wrong", "wrong"),
    ("differ", "answers differ"),
    ("unparsed", "not readable"),
    ("all", "all"),
)
ALONE = ("all", "wrong", "unparsed")


def draw_browser(artifacts: RunArtifacts) -> Html | None:
    """Return filters, an empty list and the data for it, or None where no question was answered by all models."""
    everything = examples_of(artifacts.predictions)
    wanted = artifacts.config.report.examples if artifacts.config else DEFAULT_EXAMPLES
    shown = choose(everything, wanted)
    if not shown:
        return None
    album = _album(artifacts, shown)
    records = [_record(example, album) for example in shown]
    labels = list(artifacts.predictions)
    model = _opened(artifacts, labels)
    data = {
        "models": labels,
        "classes": [model_class(label) for label in labels],
        "model": labels.index(model),
        "against": labels.index(_against(artifacts, model, labels)),
        "tiny": TINY,
        "block": PICTURES_A_BLOCK,
    }
    return tag(
        "div",
        tag("p", _told(everything, shown, album), class_="caption"),
        tag(
            "noscript", tag("p", "Questions are shown by a script, which this browser does not run.", class_="missing")
        ),
        _filters(labels),
        tag("p", class_="counted", id="counted", role="status"),
        tag("div", class_="cards", id="cards"),
        _pager(),
        _block({**data, "items": records}, id="asked"),
        [_block(block, data_pictures=True) for block in _blocks(album.pictures)],
        class_="browser",
        id="browser",
    )


def _album(artifacts: RunArtifacts, shown: Sequence[Example]) -> Album:
    pictures = {(example.first.image, example.first.pack) for example in shown if example.first.image}
    config = artifacts.config
    packs = config.evaluate.packs if config else ()
    limits = PictureLimits.of(config.machine) if config else ORDINARY
    return Album(artifacts.run, packs, longest_side(len(pictures)), limits)


def _opened(artifacts: RunArtifacts, labels: Sequence[str]) -> str:
    """Return the model that the browser opens on: the last of the run's own that is held against another."""
    made = [label for label in labels if label in OWN_MODELS and _against(artifacts, label, labels) != label]
    return made[-1] if made else labels[-1]


def _against(artifacts: RunArtifacts, model: str, labels: Sequence[str]) -> str:
    """Return the model that `model` is held against, where it answered too; else the first."""
    named = artifacts.retention.reference(model) if artifacts.retention else labels[0]
    return named if named in labels else labels[0]


def _told(everything: Sequence[Example], shown: Sequence[Example], album: Album) -> str:
    coverage = f"{amount(len(everything), 'question')} that every model answered. Right is a score of at least 0.5."
    coverage += " What the model lost most of stands first." if len(everything[0].answers) > 1 else ""
    if len(shown) < len(everything):
        coverage = (
            f"{count(len(shown))} of {coverage} The rest is left out (report.examples): questions on which models "
            "differ in being right were kept first, so this is no random sample."
        )
    if album.left_out:
        coverage += f" {amount(album.left_out, 'picture')} left out, to keep the page small."
    return coverage


def _record(example: Example, album: Album) -> dict[str, Any]:
    """Return one question as the page's script reads it; empty fields are left out."""
    first, answers = example.first, list(example.answers.values())
    expected_box, _ = boxes_of(first)
    boxes = [boxes_of(answer)[1] for answer in answers]
    record = {
        "t": task_name(first.pack, first.task),
        "q": shorten(first.question.replace("<image>", "").strip(), LONGEST_QUESTION),
        "p": album.add(first.image, first.pack, first.picture.partition("+")[0]) if first.image else None,
        "gone": bool(first.image) or None,
        "e": [shorten(text, LONGEST_ANSWER) for text in first.expected],
        "a": [shorten(answer.answer.strip(), LONGEST_ANSWER) for answer in answers],
        "s": [round(answer.score, 4) for answer in answers],
        "u": [int(answer.unparsed) for answer in answers] if any(answer.unparsed for answer in answers) else None,
        "box": expected_box,
        "boxes": boxes if any(boxes) else None,
    }
    if record["p"] is not None:
        record["gone"] = None
    return {key: value for key, value in record.items() if value is not None}


def _blocks(pictures: Sequence[Thumbnail]) -> list[Sequence[Thumbnail]]:
    """Return the pictures in blocks: the page reads a block when one of its pictures is first in sight."""
    return [pictures[start : start + PICTURES_A_BLOCK] for start in range(0, len(pictures), PICTURES_A_BLOCK)]


def _block(data: Any, **attributes: Any) -> Html:
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return tag("script", Html(text), type="application/json", **attributes)


def _filters(labels: Sequence[str]) -> Html:
    menus: list[Html] = [_menu("task", "task", [])]
    if len(labels) > 1:
        menus += [_menu("model", "model", labels), _menu("against", "against", labels)]
    search = tag("input", type="search", id="search", placeholder="in questions and answers", autocomplete="off")
    kinds = [(kind, name) for kind, name in CHANGES if len(labels) > 1 or kind in ALONE]
    buttons = [
        tag("button", name, tag("span"), type="button", data_change=kind, aria_pressed="false") for kind, name in kinds
    ]
    return tag(
        "div",
        tag("div", menus, tag("label", tag("span", "search"), search), class_="menus"),
        tag("div", buttons, class_="filters", role="group", aria_label="Filter questions"),
    )


def _menu(name: str, label: str, options: Sequence[str]) -> Html:
    shown = [tag("option", option, value=option) for option in options]
    return tag("label", tag("span", label), tag("select", shown, id=f"by-{name}", autocomplete="off"))


def _pager() -> Html:
    back = tag("button", "← before", type="button", id="before")
    on = tag("button", "after →", type="button", id="after")
    return tag("div", back, tag("span", id="page"), on, class_="pager")
