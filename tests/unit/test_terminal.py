"""What the command line shows in a pipe, without colours, quietly, and to a shell that completes words."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Task
from typer.main import get_command
from typer.testing import CliRunner

from striate.cli import app, console, main
from striate.cli.console import OUT, QUIET, RichProgress, SafeConsole, show_table
from striate.cli.views.word_wrap import between_words
from striate.progress import Silent, track_bytes, warn
from striate.version import __version__

VERBS: dict[str, Any] = getattr(get_command(app), "commands", {})


@pytest.fixture(autouse=True)
def _aloud() -> Any:
    """Leave no test quiet that another one has made so."""
    token = QUIET.set(False)
    yield
    QUIET.reset(token)


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Return the exit code of the program itself, called as a shell does."""
    monkeypatch.setattr(sys, "argv", ["striate", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def test_the_version_is_an_option_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("arguments", ["--quiet version", "version --quiet", "version --debug --quiet"])
def test_quiet_may_stand_anywhere_and_keeps_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str
) -> None:
    assert typed(monkeypatch, *arguments.split()) == 0
    assert QUIET.get()
    assert capsys.readouterr().out == f"{__version__}\n"


def test_quiet_keeps_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(monkeypatch, "ls", "scorer", "--quiet") == 1
    assert "did you mean 'scorers'?" in capsys.readouterr().err


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_leaves_out_bars_and_lines_but_no_warning(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    QUIET.set(quiet)
    progress = RichProgress()
    with progress.track("analyze", 2) as advance:
        advance(2)
        progress.note("2 tok/s")
    progress.say("select: layers 0, 2 of 4")
    warn(progress, "no effect: train.lora.r (train.method is full)")
    shown = capsys.readouterr().out
    assert ("analyze" in shown, "select: layers" in shown) == (not quiet, not quiet)
    assert "no effect: train.lora.r (train.method is full)\n" in shown


def test_a_warning_is_a_line_where_nothing_tells_them_apart() -> None:
    said = []

    class Lines(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    warn(Lines(), "no effect")
    assert said == ["no effect"]


@pytest.mark.parametrize("arguments", ["ls scorers", "ls selectors", "ls tasks", "ls families", "--help"])
def test_a_pipe_has_plain_text_in_80_columns(arguments: str) -> None:
    plain_lines(CliRunner(env={"NO_COLOR": "1"}).invoke(app, arguments.split()).stdout)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verbs_help_has_80_columns(verb: str) -> None:
    plain_lines(CliRunner().invoke(app, [verb, "--help"]).stdout)


def test_every_verb_that_tells_something_tells_it_as_json() -> None:
    """chat and demo tell nothing that ends."""
    assert {verb for verb, command in VERBS.items() if not any("--json" in each.opts for each in command.params)} == {
        "chat",
        "demo",
    }


@pytest.mark.parametrize("arguments", ["ls scorers", "ls tasks", "ls families", "version"])
def test_lists_are_json_too(arguments: str) -> None:
    found = json.loads(CliRunner().invoke(app, [*arguments.split(), "--json"]).stdout)
    assert found == {"version": __version__} if arguments == "version" else len(found) > 10


@pytest.mark.parametrize(("words", "verbose"), [("version --verbose", True), ("version", False)])
def test_verbose_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch, words: str, verbose: bool) -> None:
    assert typed(monkeypatch, *words.split()) == 0
    assert console.VERBOSE.get() is verbose


def test_the_list_of_verbs_has_whole_sentences() -> None:
    listed = CliRunner().invoke(app, ["--help"]).stdout.partition("Commands:")[2]
    assert len(listed.split("\n")) > len(VERBS)
    assert [line for line in listed.splitlines() if line.endswith("...")] == []


def plain_lines(shown: str) -> None:
    """Check text that a person reads in 80 columns: no line is longer, none has a control character."""
    assert shown.strip()
    assert not re.search(r"[^\x20-\x7e\n\u00a0-\uffff]", shown)
    assert [line for line in shown.splitlines() if len(line.rstrip()) > 80] == []


def test_a_wide_table_is_folded_between_words(capsys: pytest.CaptureFixture[str]) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    show_table("", ["model", "task", "score", "what it is"], [["tuned", "ocr", "12.5%", words]])
    shown = capsys.readouterr().out
    plain_lines(shown)
    assert set(words.split()) <= set(shown.split())


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_a_terminal_without_colours_gets_none(no_color: str, coloured: bool) -> None:
    """Bold and dim, which are no colours, may stay."""
    main_end, program_end = pty.openpty()
    environment = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm-256color", "COLUMNS": "80"}
    command = [sys.executable, "-m", "striate", "ls", "nothing"]
    done = subprocess.run(command, stdout=program_end, stderr=program_end, env=environment, check=False)
    shown = os.read(main_end, 4096).decode()
    os.close(main_end)
    os.close(program_end)
    assert done.returncode == 1
    assert "unknown list 'nothing'" in shown
    codes = {code for part in re.findall(r"\x1b\[([\d;]*)m", shown) for code in part.split(";")}
    assert bool(codes & {str(code) for code in (*range(30, 50), *range(90, 108))}) == coloured, codes


def test_the_console_has_80_columns_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert Console(file=io.StringIO()).width == 80
    assert not OUT.is_terminal


@pytest.mark.parametrize(
    ("typed_so_far", "offered"),
    [
        ("striate ana", {"analyze"}),
        ("striate re", {"report", "remove-layers"}),
        ("striate prune --ov", {"--overwrite"}),
    ],
)
def test_bash_completes_verbs_and_options(typed_so_far: str, offered: set[str], tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "_STRIATE_COMPLETE": "complete_bash",
        "COMP_WORDS": typed_so_far,
        "COMP_CWORD": str(len(typed_so_far.split()) - 1),
    }
    program = tmp_path / "striate"
    program.write_text("from striate.cli import main\nmain()\n", encoding="utf-8")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, env=environment, check=True)
    assert set(done.stdout.split()) == offered
    assert done.stderr == ""


def test_a_pipe_has_a_line_of_progress_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No bar moves there; every minute, here at once, it says how far it is and what is left."""
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    progress = RichProgress()
    with progress.track("train", 4) as advance:
        progress.note("loss 1.234, 99 tok/s, 2.0 GiB")
        advance(1)
        advance(1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train ")]
    assert re.fullmatch(r"train 2/4, 0:00:0\d, 0:00:\d\d left, loss 1.234, 99 tok/s, 2.0 GiB", lines[1])


def test_steps_of_an_earlier_training_say_nothing_of_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(Task, "elapsed", property(lambda task: 0.0 if task.completed < 91 else 60.0))
    with RichProgress().track("train", 100) as advance:
        advance(90)
        advance(1)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("train 91")]
    assert lines == ["train 91/100, 0:01:00, 0:09:00 left"]


def test_a_bar_that_is_done_has_no_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    with RichProgress().track("heal", 2) as advance:
        RichProgress().note("")
        advance(2)
    assert re.search(r"2/2 0:00:0\d *$", capsys.readouterr().out)
    with RichProgress().track("heal", 2) as advance:
        advance(1)
    assert re.search(r"1/2 0:00:0\d left ", capsys.readouterr().out)


def test_what_goes_on_stands_in_below_a_line_that_does() -> None:
    text = "error: one two three four\n  allowed: one two three four"
    assert between_words(text, 16).plain.split("\n") == [
        "error: one two",
        "three four",
        "  allowed: one",
        "    two three",
        "    four",
    ]


def test_bytes_have_units(capsys: pytest.CaptureFixture[str]) -> None:
    with track_bytes(RichProgress(), "fetch weights", 92_871_040) as advance:
        advance(92_871_040)
    assert "92.9/92.9 MB" in capsys.readouterr().out
    with track_bytes(Silent(), "fetch weights", 3) as advance:
        advance(3)


@pytest.mark.parametrize(("terminal", "lines"), [(True, 2), (False, 1)])
def test_prose_is_broken_between_words_on_a_terminal_alone(
    terminal: bool, lines: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = f"a report is in {'/a' * 50}"
    shown = SafeConsole()
    shown.file, shown._force_terminal, shown.width = io.StringIO(), terminal, 80
    shown.print(said, soft_wrap=True)
    wrapped = re.sub(r"\x1b\[[\d;]*m", "", shown.file.getvalue()).splitlines()
    assert len(wrapped) == lines
    # A path is longer than a line, and whole.
    assert [line for line in wrapped if line.rstrip().endswith("/a" * 50)] == wrapped[-1:]
    shown.file = io.StringIO()
    shown.print(said, soft_wrap=True, no_wrap=True)
    assert shown.file.getvalue() == f"{said}\n"


@pytest.mark.parametrize("asked", ["", "info"])
def test_libraries_that_are_imported_later_are_quiet_too(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", asked)
    if not asked:
        monkeypatch.delenv("TRANSFORMERS_VERBOSITY")
    console.quiet_libraries()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == (asked or "error")
