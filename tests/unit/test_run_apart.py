"""Parts of a benchmark in processes of their own: the last line, the error, the time."""

from __future__ import annotations

from apart import run_apart


def test_the_last_line_is_taken() -> None:
    line = run_apart("a", ["-c", 'print(\'by the way\'); print(\'{"name": "a", "ms": 2.5}\')'], 60)
    assert line == {"name": "a", "ms": 2.5, "process_s": line["process_s"]}


def test_an_error_is_told_by_its_last_line() -> None:
    line = run_apart("a", ["-c", "raise ImportError('no kernels')"], 60)
    assert (line["name"], line["error"]) == ("a", "ImportError: no kernels")
    assert run_apart("a", ["-c", "raise SystemExit(3)"], 60)["error"] == "ended with 3"


def test_time_is_limited() -> None:
    assert run_apart("a", ["-c", "import time; time.sleep(60)"], 0.2)["error"] == "not done within 0.2 s"
    assert run_apart("a", ["-c", ""], 0.0)["error"] == "not begun: the time was over"
