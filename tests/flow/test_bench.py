"""`striate bench`: models in turns, what is kept in the run, and what the page makes of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from striate.artifacts import Bench, read_document
from striate.cli import app
from striate.models.io.load import Loaded
from striate.pruning import generation_speed
from striate.stages import bench as bench_stage
from striate.stages.bench import BenchSettings, bench
from striate.stages.report import report

QUICK = ("--prompt-tokens", "24", "--new-tokens", "3", "--repeats", "2")


def striate(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})


@pytest.fixture
def run(run_of_three: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_of_three, tmp_path / "run"))


def test_a_run_is_measured_and_keeps_it_and_the_page_shows_it(run: Path, tiny_llava_dir: Path) -> None:
    shown = striate("bench", run, tiny_llava_dir, *QUICK)
    assert shown.exit_code == 0, shown.output
    kept = read_document(run / "speed.json", Bench)
    assert list(kept.models) == ["start", "tuned", "pruned", tiny_llava_dir.name]
    assert list(kept.ratios) == ["tuned", "pruned", tiny_llava_dir.name]
    assert [record.num_layers for record in kept.models.values()] == [4, 4, 3, 4]
    assert all((record.prompt_tokens, record.repeats) == (24, 2) for record in kept.models.values())
    pruned = kept.models["pruned"]
    assert pruned.prefill_tokens_per_second == pytest.approx(24 / pruned.prefill_seconds.median)
    assert pruned.weights_gib < kept.models["tuned"].weights_gib
    names = [line.split()[0] for line in shown.stdout.splitlines() if line.startswith(tuple(kept.models))]
    assert names == [*kept.models, *kept.ratios]
    ratio = kept.ratios["pruned"].decode
    told = f"decode {ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f}) times as fast as start"
    assert told in shown.stdout
    page = report(run).read_text(encoding="utf-8")
    assert "Speed on one machine" in page
    assert f"{ratio.median:.2f} ({ratio.low:.2f}–{ratio.high:.2f})" in page
    assert striate("bench", run, *QUICK, "--models", "start,pruned", "--json").exit_code == 0
    assert list(read_document(run / "speed.json", Bench).models) == ["start", "pruned"]


def test_models_without_a_run_are_measured_and_kept_nowhere(tiny_llava_dir: Path, tmp_path: Path) -> None:
    shown = striate("bench", tiny_llava_dir, *QUICK, "--json")
    assert shown.exit_code == 0, shown.output
    measured = Bench.model_validate_json(shown.stdout)
    assert (list(measured.models), measured.ratios) == ([tiny_llava_dir.name], {})
    assert not list(tmp_path.rglob("speed.json"))


def test_models_take_turns_and_ratios_are_of_rounds(
    tiny_llava: Loaded, second_llava: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[Any] = []
    seconds = {id(tiny_llava.model): iter([9.0, 4.0, 6.0, 4.0]), id(second_llava.model): iter([9.0, 2.0, 2.0, 4.0])}
    real = generation_speed.SpeedTest._run

    def run(self: Any) -> tuple[float, float]:
        real(self)
        turns.append(self._model)
        taken = next(seconds[id(self._model)]) if len(turns) > 4 else 1.0
        return taken, 2 * taken

    monkeypatch.setattr(generation_speed.SpeedTest, "_run", run)
    names = {"first": lambda: tiny_llava, "second": lambda: second_llava}
    for iterator in seconds.values():
        next(iterator)
    measured = bench(names, BenchSettings(prompt_tokens=24, new_tokens=2, repeats=3))
    first, second = tiny_llava.model, second_llava.model
    # Each alone, each to warm up, and three rounds in turns.
    assert turns == [first, second, first, second, *3 * [first, second]]
    assert measured.models["first"].prefill_seconds.model_dump() == {"median": 4.0, "low": 4.0, "high": 6.0}
    assert measured.ratios["second"].prefill.model_dump() == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert measured.ratios["second"].decode.model_dump() == {"median": 2.0, "low": 1.0, "high": 3.0}


@pytest.fixture
def second_llava(llava_builder: Callable[..., Loaded]) -> Loaded:
    return llava_builder(seed=1)


def test_on_a_cpu_the_peak_is_that_of_each_model_alone(
    tiny_llava: Loaded, second_llava: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = iter([1.0, 3.0, *8 * [50.0]])
    monkeypatch.setattr(generation_speed, "reset_resident_peak", lambda: True)
    monkeypatch.setattr(generation_speed, "resident_peak_gib", lambda: next(peaks))
    names = {"first": lambda: tiny_llava, "second": lambda: second_llava}
    measured = bench(names, BenchSettings(prompt_tokens=24, new_tokens=2, repeats=1))
    assert [record.peak_memory_gib for record in measured.models.values()] == [1.0, 3.0]


def test_without_a_number_the_prompt_is_as_long_as_all_models_take(
    tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_stage, "context_limit", lambda model: 40)
    measured = bench({"one": lambda: tiny_llava}, BenchSettings(new_tokens=5, repeats=1))
    assert measured.models["one"].prompt_tokens == 35


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["RUN", "--models", "pruned,tunde"], "--models names 'tunde', which no run here has"),
        (["nowhere/at/all"], "no run or model at 'nowhere/at/all'"),
        (["RUN", "--prompt-tokens", "9000"], "9000 tokens to read and 3 to write are more than a model takes"),
        (["RUN", "--prompt-tokens", "1"], "1 tokens to read, and a picture with the shortest question takes 2"),
        (["FULL"], "Is a directory"),
    ],
)
def test_what_can_not_be_measured_is_one_message(run: Path, words: list[str], said: str) -> None:
    if words == ["FULL"]:
        (run / "speed.json").mkdir()
    shown = striate("bench", *(str(run) if word in ("RUN", "FULL") else word for word in words), *QUICK[2:])
    assert shown.exit_code == 1
    assert said in shown.stderr
    assert "Traceback" not in shown.output
    assert not (run / "speed.json").is_file()
