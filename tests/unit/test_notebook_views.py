"""Artifacts show themselves in a notebook as the report draws them, and need no torch for it."""

from __future__ import annotations

import html
import re
import subprocess
import sys

import pytest

from striate.artifacts import Document, GateResult, GateRow, LayerScores, PruneRecord, Region, Scores, UnfinishedRanking
from striate.reporting.notebook import html_of

REGION = Region(layers=(0, 2), num_layers=4, spec="ids:0,2")
SCORES = Scores(
    num_layers=4,
    samples=8,
    scorers=(
        LayerScores(
            scorer="block-influence",
            values=(0.1, 0.4, 0.2, 0.3),
            low=(0.0, 0.3, 0.1, 0.2),
            high=(0.2, 0.5, 0.3, 0.4),
            samples=8,
        ),
    ),
)
PRUNED = PruneRecord(
    region=REGION,
    scorer="<img src=x>",
    kept=(0, 2, 3),
    removed=(1,),
    old_to_new={0: 0, 2: 1, 3: 2},
    parameters_before=4,
    parameters_after=3,
)


def inside(document: Document) -> str:
    """Return the page in the frame of what a notebook shows."""
    shown = document._repr_html_()
    assert shown is not None
    (page,) = re.findall(r'^<iframe srcdoc="([^"]*)" sandbox=""', shown)
    return html.unescape(page)


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (REGION, "In the region: 0, 2."),
        (SCORES, "layer 1 · block influence: 0.4"),
        (PRUNED, "Removed: 1."),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_are_drawn_as_on_the_page(document: Document, told: str) -> None:
    page = inside(document)
    assert page.count("<svg") == 2
    assert "default-src 'none'" in html.unescape(page)
    assert "<script" not in page
    assert "<img" not in page
    assert told in page


def test_a_gate_is_told() -> None:
    row = GateRow(
        condition="visual>=99",
        label="tuned",
        scope="visual",
        threshold=99,
        retention=99.5,
        n=40,
        clusters=40,
        passed=True,
        resolvable=True,
    )
    assert "The sample is large enough to tell." in inside(GateResult(gate="visual>=99", baseline="start", rows=(row,)))


def test_what_the_page_does_not_draw_is_shown_as_text() -> None:
    assert html_of(UnfinishedRanking.model_construct()) is None
    assert UnfinishedRanking.model_construct()._repr_html_() is None


def test_a_drawing_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from striate import Region\n"
        "assert Region(layers=(0,), num_layers=2, spec='ids:0')._repr_html_().startswith('<iframe')\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
