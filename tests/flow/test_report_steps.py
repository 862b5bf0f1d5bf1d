"""Every command that the report prints works as it is printed, and verbs refresh the page."""

from __future__ import annotations

import html
import re
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from striate.cli import app

OUT = "runs/one"
PAGE = Path(OUT) / "report.html"
# What refreshes the page by itself; after the others `report` is called.
REFRESHES = ("prune", "evaluate")


def done(command: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a command line as a shell would, which the run folder notes."""
    words = shlex.split(command)
    assert words[0] == "striate"
    monkeypatch.setattr(sys, "argv", words)
    shown = CliRunner().invoke(app, words[1:])
    assert shown.exit_code == 0, f"{command}: {shown.output}"
    return shown.stdout


def printed(kind: str) -> list[str]:
    return [html.unescape(found) for found in re.findall(kind, PAGE.read_text(encoding="utf-8"), re.DOTALL)]


def steps() -> list[str]:
    return list(dict.fromkeys(printed(r'class="step">([^<]*)<')))


def test_a_run_is_finished_by_the_commands_on_its_page(
    run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done(f"striate select {run_yaml.name} --out {OUT} --set report.title=Steps", monkeypatch)
    done(f"striate report --out {OUT}", monkeypatch)
    ran = []
    while told := steps():
        done(told[0], monkeypatch)
        ran.append(shlex.split(told[0])[1])
        if ran[-1] in REFRESHES:
            assert told[0] not in steps()
        else:
            done(f"striate report --out {OUT}", monkeypatch)
    assert ran == ["analyze", "train", "prune", "evaluate"]
    last, again = printed(r"<pre><code>(.*?)</code></pre>")[0].splitlines()
    assert last == f"striate evaluate --out {OUT}"
    assert "up to date" in done(last, monkeypatch)
    done(again, monkeypatch)
    assert (Path(f"{OUT}-again") / "report.html").is_file()
    kept = (Path(OUT) / "eval/retention.json").read_bytes()
    assert (Path(f"{OUT}-again") / "eval/retention.json").read_bytes() == kept
