"""The gallery: pictures with the question, the expected answer and what each model said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from striate.artifacts import Prediction
from striate.reporting.bars import task_name
from striate.reporting.examples import Example, choose, examples_of, is_right
from striate.reporting.findings import Findings
from striate.reporting.markup import Html, tag
from striate.reporting.thumbnails import TINY, find_picture, thumbnail
from striate.reporting.wording import amount, count, shorten

FILTERS = {"gained": "wrong to right", "lost": "right to wrong", "pruned": "pruned differs"}
LONGEST_TEXT = 320
DEFAULT_EXAMPLES = 24


def draw_gallery(found: Findings) -> Html | None:
    """Return filter buttons and cards, or None where no model answered a question with a picture."""
    everything = examples_of(found)
    wanted = found.config.report.examples if found.config else DEFAULT_EXAMPLES
    shown = choose(everything, wanted)
    if not shown:
        return None
    packs = found.config.evaluate.packs if found.config else ()
    cards = [_card(example, found.run, packs) for example in shown]
    grid = tag("div", cards, class_="cards")
    return tag("div", _tally(everything, shown, found), _buttons(shown), grid, class_="gallery")


def _tally(everything: Sequence[Example], shown: Sequence[Example], found: Findings) -> Html:
    """Return how often each kind of change occurs in the whole test set, against what is shown."""
    changes = [(name, sum(kind in example.kinds for example in everything)) for kind, name in FILTERS.items()]
    compared = {"start", "tuned"} <= set(found.predictions)
    kept = [(name, times) for name, times in changes if compared or name == FILTERS["pruned"]]
    if "pruned" not in found.predictions:
        kept = [(name, times) for name, times in kept if name != FILTERS["pruned"]]
    told = "; ".join(f"{name}: {count(times)}" for name, times in kept)
    spread = "Chosen to show every task and every kind of change, so not in proportion."
    return tag(
        "p",
        f"{count(len(shown))} of {amount(len(everything), 'question')} with a picture. {spread}",
        f" Over all of them: {told}." if told else None,
        class_="caption",
    )


def _buttons(shown: Sequence[Example]) -> Html:
    """Return a filter button for all, and for each kind of change that occurs."""
    numbers = {kind: sum(kind in example.kinds for example in shown) for kind in FILTERS}
    named = [("all", "all", len(shown)), *((kind, name, numbers[kind]) for kind, name in FILTERS.items())]
    buttons = [
        tag(
            "button",
            name,
            tag("span", count(times)),
            type="button",
            data_filter=kind,
            aria_pressed="true" if kind == "all" else "false",
        )
        for kind, name, times in named
        if times
    ]
    return tag("div", buttons, class_="filters", role="group", aria_label="Filter examples")


def _card(example: Example, run: Path, packs: tuple[str, ...]) -> Html:
    """Return one card."""
    first = example.first
    answers = [_answer(label, answer) for label, answer in example.answers.items()]
    return tag(
        "article",
        _photo(example, run, packs),
        tag("p", task_name(first.pack, first.task), class_="task"),
        tag("p", _clean(first.question), class_="question"),
        tag("p", tag("span", "expected"), tag("b", shorten(" / ".join(first.expected), 120)), class_="expected"),
        tag("ul", answers),
        class_="card",
        data_kinds=" ".join(example.kinds),
    )


def _clean(question: str) -> str:
    """Return the question without image placeholders, cut where it is very long."""
    return shorten(question.replace("<image>", "").strip(), LONGEST_TEXT)


def _answer(label: str, answer: Prediction) -> Html:
    """Return one model's answer with its mark."""
    right = is_right(answer)
    partial = f" ({answer.score:.2f})" if 0 < answer.score < 1 else ""
    verdict = "right" if right else "wrong"
    mark = tag("span", "✓" if right else "✗", class_=verdict, role="img", aria_label=verdict)
    text = shorten(answer.answer.strip(), 160) or tag("i", "no answer")
    return tag("li", mark, tag("span", label, class_=f"who {label}"), tag("span", text, partial, class_="said"))


def _photo(example: Example, run: Path, packs: tuple[str, ...]) -> Html:
    """Return the picture with the boxes that were asked for and given, or a note that it is gone."""
    path = find_picture(example.first.image or "", example.first.pack, run, packs)
    made = thumbnail(path) if path else None
    if made is None:
        return tag("div", "picture not found", class_="photo missing")
    source, width, height = made
    kind = "pixels" if max(width, height) <= TINY else None
    alt = f"picture of the question: {_clean(example.first.question)}"
    image = tag("img", src=source, width=width, height=height, alt=alt, class_=kind)
    shape = f"aspect-ratio:{width}/{height};--ratio:{width / height:.4f}"
    frame = tag("div", image, _boxes(example), class_="frame", style=shape)
    return tag("div", frame, class_="photo")


def _boxes(example: Example) -> list[Html]:
    """Return the expected box and the models' boxes, for questions that ask for one."""
    if example.first.metric != "iou50":
        return []
    given = [("expected", " ".join(example.first.expected[:1]))]
    given += [(label, answer.answer) for label, answer in example.answers.items()]
    return [_box(label, box) for label, text in given if (box := read_box(text))]


def read_box(text: str) -> tuple[float, float, float, float] | None:
    """Return the first four numbers of `text` where they make a box in fractions of width and height."""
    numbers = [float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text)[:4]]
    if len(numbers) < 4 or not all(0 <= value <= 1 for value in numbers):
        return None
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _box(label: str, box: tuple[float, float, float, float]) -> Html:
    """Return a box over the picture, placed in percent."""
    x1, y1, x2, y2 = (100 * value for value in box)
    place = f"left:{x1:.2f}%;top:{y1:.2f}%;width:{x2 - x1:.2f}%;height:{y2 - y1:.2f}%"
    return tag("span", tag("span", f"box: {label}", class_="unheard"), class_=f"box {label}", style=place)
