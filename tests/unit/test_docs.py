"""Pages, configs and the README say what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from striate.config import load_config
from striate.selectors.spec.grammar import parse_spec

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_config_page_is_up_to_date() -> None:
    path = ROOT / "scripts" / "config_docs.py"
    spec = importlib.util.spec_from_file_location("config_docs", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "config.md").read_text() == module.page(), f"run python {path.relative_to(ROOT)}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    parse_spec(load_config(path).select.region)


def test_every_linked_file_exists() -> None:
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_readme_has_no_open_places() -> None:
    assert "@@" not in README
