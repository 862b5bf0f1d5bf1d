"""How many runs of a sweep share a device: what is set, or what the forecast leaves room for."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from striate.errors import ModelError
from striate.pipeline.sweeps import room
from striate.pipeline.sweeps.placement import CountedPlaces
from striate.pipeline.sweeps.plan import Plan
from striate.progress import Silent

BASE = {"model": {"path": "m"}, "data": {"train": ["d"]}}


class Heard(Silent):
    """A progress that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def plan_of(folder: Path, **more: Any) -> Plan:
    (folder / "run.yaml").write_text(yaml.safe_dump(BASE), encoding="utf-8")
    sweep = {"base": "run.yaml", "grid": {"select.region": ["all", "uniform:25%"], "seed": [0, 1]}, **more}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep), encoding="utf-8")
    return Plan(folder / "sweep.yaml")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that lets the device be of a kind."""
    return lambda kind: monkeypatch.setattr(
        "striate.models.io.devices.resolve_device", lambda name: SimpleNamespace(type=kind)
    )


@pytest.mark.parametrize(("largest", "fits"), [(0.05, 8), (0.1, 6), (0.3, 2), (0.7, 1), (1.4, 1)])
def test_the_largest_run_decides(
    largest: float, fits: int, on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("cuda")
    asked = []

    def share(run: Any, *_: Any) -> float:
        asked.append(run.config.select.region)
        return largest if run.config.select.region == "all" else 0.01

    monkeypatch.setattr(room, "_share", share)
    assert room.runs_side_by_side(plan_of(tmp_path), tmp_path, Silent()) == fits
    assert asked == ["all", "uniform:25%"]


def test_one_run_on_a_cpu_and_where_nothing_can_be_forecast(
    on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("cpu")
    assert room.runs_side_by_side(plan_of(tmp_path), tmp_path, Silent()) == 1
    on("cuda")

    def fail(*_: Any) -> float:
        raise ModelError("m is on the hub")

    monkeypatch.setattr(room, "_share", fail)
    heard = Heard()
    assert room.runs_side_by_side(plan_of(tmp_path), tmp_path, heard) == 1
    assert heard.said == ["sweep: one run a device, as memory can't be forecast: m is on the hub"]


def test_a_place_is_taken_until_its_run_is_done() -> None:
    places = CountedPlaces(2)
    first, second = places.take(Future()), places.take(Future())
    assert places.free == 0
    first.set_result(1)
    second.set_exception(ModelError("m"))
    assert places.free == 2


def test_what_is_set_counts(tmp_path: Path) -> None:
    assert room.runs_side_by_side(plan_of(tmp_path, per_device=3), tmp_path, Silent()) == 3


def test_runs_of_one_region_that_take_other_memory_are_all_asked(
    on: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on("cuda")
    asked = []

    def share(run: Any, *_: Any) -> float:
        asked.append(run.config.train.image_tokens)
        return 0.3 if run.config.train.image_tokens == "all" else 0.05

    monkeypatch.setattr(room, "_share", share)
    plan = plan_of(tmp_path, grid={"train.image_tokens": ["all", "region"], "seed": [0, 1]})
    assert room.runs_side_by_side(plan, tmp_path, Silent()) == 2
    assert asked == ["all", "region"]
