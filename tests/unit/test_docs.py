"""Pages, configs and the README say what the code does."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

from striate.config import RunConfig, load_config
from striate.selectors.spec.grammar import parse_spec
from striate.tasks.scoring.gate import parse_gate

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_config_page_is_up_to_date() -> None:
    path = ROOT / "scripts" / "config_docs.py"
    spec = importlib.util.spec_from_file_location("config_docs", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "config.md").read_text() == module.page(), f"run python {path.relative_to(ROOT)}"


# The others of the study are sweeps, of test_study.py.
SHIPPED = sorted({*(ROOT / "configs").glob("*.yaml"), ROOT / "configs" / "study" / "run.yaml"})


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    parse_spec(load_config(path).select.region)


def test_every_linked_file_exists() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_every_file_that_a_page_names_exists() -> None:
    for page in PAGES:
        for path in re.findall(r"`((?:striate|tests|benchmarks|scripts|configs|results)/[\w./-]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name} names {path}"
        for path in re.findall(r"`(\w+/[\w./-]+\.py)`", page.read_text()):
            assert (ROOT / path).exists() or (ROOT / "striate" / path).exists(), f"{page.name} names {path}"


def test_every_module_that_a_page_names_exists() -> None:
    for page in PAGES:
        for name in re.findall(r"`(striate(?:\.\w+)+)[(`]", page.read_text()):
            assert pkgutil.resolve_name(name), f"{page.name} names {name}"


def test_every_setting_that_a_page_names_exists() -> None:
    named = re.compile(rf"`({'|'.join(RunConfig.model_fields)})\.([a-z_]+)((?:\.[a-z_]+)*)[`:=]")
    for page in PAGES:
        for section, key, rest in named.findall(page.read_text()):
            if key not in ("json", "jsonl", "html", "yaml", "md", "safetensors"):
                fields: Any = RunConfig
                for part in (section, key, *filter(None, rest.split("."))):
                    assert part in fields.model_fields, f"{page.name} names {section}.{key}{rest}"
                    fields = fields.model_fields[part].annotation


def test_the_glossary_says_where_each_word_is() -> None:
    rows = re.findall(r"^\| (.*) \|$", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    cells = [[cell.strip() for cell in row.split("|")] for row in rows]
    assert len(cells) > 50
    for word, meaning, _, place in cells[1:]:
        assert word, meaning
        assert meaning, word
        assert re.fullmatch(r"`striate/[\w./]+`(, `striate/[\w./]+`)*", place), f"{word}: {place}"


def test_the_readme_has_no_open_places() -> None:
    assert "@@" not in README


def test_the_readmes_gate_holds_on_the_run_that_the_readme_shows() -> None:
    gate = re.search(r"striate evaluate --out striate-quickstart --gate '([^']+)'", README)
    assert gate
    number = r"(\d+\.\d+)"
    line = rf"^(tuned|pruned) +(\S+): (perplexity of )?\w+ {number}%? -> {number}"
    kept: dict[str, dict[str, float]] = {}
    for model, scope, perplexity, before, after in re.findall(line, README, re.MULTILINE):
        old, new = float(before), float(after)
        # Of perplexity less is kept where there is more.
        kept.setdefault(scope, {})[model] = 100 * (old / new if perplexity else new / old)
    for condition in parse_gate(gate[1]):
        assert kept[condition.scope].keys() == {"tuned", "pruned"}
        assert min(kept[condition.scope].values()) >= condition.least
