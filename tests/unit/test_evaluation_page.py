"""The page on evaluation names every metric and benchmark, and its example config can be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from striate.harness.suites import parse_suite
from striate.tasks.benchmarks import BENCHMARKS
from striate.tasks.metrics import METRICS
from striate.tasks.packs.sources import parse_source

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text()


@pytest.mark.parametrize("name", [*METRICS.names(), *BENCHMARKS.names()])
def test_every_metric_and_benchmark_has_its_row(name: str) -> None:
    assert re.search(rf"^\|[^|]*`{re.escape(name)}`", PAGE, re.MULTILINE)


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_s_fields_are_on_the_page_about_data(name: str) -> None:
    assert re.search(rf"^\|[^|]*`{name}`", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE)


def test_the_examples_can_be_read() -> None:
    blocks = [yaml.safe_load(block)["evaluate"] for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
    packs = [parse_source(pack) for block in blocks for pack in block.get("packs", ())]
    assert {"textvqa", "pope", "mmlu"} <= {pack.benchmark for pack in packs}
    suites = [text for block in blocks for text in block.get("suites", ())]
    assert [parse_suite(text.partition("@")[0]).harness for text in suites] == ["lm-eval", "lmms-eval", "lm-eval"]
