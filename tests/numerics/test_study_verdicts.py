"""Verdicts of the region study, on a made-up sweep whose scores were written so that the bars say what they should."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import study_verdicts
import yaml
from study_arms import Study
from study_bars import (
    ALIKE,
    CANT_TELL,
    FAILS,
    HOLDS,
    counts,
    less_kept,
    nearly_all_kept,
    paper_kept,
    text_kept,
)
from study_figures import Figures

from striate.artifacts import (
    Difference,
    EvalRecord,
    Prediction,
    Region,
    SweepRecord,
    SweptRun,
    Trainable,
    TrainRecord,
    ValidationRecord,
    write_document,
    write_lines,
)
from striate.errors import ArtifactError
from striate.selectors.spec.grammar import resolve

LAYERS, SEEN, TEXT = 8, 500, 300
RATES = (0.1, 0.2, 0.4)
SCORED = "scores:block-influence:25%"
# Right answers of 500 in each of two tasks with pictures and of 300 without, a pair a seed, at the arm's best rate.
BEST: dict[str, tuple[float, list[tuple[int, int]]]] = {
    "all": (0.2, [(400, 150)] * 3),
    "uniform:25%": (0.1, [(400, 150), (398, 150), (401, 150)]),
    "uniform:25%+1": (0.2, [(394, 150)] * 3),
    "uniform:50%": (0.2, [(400, 149)] * 3),
    "bottom:25%": (0.2, [(300, 100), (305, 100), (295, 100)]),
    "middle:25%": (0.2, [(430, 150), (431, 150), (429, 150)]),
    "top:25%": (0.2, [(400, 150)] * 3),
    "random:25%@seed1": (0.4, [(300, 150)]),
    SCORED: (0.2, [(290, 150), (350, 150), (410, 150)]),
}
WORDS = {
    "all": {},
    "uniform:25%": {"1": HOLDS, "4": HOLDS},
    # Kept are 98.5% raw and 98% above a floor of 20 of 80 points, with an interval that has 98% in it.
    "uniform:25%+1": {"1": CANT_TELL, "4": HOLDS},
    "uniform:50%": {"2": HOLDS, "4": HOLDS},
    "bottom:25%": {"1": "would not hold", "3a": HOLDS, "4": FAILS},
    "middle:25%": {"1": "would hold", "3a": FAILS, "4": HOLDS},
    "top:25%": {"1": "would hold", "3a": ALIKE, "4": HOLDS},
    # Far below, and of one seed.
    "random:25%@seed1": {"1": "would not hold", "3a": CANT_TELL, "4": HOLDS},
    # Below with its whole interval, and by less than twice the deviation over seeds.
    SCORED: {"1": "would not hold", "3b": ALIKE, "4": HOLDS},
}


def task(pack: str, name: str, right: int, n: int, *, picture: bool = True) -> list[Prediction]:
    fixed: dict[str, Any] = {"pack": pack, "task": name, "metric": "exact", "question": "?"}
    images = [f"{pack}-{name}-{at}.png" if picture else None for at in range(n)]
    return [Prediction(id=str(at), image=image, score=float(at < right), **fixed) for at, image in enumerate(images)]


def answers(seen: int, text: int) -> list[Prediction]:
    pictures = [*task("p", "count", seen, SEEN), *task("p", "read", seen, SEEN), *task("q", "blind", 10, 20)]
    return [*pictures, *task("t", "choose", text, TEXT, picture=False)]


def write_answers(folder: Path, predictions: Sequence[Prediction]) -> None:
    facts: dict[str, Any] = {"visual": 0.0, "text": 0.0, "parameters": 1, "num_layers": LAYERS, "seconds": 1.0}
    record = EvalRecord(label="tuned", model="m", tasks=(), peak_memory_gib=0.0, **facts)
    folder.mkdir(parents=True, exist_ok=True)
    write_document(folder / "tuned.json", record)
    write_lines(folder / "tuned.predictions.jsonl", predictions)


def region(spec: str) -> Region:
    if spec == SCORED:
        return Region(layers=(0, 5), num_layers=LAYERS, spec=spec, selector="scores")
    return resolve(spec, LAYERS)


def trained(spec: str, matches: float) -> TrainRecord:
    told = {"visual_exact_match": matches}
    validation = ValidationRecord(
        visual_samples=9,
        text_samples=0,
        metric="loss",
        first=told,
        last=told,
        best=told,
        best_step=1,
        kept_step=1,
        stopped_early=False,
        seconds=1.0,
    )
    trains = Trainable(method="full", region=region(spec), components=(), layers=())
    facts: dict[str, Any] = {"samples": 9, "steps": 1, "epochs": 1.0, "first_loss": 1.0, "last_loss": 1.0}
    return TrainRecord(trainable=trains, proof="", seconds=1.0, peak_memory_gib=1.0, validation=validation, **facts)


def write_run(
    sweep: Path, spec: str, rate: float, seed: int, predictions: Sequence[Prediction], match: float
) -> SweptRun:
    settings: dict[str, Any] = {"select.region": spec, "train.lr": rate} | ({"seed": seed} if seed else {})
    name = re.sub("[^a-z0-9.@+-]", "-", f"{spec}-{rate}-{seed}")
    own = sweep / "runs" / name
    write_answers(own / "eval", predictions)
    if spec == "all":
        blind = [*task("p", "count", 100, SEEN), *task("p", "read", 100, SEEN), *task("q", "blind", 9, 20)]
        write_answers(own / "eval" / "floor", blind)
    write_document(own / "region.json", region(spec))
    write_document(own / "train.json", trained(spec, match))
    config = yaml.safe_dump({"model": {"path": "m"}, "data": {"train": ["d"]}, "train": {"lr": rate}, "seed": seed})
    # The sweep's own copy of a config stands in for a run's.
    place = own / "config.yaml" if seed else sweep / "configs" / f"{name}.yaml"
    place.parent.mkdir(exist_ok=True)
    place.write_text(config, encoding="utf-8")
    return SweptRun(name=name, settings=settings, state="done")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    runs = []
    for spec, (best, seeds) in BEST.items():
        for rate in RATES:
            # At another rate than its own best an arm scores half; held out it scores lower the farther that is.
            right = seeds[0] if rate == best else (200, 150)
            runs.append(write_run(folder, spec, rate, 0, answers(*right), 0.9 - abs(rate - best)))
        runs += [write_run(folder, spec, best, seed, answers(*seeds[seed]), 0.9) for seed in range(1, len(seeds))]
    settings = {"select.region": "random:25%@seed1", "train.lr": 0.4, "seed": 1}
    runs.append(SweptRun(name="lost", settings=settings, state="failed", error="out of memory"))
    runs.append(SweptRun(name="elsewhere", settings={**settings, "seed": 2}, state="done"))
    record = SweepRecord(varied=("select.region", "train.lr"), chosen_by="visual_exact_match", runs=tuple(runs))
    write_document(folder / "sweep.json", record)
    return folder


@pytest.fixture(scope="module")
def told(sweep: Path) -> dict[str, Any]:
    return Figures(Study(sweep)).told()


def test_every_word_is_the_one_that_was_built_in(told: dict[str, Any]) -> None:
    assert {arm["arm"]: arm["words"] for arm in told["arms"]} == WORDS


def test_rates_are_those_of_held_out_samples_and_what_is_missing_is_said(told: dict[str, Any]) -> None:
    arms = {arm["arm"]: arm for arm in told["arms"]}
    assert {name: float(arm["rate"]) for name, arm in arms.items()} == {name: best for name, (best, _) in BEST.items()}
    assert {name: arm["edge"] for name, arm in arms.items() if arm["edge"]} == {
        "uniform:25%": "lowest",
        "random:25%@seed1": "highest",
    }
    assert arms["random:25%@seed1"]["before_it_counts"] == [
        "1 seed of 3",
        "the best rate is the highest that was tried",
    ]
    assert arms["top:25%"]["before_it_counts"] == []
    assert [arm["seeds"] for arm in arms.values()][:2] == [[0, 1, 2]] * 2
    assert told["left_out"] == ["lost: failed: out of memory", "elsewhere: done, and not all of its files are here"]


def test_a_task_without_ten_points_above_its_floor_is_in_no_mean(told: dict[str, Any]) -> None:
    assert {task["task"]: task["counts"] for task in told["tasks"]} == {"count": True, "read": True, "blind": False}
    arm = next(arm for arm in told["arms"] if arm["arm"] == "bottom:25%")
    assert arm["visual"]["mean"] == pytest.approx(60)
    assert arm["visual"]["sd"] == pytest.approx(1)
    assert (arm["visual_kept"]["items"], arm["visual_kept"]["pictures"]) == (2 * SEEN, 2 * SEEN)
    assert arm["visual_kept"]["kept"] == pytest.approx(75)
    assert arm["above_floor"]["kept"] == pytest.approx(100 * 40 / 60)
    assert arm["text_kept"]["kept"] == pytest.approx(100 * 100 / 150)
    assert arm["against_uniform"]["points"] == pytest.approx(100 * (900 - 1199) / 1500)


def test_one_rate_for_all_would_have_said_something_else(told: dict[str, Any]) -> None:
    one = told["one_rate"]
    assert (one["rate"], one["seeds"], one["claim_1"]) == ("0.2", [0], FAILS)
    assert one["kept"]["kept"] == pytest.approx(50)
    rates = {arm["arm"]: [row["visual"]["mean"] for row in arm["scores"]] for arm in told["rates"]}
    assert rates["uniform:25%"] == pytest.approx([80, 40, 40])
    assert rates["all"] == pytest.approx([40, 80, 40])


def study_held_out(sweep: Path, run: str) -> float:
    return float(
        json.loads((sweep / "runs" / run / "train.json").read_text())["validation"]["last"]["visual_exact_match"]
    )


def test_what_is_printed_and_written(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["study_verdicts.py", str(sweep), "--out", str(tmp_path / "out")])
    assert study_verdicts.main() == 0
    shown = capsys.readouterr().out
    assert "- Claim 1 (keeps nearly all visual skill): uniform:25% **holds**†; uniform:25%+1 **can't tell**;" in shown
    assert (
        "In no mean, as all is not 10 points above its floor there, or as there are fewer than 20 items: q/blind."
        in shown
    )
    assert "| uniform:25% | 80.0 / 50.0* | 40.0 / 50.0 | 40.0 / 50.0 |" in shown
    assert "- At one rate for all, 0.2, the best of all: claim 1: uniform:25% **does not hold** (kept 50.0%" in shown
    assert json.loads((tmp_path / "out" / "verdicts.json").read_text())["one_rate"]["rate"] == "0.2"
    drawn = (tmp_path / "out" / "verdicts.svg").read_text()
    assert drawn.count("<circle") == len(BEST) - 1
    assert "nan" not in drawn
    assert str(sweep) not in shown + drawn
    runs = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    [best] = [run for run in runs if run["settings"]["select.region"] == "top:25%" and run["seed"] == 1]
    assert (best["layers"], best["rate"], best["held_out"]) == ([6, 7], "0.2", study_held_out(sweep, best["run"]))


def test_without_all_layers_or_their_floor_it_says_what_is_missing(sweep: Path, tmp_path: Path) -> None:
    record = SweepRecord.model_validate_json((sweep / "sweep.json").read_text())
    others = [run for run in record.runs if run.settings["select.region"] != "all"]
    (tmp_path / "runs").symlink_to(sweep / "runs")
    (tmp_path / "configs").symlink_to(sweep / "configs")
    write_document(tmp_path / "sweep.json", record.model_copy(update={"runs": tuple(others)}))
    with pytest.raises(ArtifactError, match="no finished run of all, which others are held against"):
        Figures(Study(tmp_path))
    with pytest.raises(ArtifactError):
        Study(tmp_path / "elsewhere")


def row(**changes: Any) -> Difference:
    names = {"label": "a", "baseline": "b", "pack": "*", "task": "visual", "kind": "visual", "metric": "mean"}
    figures = {"n": 9, "baseline_score": 0.8, "score": 0.8, "difference": 0.0, "low": -0.01, "high": 0.01}
    kept = {"retention": 99.5, "retention_low": 98.2, "retention_high": 100.4, "above_floor": 98.5}
    return Difference.model_validate(names | figures | kept | changes)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, HOLDS),
        ({"retention": 98.9}, CANT_TELL),
        ({"above_floor": 97.9}, CANT_TELL),
        ({"above_floor": None}, CANT_TELL),
        ({"retention_low": 97.9}, CANT_TELL),
        ({"retention": 97.0, "retention_low": 96.0, "retention_high": 97.9}, FAILS),
        ({"retention_low": None, "retention_high": None}, CANT_TELL),
    ],
)
def test_the_bar_of_claim_1(changes: dict[str, Any], word: str) -> None:
    assert nearly_all_kept(row(**changes)) == word


@pytest.mark.parametrize(
    ("layers", "of", "changes", "word"),
    [
        # The paper's 2 of 32 keep 96.5%.
        (2, 30, {"retention": 96.5, "retention_low": 95.5, "above_floor": 95.5}, HOLDS),
        (2, 30, {"retention": 96.5, "retention_low": 95.4, "above_floor": 95.5}, CANT_TELL),
        (2, 30, {"retention": 96.5, "retention_low": 95.5, "above_floor": 95.4}, CANT_TELL),
        (2, 30, {"retention": 93.0, "retention_low": 92.0, "retention_high": 95.4}, FAILS),
        (4, 30, {"retention": 96.0, "retention_low": 95.0, "retention_high": 96.9}, FAILS),
        # Of half, and of six, the bars of all claims are the lower ones.
        (15, 30, {"retention": 98.4, "retention_low": 98.0, "above_floor": 98.0}, HOLDS),
        (15, 30, {"retention": 98.3, "retention_low": 98.0, "above_floor": 98.0}, CANT_TELL),
        (6, 30, {"retention": 98.4, "retention_low": 97.9, "above_floor": 98.0}, CANT_TELL),
        (12, 30, {}, ""),
    ],
)
def test_the_bar_of_claim_2(layers: int, of: int, changes: dict[str, Any], word: str) -> None:
    assert paper_kept(row(**changes), layers, of) == word


def test_the_bars_of_claims_3_and_4_and_of_tasks() -> None:
    below, above = row(difference=-0.05, low=-0.08, high=-0.02), row(difference=0.05, low=0.02, high=0.08)
    assert [less_kept(below, 1.0), less_kept(above, 1.0), less_kept(below, 2.5)] == [HOLDS, FAILS, ALIKE]
    assert [less_kept(row(difference=-0.009), 0.1), less_kept(below, None), less_kept(None, 1.0)] == [
        ALIKE,
        CANT_TELL,
        CANT_TELL,
    ]
    nats = [
        row(metric="perplexity", difference=value, low=value - 0.02, high=value + 0.02) for value in (-0.01, 0.01, 0.1)
    ]
    assert [text_kept(row(), [one]) for one in nats] == [HOLDS, CANT_TELL, FAILS]
    assert [text_kept(below, []), text_kept(above, []), text_kept(None, [])] == [FAILS, HOLDS, CANT_TELL]
    assert [counts(30.0, 20.0, 20), counts(29.9, 20.0, 20), counts(30.0, 20.0, 19)] == [True, False, False]
