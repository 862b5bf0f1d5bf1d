"""The boundary of the command line: what nobody foresaw ends as one line, with a report and an exit code of its own."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from striate.cli import app, boundary, main
from striate.cli import info_verbs as verbs
from striate.cli.boundary import BUG
from striate.cli.console import ERR, OUT, RichProgress, show_table
from striate.errors import DataError, StriateError

ATTACK = "a\x1b[31m\x1b]0;title\x07\x9b2J\r\u202egnp\x7f"


class OutOfMemoryError(RuntimeError):
    """As torch's."""


class DistBackendError(RuntimeError):
    """As torch's."""


def ended(error: BaseException, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Return how a verb ends within which `error` is raised."""

    def fail() -> None:
        raise error

    monkeypatch.setattr(verbs, "_listings", fail)
    return CliRunner().invoke(app, [*arguments, "ls", "scorers"])


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "striate"


@pytest.mark.parametrize(
    "error",
    [
        RecursionError("too deep"),
        KeyError("x\n\x1b[31m"),
        AssertionError(),
        FileNotFoundError(2, "none"),
        ValueError("é" * 999),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_bug_is_one_line_and_a_report(error: Exception, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ended(error, monkeypatch)
    assert shown.exit_code == BUG == 70
    assert isinstance(shown.exception, SystemExit)
    line, nothing = shown.stderr.split("\n")
    assert nothing == ""
    assert line.startswith(f"bug: {type(error).__name__}: ")
    assert "\x1b" not in line
    [report] = state.iterdir()
    assert str(report) in line
    text = report.read_text()
    assert all(part in text for part in ("Traceback", type(error).__name__, "striate ", "torch ", "Python "))
    assert "\x1b" not in text


def test_debug_shows_the_traceback(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ended(KeyError("x"), monkeypatch, "--debug")
    assert "Traceback (most recent call last)" in shown.stderr
    assert "raise error\nKeyError: 'x'" in shown.stderr
    assert shown.exit_code == BUG
    assert "Traceback" in ended(DataError("no"), monkeypatch, "--debug").stderr
    assert "Traceback" not in ended(KeyError("x"), monkeypatch).stderr


def test_debug_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["striate", "ls", "nothing", "--debug"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_argument_that_is_no_text(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["striate", "check", "a\udcff.yaml"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err.startswith(r"error: 'a\udcff.yaml' is not UTF-8 text")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "full", "/x/y"), "No space left on device: /x/y"),
        (OSError(errno.EFBIG, "large", "/x/y"), "File too large: /x/y"),
        (PermissionError(errno.EACCES, "no", "/x/y"), "Permission denied: /x/y"),
        (OSError(errno.EROFS, "no", "/x/y"), "Read-only file system: /x/y"),
        (OSError(errno.ENAMETOOLONG, "no", "n" * 5000), "File name too long: nnn"),
        (OSError(errno.EMFILE, "no"), "Too many open files"),
        (RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"), "No space left on"),
        (MemoryError(), "not enough memory: MemoryError"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "not enough memory: CUDA out of memory"),
        (ValueError("Image features and image tokens do not match, tokens: 5"), "the processor and the model do not"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "not enough memory: Default"),
    ],
)  # fmt: skip
def test_what_is_no_bug_of_striate_is_an_error(
    error: Exception, said: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = ended(error, monkeypatch)
    assert shown.exit_code == 1
    lines = shown.stderr.split("\n")
    assert lines[0].startswith(f"error: {said}")
    assert len(lines[0]) <= 310
    assert lines[1].startswith("  allowed: ")
    assert lines[2].startswith("  next:    ")
    assert not state.exists()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (
            RuntimeError(
                "[/x/gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer. This"
            ),
            "[/x/gloo/transport/tcp/pair.cc:537] Read error",
        ),
        (
            DistBackendError(
                "NCCL error in: x.cpp:1, remote process exited\nncclRemoteError: x\nLast error:\nsocket closed"
            ),
            "socket closed",
        ),
    ],
)
def test_a_lost_process_is_told_where_there_are_several(
    error: Exception, cause: str, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(boundary, "_joined", lambda: True)
    shown = ended(error, monkeypatch)
    assert shown.exit_code == 1
    assert shown.stderr.startswith(
        f"error: another process of this training may have ended, or can't be reached: {cause}"
    )
    assert "the same command goes on from the last checkpoint" in shown.stderr
    monkeypatch.setattr(boundary, "_joined", lambda: False)
    assert ended(error, monkeypatch).exit_code == BUG


@pytest.mark.parametrize(
    "text", ["NCCL error in: x, invalid usage\nDuplicate GPU detected", "xet: Connection reset by peer (os error 104)"]
)
def test_an_error_of_its_own_is_no_lost_process(text: str, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boundary, "_joined", lambda: True)
    assert "another process" not in ended(RuntimeError(text), monkeypatch).stderr


def test_a_cause_that_the_machine_lacks_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("writer failed")
    error.__cause__ = OSError(errno.ENOSPC, "full", "/x")
    assert ended(error, monkeypatch).stderr.startswith("error: No space left on device: /x")


def test_what_a_person_can_fix_and_what_click_raises_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = ended(DataError("given", "allowed", "do"), monkeypatch)
    assert (shown.exit_code, shown.stderr) == (1, "error: given\n  allowed: allowed\n  next:    do\n")
    assert ended(KeyboardInterrupt(), monkeypatch).exit_code == 130
    assert ended(typer.Exit(3), monkeypatch).exit_code == 3
    assert ended(typer.BadParameter("x"), monkeypatch).exit_code == 2


@pytest.mark.skipif(os.name != "posix", reason="nothing is held there")
def test_a_report_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "file"))
    shown = ended(KeyError("x"), monkeypatch)
    assert "no folder took its report" in shown.stderr
    assert shown.exit_code == BUG


def test_no_text_of_a_file_reaches_the_terminal_as_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.text import Text

    OUT.print(f"x {ATTACK} y", soft_wrap=True)
    OUT.print(Text(ATTACK), style="bold")
    ERR.print(str(StriateError(ATTACK, ATTACK, ATTACK)))
    show_table(ATTACK, [ATTACK, "n"], [[ATTACK, "1"]])
    RichProgress().say(ATTACK)
    with RichProgress().track(f"[bold]{ATTACK}", 2) as advance:
        advance(1)
    shown = capsys.readouterr()
    text = shown.out + shown.err
    assert "[bold]a" in text
    assert not set(text) & set("\x1b\x07\x9b\r\u202e\x7f")
    assert r"a\x1b[31m\x1b]0;title" in text
