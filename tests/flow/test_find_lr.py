"""`striate find-lr`: short trainings of fresh models, kept one by one, and the line to set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from striate.artifacts import RateSearch, read_document
from striate.cli import app
from striate.config import auto_rate
from striate.errors import DivergedError
from striate.pipeline.trials import rate_trials
from striate.pipeline.trials.rate_choice import rates_around


@pytest.fixture
def config(tiny_llava_dir: Path, pack_dir: Path, tmp_path: Path) -> Path:
    path = tmp_path / "RUN.yaml"
    path.write_text(
        f"model: {{path: {tiny_llava_dir}}}\ndata: {{train: [{pack_dir}]}}\nselect: {{region: 'ids:0,2'}}\n"
        "train: {batch_size: 4, max_steps: 12, max_length: 96, lr: 0.01, lora: {r: 2, alpha: 4}}\n"
        "machine: {device: cpu, micro_batch: 4}\n",
        encoding="utf-8",
    )
    return path


def called(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["find-lr", *arguments])


def test_rates_are_tried_and_the_best_is_told(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = called(str(config), "--out", str(out), "--rates", "1e-4,1e-2,1e30", "--by", "loss")
    assert result.exit_code == 0, result.output
    found = read_document(out / "find_lr.json", RateSearch)
    low, good, wild = found.trials
    assert (found.steps, found.whole_steps, found.best, found.open_end) == (12, 12, 0.01, False)
    assert good.measured["loss"] < low.measured["loss"]
    assert (wild.measured, wild.last_loss) == ({}, None)
    assert "training diverged" in wild.diverged
    assert result.stdout.splitlines()[-1] == "--set train.lr=0.01"
    assert "12 of 12 steps each, measured by loss on" in result.stdout
    assert "diverged" in result.stdout
    assert not (out / "checkpoint").exists()
    assert CliRunner().invoke(app, ["report", "--out", str(out)]).exit_code == 0
    section = (out / "report.html").read_text(encoding="utf-8").partition('id="rates"')[2].partition("</section>")[0]
    assert all(part in section for part in ("0.01, best", "diverged", "12 of 12 steps", "<svg", "answer loss"))
    assert section.count("<circle") == 2 * 2
    # What was tried does not hang on the order: the same rate alone is the same training.
    (out / "find_lr.json").unlink()
    assert called("--out", str(out), "--rates", "1e-2,2e-2", "--by", "loss").exit_code == 0
    again = read_document(out / "find_lr.json", RateSearch)
    assert again.trials[0].measured == good.measured


def test_it_goes_on_where_it_was_interrupted(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, trained = tmp_path / "run", []
    whole = rate_trials.RateTrials._trained

    def counted(self: Any, rate: float, steps: int, metric: str) -> Any:
        if len(trained) == 2:
            trained.append(None)
            raise KeyboardInterrupt
        trained.append(rate)
        return whole(self, rate, steps, metric)

    monkeypatch.setattr(rate_trials.RateTrials, "_trained", counted)
    arguments = (str(config), "--out", str(out), "--rates", "1e-3,2e-3,4e-3")
    assert called(*arguments).exit_code != 0
    assert [trial.lr for trial in read_document(out / "find_lr.json", RateSearch).trials] == [1e-3]
    assert called(*arguments).exit_code == 0
    # A probe and the first; then, without a probe, the other two.
    assert trained == [1e-3, 1e-3, None, 2e-3, 4e-3]


def test_it_starts_around_the_rate_that_auto_gives(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[float, ...]] = []

    def search(self: Any, rates: tuple[float, ...], minutes: float, metric: str) -> None:
        asked.append(rates)
        raise KeyboardInterrupt

    monkeypatch.setattr(rate_trials.RateTrials, "search", search)
    called(str(config), "--out", str(tmp_path / "run"), "--set", "train.lr=auto")
    assert asked == [rates_around(auto_rate("lora", 2 / 4, 2))]


def test_every_trial_has_a_fresh_model(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, seen = rate_trials.RateTrials._trained, []

    def watched(self: Any, rate: float, steps: int, metric: str) -> Any:
        load = self.load

        def loaded() -> Any:
            one = load()
            seen.append({name: tensor.clone() for name, tensor in one.model.state_dict().items()})
            return one

        self.load = loaded
        try:
            return whole(self, rate, steps, metric)
        finally:
            self.load = load

    monkeypatch.setattr(rate_trials.RateTrials, "_trained", watched)
    assert called(str(config), "--out", str(tmp_path / "run"), "--rates", "1e-2,2e-2").exit_code == 0
    assert len(seen) == 3
    for one in seen[1:]:
        assert all(torch.equal(tensor, seen[0][name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rates", "1e-4"], "two or more numbers over 0"),
        (["--rates", "1e-4,-1"], "two or more numbers over 0"),
        (["--rates", "nan,1"], "two or more numbers over 0"),
        (["--rates", "x"], "two or more numbers over 0"),
        (["--minutes", "0"], "0.01"),
        (["--by", "bleu"], "exact_match"),
    ],
)
def test_what_is_refused(config: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    result = called(str(config), "--out", str(tmp_path / "run"), *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert not (tmp_path / "run").exists()


def test_diverging_is_told_apart() -> None:
    from striate.training.metrics.metrics_log import _diverged

    assert isinstance(_diverged(3, float("nan"), None), DivergedError)


def test_another_metric_chooses_among_the_same_trials_and_another_budget_begins_anew_and_says_so(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, trained = tmp_path / "run", []
    whole = rate_trials.RateTrials._trained

    def counted(self: Any, rate: float, steps: int, metric: str) -> Any:
        trained.append(rate)
        return whole(self, rate, steps, metric)

    monkeypatch.setattr(rate_trials.RateTrials, "_trained", counted)
    arguments = (str(config), "--out", str(out), "--rates", "1e-3,1e-2")
    assert called(*arguments).exit_code == 0
    first = read_document(out / "find_lr.json", RateSearch)
    trained.clear()
    assert called(*arguments, "--by", "visual_loss").exit_code == 0
    second = read_document(out / "find_lr.json", RateSearch)
    assert (trained, second.metric, second.trials) == ([], "visual_loss", first.trials)
    assert second.best == min(second.trials, key=lambda trial: trial.measured["visual_loss"]).lr
    shown = called(*arguments, "--minutes", "20")
    assert "find-lr: begins anew, 2 earlier trials were of --minutes 10" in shown.output
    assert trained == [1e-3, 1e-3, 1e-2]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--rates", "1e30,1e31"), ("1e+30, the lowest rate: training diverged", "give lower --rates")),
        (
            ("--set", "select.region=none", "--set", "train.method=full"),
            ("region 'none' has no layer that trains at train.lr", "train.projector_lr"),
        ),
        (
            ("--by", "text_exact_match", "--set", "data.validate=8%"),
            ("--by text_exact_match, and of 3 held-out samples all have pictures", "use --by loss or exact_match"),
        ),
    ],
)
def test_trials_that_could_tell_nothing_are_refused(
    config: Path, tmp_path: Path, more: tuple[str, ...], said: tuple[str, ...]
) -> None:
    result = called(str(config), "--out", str(tmp_path / "run"), *more)
    assert result.exit_code == 1
    output = " ".join(result.output.split())
    assert all(part in output for part in said), output
    assert not (tmp_path / "run/find_lr.json").exists()
