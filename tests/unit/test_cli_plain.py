"""The command line, as far as it goes without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from striate.artifacts import Difference, Region
from striate.cli import app
from striate.cli.console import draw_stack, from_here, result_lines, show_table
from striate.version import __version__

VERBS = ["quickstart", "run", "analyze", "select", "train", "prune", "evaluate", "report", "inspect", "ls", "check"]


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_help_names_every_verb() -> None:
    shown = call("--help")
    assert shown.exit_code == 0
    assert all(f"\n  {verb} " in shown.stdout for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    shown = call(verb, "--help")
    assert shown.exit_code == 0
    assert f"Usage: root {verb}" in shown.stdout or f" {verb} " in shown.stdout.splitlines()[0] + " "


def test_version() -> None:
    assert call("version").stdout.strip() == __version__


@pytest.mark.parametrize("what", ["scorers", "selectors", "tasks", "families"])
def test_listings_name_everything(what: str) -> None:
    from striate.models.structure.families import FAMILIES
    from striate.scorers import SCORERS
    from striate.selectors import SELECTORS
    from striate.tasks.metrics import METRICS

    names = {
        "scorers": SCORERS.names(),
        "selectors": SELECTORS.names(),
        "tasks": METRICS.names(),
        "families": [family.model_type for family in FAMILIES],
    }[what]
    shown = call("ls", what)
    assert shown.exit_code == 0
    assert [name for name in names if f"\n{name}" not in shown.stdout] == []


@pytest.mark.parametrize(
    ("layers", "removed", "drawn"),
    [((0, 2), (), "█░█░"), ((0, 2), (1,), "█×█░"), ((), (), "░░░░"), ((0, 1, 2, 3), (), "████")],
)
def test_stack(layers: tuple[int, ...], removed: tuple[int, ...], drawn: str) -> None:
    assert draw_stack(Region(layers=layers, num_layers=4, spec="x"), removed) == drawn


def test_tables_keep_brackets_and_colons(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("", ["name", "share"], [["[red]a[/red] :smile:", "12.5%"], ["b", "100.0%"]])
    out = capsys.readouterr().out
    assert "[red]a[/red] :smile:" in out
    assert out.splitlines()[-1].endswith("100.0%")


def test_a_path_is_told_as_seen_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "runs" / "report.html"
    for given in (page, Path("runs/report.html"), Path("runs/../runs/report.html")):
        assert from_here(given) == Path("runs/report.html")
    assert from_here(tmp_path.parent / "report.html") == (tmp_path.parent / "report.html").resolve()


def test_result_lines() -> None:
    from striate.artifacts import Retention

    common: dict[str, Any] = {"label": "tuned", "baseline": "start", "n": 300, "retention": None}
    rows = (
        Difference(
            pack="*", task="visual", kind="visual", metric="*", baseline_score=0.5, score=0.625,
            difference=0.125, low=0.1, high=0.15, **common,
        ),
        Difference(
            pack="a", task="colour", kind="visual", metric="exact", baseline_score=0, score=0,
            difference=0, low=0, high=0, **common,
        ),
        Difference(
            pack="b", task="prose", kind="text", metric="perplexity", baseline_score=3.0, score=3.25,
            difference=0.25, low=0.2, high=0.3, **common,
        ),
    )  # fmt: skip
    assert result_lines(Retention(baseline="start", repetitions=100, rows=rows)) == [
        "each change with its 95% interval; less perplexity is better",
        "tuned   visual: start 50.0% -> 62.5%; +12.5 points [+10.0, +15.0], n = 300",
        "tuned   prose: perplexity of start 20.1 -> 25.8; +28.4% [+22.1, +35.0], n = 300",
    ]


def test_a_missing_interval_is_told_on_the_terminal() -> None:
    from striate.artifacts import Retention
    from striate.cli.views.evaluation_tables import missing_interval_lines

    row = Difference(
        label="tuned", baseline="start", pack="*", task="visual", kind="visual", metric="mean", n=100,
        baseline_score=0.5, score=0.625, difference=0.125, retention=125.0,
        no_interval="2 independent pictures are too few",
    )  # fmt: skip
    retention = Retention(baseline="start", repetitions=100, rows=(row,))
    assert result_lines(retention) == [
        "each change with its 95% interval",
        "tuned   visual: start 50.0% -> 62.5%; +12.5 points "
        "(no 95% interval: 2 independent pictures are too few), n = 100",
    ]
    assert missing_interval_lines({}, retention) == ["no 95% interval of visual: 2 independent pictures are too few"]


def test_check_prints_paths_as_they_are(pack_dir: Path, tmp_path: Path) -> None:
    odd = tmp_path / ("[bold] :smile: " + "long " * 20)
    pack_dir.rename(odd)
    config = tmp_path / "run.yaml"
    config.write_text(f"model: {{path: owner/name}}\ndata: {{train: ['{odd}']}}\nevaluate: {{packs: ['{odd}']}}\n")
    shown = call("check", str(config))
    assert shown.exit_code == 1, shown.output
    assert "not ready: the model 'owner/name' is not on this machine, and the hub can't be reached" in shown.stderr
    assert "hf download owner/name" in shown.stderr
    assert [line for line in shown.stdout.splitlines() if not line.startswith("note ")] == [
        "region    uniform:25%",
        "scorers   block-influence, modality-block-influence",
        "model     owner/name, whose config can't be had here: nothing that follows from it is looked at",
        f"data      {odd}: 13 samples, 12 pictures",
        f"pack      {odd}: 48 items of 4 tasks, 12 pictures",
    ]


def test_module_runs_as_a_script() -> None:
    import subprocess
    import sys

    done = subprocess.run([sys.executable, "-m", "striate", "version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, __version__)
