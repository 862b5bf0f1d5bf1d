"""The documentation site has every page, and its references name everything that is public."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from typer.main import get_command

import striate
from striate.cli import app

ROOT = Path(__file__).parents[2]


SITE = SimpleNamespace(**run_path(str(ROOT / "scripts" / "site_pages.py")))


def pages_of(entry: Any) -> list[str]:
    """Return the pages of a part of `nav`, in its order."""
    if isinstance(entry, str):
        return [entry]
    return [page for inner in (entry.values() if isinstance(entry, dict) else entry) for page in pages_of(inner)]


def test_every_page_is_in_the_nav_once() -> None:
    named = Counter(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    written = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert set(named) == written | {*SITE.TAKEN.values(), "cli.md"}, "add the page to nav in mkdocs.yml"
    assert set(named.values()) == {1}


def test_the_command_lines_page_names_every_verb_and_option() -> None:
    page = SITE.cli_page()
    verbs: dict[str, Any] = getattr(get_command(app), "commands", {})
    for name, command in verbs.items():
        section = page.split(f"\n## `striate {name}`\n")[1].split("\n## ")[0]
        for option in (parameter for parameter in command.params if parameter.param_type_name == "option"):
            assert option.opts[0] in section, f"{name} {option.opts}"
    assert "`--quiet`" in page.split("\n## ")[0]


def test_the_python_page_has_every_public_name() -> None:
    shown = set(re.findall(r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE))
    assert {f"striate.{name}" for name in striate.__all__} - {"striate.__version__"} <= shown


@pytest.mark.parametrize(
    ("page", "written", "shown"),
    [
        ("docs", "[data](data.md#pictures)", "[data](data.md#pictures)"),
        ("docs", "[list](../examples/README.md)", "list (`examples/README.md`)"),
        ("docs", "[`ddp.yaml`](../configs/accelerate/ddp.yaml)", "`configs/accelerate/ddp.yaml`"),
        ("docs", "[changes](../CHANGELOG.md)", "[changes](changelog.md)"),
        ("docs", "![page](report.png) [paper](https://arxiv.org/abs/1)", None),
        (".", "[words](docs/glossary.md), [tests](tests/README.md)", "[words](glossary.md), tests (`tests/README.md`)"),
    ],
)
def test_links_out_of_the_site_become_names(page: str, written: str, shown: str | None) -> None:
    class File:
        src_uri = "regions.md" if page == "docs" else "contributing.md"

    class Page:
        file = File()

    assert SITE.on_page_markdown(written, Page(), None, None) == (shown or written)


def test_a_page_that_fetches_from_another_host_is_refused() -> None:
    class Page:
        class file:  # noqa: N801
            src_uri = "index.md"

    kept = '<a href="https://arxiv.org/abs/1">paper</a><link href="assets/a.css" rel="stylesheet">'
    assert SITE.on_post_page(kept, Page, None) == kept
    for fetched in ('<script src="https://cdn.example/x.js">', '<link rel="stylesheet" href="//fonts.example/a.css">'):
        with pytest.raises(RuntimeError, match=r"index\.md fetches from another host"):
            SITE.on_post_page(kept + fetched, Page, None)


def test_every_file_that_the_container_takes_exists() -> None:
    taken = re.findall(r"^COPY (.+) \S+$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    let_in = (ROOT / ".dockerignore").read_text(encoding="utf-8")
    for name in " ".join(taken).split():
        assert (ROOT / name).exists(), name
        assert f"!{name}\n" in let_in, name
