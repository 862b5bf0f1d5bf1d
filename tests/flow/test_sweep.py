"""`striate sweep`: a grid of runs into one table; failures, choices by held-out samples, and going on."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import pytest
import yaml
from places_here import Here
from typer.testing import CliRunner

from striate.artifacts import EvalRecord, SweepRecord, read_document
from striate.cli import app
from striate.config import RunConfig
from striate.pipeline.sweeps import sweep as module
from striate.pipeline.sweeps.arm_flow import ArmFlow
from striate.pipeline.sweeps.placement import LocalPlacement, told
from striate.runs.former_defaults import FORMER
from striate.storage.fingerprints import fingerprint_of
from striate.storage.held_folders import alone_in


@pytest.fixture
def swept(run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, Path]]:
    """A function that writes a sweep and runs it in this process; returns the call's result and the folder."""
    monkeypatch.setattr(module, "_places", lambda *_: Here())
    out = tmp_path / "sweep"

    def run(*options: str, **settings: Any) -> tuple[Any, Path]:
        file = tmp_path / "SWEEP.yaml"
        file.write_text(yaml.safe_dump({"base": str(run_yaml), **settings}, sort_keys=False), encoding="utf-8")
        return CliRunner().invoke(app, ["sweep", str(file), "--out", str(out), *options]), out

    return run


STUDY = Path(__file__).parents[2] / "configs" / "study"
SHORT = {"train.max_steps": 2, "prune.remove": 0}


def test_a_grid_becomes_one_table_and_a_failure_stops_no_other(swept: Callable[..., tuple[Any, Path]]) -> None:
    grid = {"select.region": ["all", "uniform:50%"], "seed": [0, 1]}
    asked: dict[str, Any] = {"set": SHORT, "grid": grid, "compare": {"select.region": "all"}}
    broken = [{"name": "wild", "set": {"train.lr": 1e30}}]
    result, out = swept(**asked, runs=broken)
    assert result.exit_code == 1
    assert "1 of 5 runs failed" in result.output
    # All parts of the table, and what its marks mean.
    for part in ("region", "visual", "seconds", "= 100%: what the others are held against"):
        assert part in result.output
    record = read_document(out / "sweep.json", SweepRecord)
    assert [run.state for run in record.runs] == ["done"] * 4 + ["failed"]
    assert "diverged" in record.runs[-1].error
    whole, half = record.groups
    assert (whole.settings, whole.seeds, whole.compared) == ({"select.region": "all"}, (0, 1), True)
    assert (half.settings, half.seeds, half.compared) == ({"select.region": "uniform:50%"}, (0, 1), False)
    assert whole.visual is not None
    assert whole.visual.kept in (None, 100.0)
    assert len(whole.visual.scores) == 2
    assert whole.visual.mean == pytest.approx(sum(whole.visual.scores) / 2)
    # The start model answers once a seed, by which items are drawn, and before a run trains; no layers are scored, as
    # nothing follows.
    logs = {file.stem: file.read_text(encoding="utf-8") for file in (out / "logs").iterdir()}
    taken = [name for name, log in logs.items() if "evaluate:start: taken over from" in log]
    assert sorted(taken) == ["region=uniform-50%,seed=0", "region=uniform-50%,seed=1", "wild"]
    assert not list(out.glob("runs/*/scores.json"))
    page = (out / "sweep.html").read_text(encoding="utf-8")
    assert all(part in page for part in ("5 runs: 4 done, 1 failed", "diverged", "uniform:50%", "= 100%"))

    again, _ = swept(**asked)
    assert again.exit_code == 0, again.output
    assert f"1 in {out / 'runs'} are not asked for now, and stay: wild" in again.output.replace("\n", "")
    second = read_document(out / "sweep.json", SweepRecord)
    assert [group.model_dump() for group in second.groups] == [group.model_dump() for group in record.groups]
    assert "train: up to date" in (out / "logs" / "region=all,seed=0.log").read_text(encoding="utf-8")

    asked = {**asked, "set": {**SHORT, "evaluate.limit": 4}, "grid": {"select.region": ["all"], "seed": [0]}}
    changed, _ = swept(**asked)
    assert (changed.exit_code, "seed=0: evaluate.limit: 8 -> 4" in changed.output.replace("\n", "")) == (1, True)
    assert read_document(out / "sweep.json", SweepRecord) == second
    over, _ = swept("--overwrite", **asked)
    assert over.exit_code == 0, over.output
    (only,) = read_document(out / "sweep.json", SweepRecord).groups
    assert (only.visual is not None and only.visual.n, only.seeds) == (4, (0,))


def test_what_is_held_against_is_asked_without_pictures(swept: Callable[..., tuple[Any, Path]]) -> None:
    grid = {"select.region": ["all", "uniform:50%"], "seed": [0, 1]}
    settings = {**SHORT, "train.max_steps": 1, "evaluate.models": ["tuned"], "evaluate.baseline": "tuned"}
    asked: dict[str, Any] = {"set": {**settings, "evaluate.floor": True}, "grid": grid}
    first, out = swept(**asked)
    assert first.exit_code == 0, first.output
    assert not list(out.glob("runs/*/eval/floor/*"))
    again, _ = swept(**asked, compare={"select.region": "all"})
    assert again.exit_code == 0, again.output
    asked_blind = sorted(path.parts[-4] for path in out.glob("runs/*/eval/floor/tuned.json"))
    assert asked_blind == ["region=all,seed=0", "region=all,seed=1"]
    record = read_document(out / "sweep.json", SweepRecord)
    floors = [
        read_document(path, EvalRecord).visual for path in sorted(out.glob("runs/region=all*/eval/floor/tuned.json"))
    ]
    for group in record.groups:
        assert group.visual is not None
        assert group.visual.floor == pytest.approx(100 * sum(filter(None, floors)) / 2)
        assert group.visual.above_floor is not None or group.visual.no_above_floor
        # What a group keeps of itself is no estimate.
        assert not (group.compared and group.visual.low)
    assert "above the floor" in again.output.replace("\n", " ")


def test_a_sweep_that_began_with_former_defaults_goes_on_with_them(swept: Callable[..., tuple[Any, Path]]) -> None:
    former = {f"{section}.{key}": value for section, values in FORMER.items() for key, value in values.items()}
    short = {"train.max_steps": 1, "evaluate.packs": [], "prune.remove": 1}
    asked: dict[str, Any] = {"grid": {"select.region": ["uniform:50%"]}}
    first, out = swept(set={**short, **former}, **asked)
    assert first.exit_code == 0, first.output
    kept = (out / "runs" / "region=uniform-50%" / "config.yaml").read_text(encoding="utf-8")
    again, _ = swept(set=short, **asked)
    assert again.exit_code == 0, again.output
    assert "region=uniform-50%: heal.lr stays None: the default when this run began" in again.output
    log = (out / "logs" / "region=uniform-50%.log").read_text(encoding="utf-8")
    assert all(f"{stage}: up to date" in log for stage in ("train", "prune"))
    assert (out / "runs" / "region=uniform-50%" / "config.yaml").read_text(encoding="utf-8") == kept


def test_short_trainings_choose_the_rate_and_the_best_is_repeated(swept: Callable[..., tuple[Any, Path]]) -> None:
    changes = {**SHORT, "train.max_steps": 4, "data.validate": "25%", "evaluate.packs": []}
    choose = {"by": "loss", "rungs": ["50%"], "seeds": [1]}
    result, out = swept(set=changes, grid={"train.lr": [1e-5, 1e-2, 1e30]}, choose=choose)
    assert result.exit_code == 1, result.output
    runs = {run.name: run for run in read_document(out / "sweep.json", SweepRecord).runs}
    assert runs["lr=1.0e+30@50"].state == "failed"
    assert runs["lr=1.0e+30"].state == "dropped"
    assert {runs["lr=1.0e-05"].state, runs["lr=0.01"].state} == {"done"}
    assert runs["lr=0.01,seed=1"].state == "done"
    record = read_document(out / "sweep.json", SweepRecord)
    best = [group for group in record.groups if group.best]
    assert [(group.settings, group.seeds) for group in best] == [({"train.lr": 0.01}, (0, 1))]
    assert record.groups[0].measured["loss"] > best[0].measured["loss"]


def test_the_reduced_study_runs_small(swept: Callable[..., tuple[Any, Path]], run_yaml: Path, tmp_path: Path) -> None:
    raw = yaml.safe_load((STUDY / "reduced.yaml").read_text(encoding="utf-8"))
    base = yaml.safe_load((STUDY / "run.yaml").read_text(encoding="utf-8"))
    tiny = yaml.safe_load(run_yaml.read_text(encoding="utf-8"))
    data = {**base["data"], **tiny["data"], "validate": "25%"}
    # As many plain texts as an interval of perplexity would want, of which a table has none.
    (tmp_path / "plain").mkdir()
    texts = [{"id": str(n), "text": f"{'red ' * n}square", "metric": "perplexity", "task": "t"} for n in range(1, 13)]
    (tmp_path / "plain" / "test.jsonl").write_text("\n".join(map(json.dumps, texts)), encoding="utf-8")
    packs = [*tiny["evaluate"]["packs"], str(tmp_path / "plain")]
    asked = {**tiny["evaluate"], "packs": packs, "limit": 12}
    kept = {**base, "model": tiny["model"], "machine": tiny["machine"], "evaluate": asked, "data": data}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(kept), encoding="utf-8")
    # Two regions at two rates, in its own steps: rungs of one and two steps of four, and a second seed of the best.
    grid = {name: values[:2] for name, values in raw["grid"].items()}
    small = {"train.max_steps": 4, "train.batch_size": 4, "train.max_length": 128}
    choose = {**raw["choose"], "seeds": raw["choose"]["seeds"][:2]}
    result, out = swept(**{**raw, "base": "study.yaml", "grid": grid, "choose": choose, "set": small})
    assert result.exit_code == 0, result.output
    record = read_document(out / "sweep.json", SweepRecord)
    assert [record.count(state) for state in ("done", "dropped", "failed")] == [4 + 2 + 2 + 2, 2, 0]
    assert {run.rung for run in record.runs} == {0.25, 0.5, 1.0}
    assert [group.settings["select.region"] for group in record.groups] == raw["grid"]["select.region"][:2]
    assert [group.compared for group in record.groups] == [True, False]
    assert [group.seeds for group in record.groups] == [(0, 1)] * 2
    assert all(group.best and group.visual and raw["choose"]["by"] in group.measured for group in record.groups)
    assert all(group.nats for group in record.groups)


def test_the_runs_are_listed_and_other_folders_are_refused(
    swept: Callable[..., tuple[Any, Path]], tmp_path: Path, run_yaml: Path
) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").write_text("mine")
    result, out = swept(grid={"seed": [0, 1]})
    assert result.exit_code == 1
    assert "thesis.tex', which is no part of a sweep" in result.output
    listed = CliRunner().invoke(app, ["sweep", str(tmp_path / "SWEEP.yaml"), "--out", str(out), "--plan"])
    assert listed.output.split() == ["seed=0", "seed=1"]
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]


def _pid() -> int:
    return os.getpid()


def _end() -> None:
    os._exit(9)


def test_a_place_goes_on_after_its_process_was_killed() -> None:
    places = LocalPlacement([None], 1)
    try:
        first = places.submit(_pid).result()
        error = places.submit(_end).exception()
        assert isinstance(error, BrokenProcessPool)
        assert "ended from outside" in told(error)
        assert places.submit(_pid).result() not in (first, os.getpid())
    finally:
        places.close()


def _threads() -> str | None:
    return os.environ.get("OMP_NUM_THREADS")


def test_places_share_the_cores_and_a_single_one_takes_what_pytorch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12))
    for devices, per_device, threads in (([None], 1, None), ([None, None], 2, "3"), ([None], 40, "1")):
        places = LocalPlacement(devices, per_device)
        try:
            assert places.submit(_threads).result() == threads
        finally:
            places.close()


def test_a_run_trains_while_another_one_asks_the_model_that_both_begin_with(
    run_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    short = ("train.max_steps=1", "prune.remove=0", "evaluate.floor=true")

    def begun(name: str, *settings: str) -> tuple[ArmFlow, list[Path]]:
        flow = ArmFlow(run_config(*short, *settings), tmp_path / "runs" / name)
        flow.select()
        return flow, [flow.out / "eval" / file for file in ("start.json", "floor/start.json")]

    flow, answers = begun("one")
    # Its answers without pictures wait too: they come after those with.
    with alone_in(tmp_path / "shared" / fingerprint_of(flow.keys.evaluate("start"))[:16]):
        flow.train()
        assert not any(file.exists() for file in answers)
    flow.evaluate()
    assert all(file.exists() for file in answers)

    other, answers = begun("two", "seed=1")
    other.train()
    assert all(file.exists() for file in answers)


def _begin_and_wait(channel: Any) -> None:
    places = LocalPlacement([None], 1)
    channel.send(places.submit(_pid).result())
    time.sleep(60)


def test_a_process_ends_with_the_sweep_that_began_it() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    sweep = context.Process(target=_begin_and_wait, args=(theirs,))
    sweep.start()
    child = ours.recv()
    sweep.kill()
    sweep.join()
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.1)
    pytest.fail("the process of a place runs on")


def _runs(process: int) -> bool:
    try:
        return "(zombie)" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("where", ["loca", "slurm:x", "ray2", ""])
def test_a_place_that_is_none_is_refused(where: str, tmp_path: Path, run_yaml: Path) -> None:
    file = tmp_path / "SWEEP.yaml"
    file.write_text(yaml.safe_dump({"base": str(run_yaml), "grid": {"seed": [0]}}), encoding="utf-8")
    result = CliRunner().invoke(app, ["sweep", str(file), "--out", str(tmp_path / "sweep"), "--on", where])
    assert result.exit_code == 1
    assert "is no place for runs\n  allowed: local, ray, ray:ADDRESS or slurm" in result.output
    assert not (tmp_path / "sweep").exists()


@pytest.mark.harness
def test_two_ray_nodes_share_the_runs() -> None:
    pytest.importorskip("ray", reason="needs ray (the extra `ray`)")
    from ray.cluster_utils import Cluster

    from striate.pipeline.sweeps.ray_placement import RayPlacement

    # Within the test, so that they travel by value.
    def wait() -> int:
        time.sleep(2)
        return os.getpid()

    def fail() -> None:
        raise ValueError("seven")

    def end() -> None:
        os._exit(9)

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    places = RayPlacement(cluster.address, 1)
    try:
        assert places.free == 2
        slow = [places.submit(wait), places.submit(wait)]
        assert places.free == 0
        assert len({future.result() for future in slow}) == 2
        assert "seven" in str(places.submit(fail).exception())
        assert places.submit(end).exception() is not None
    finally:
        places.close()
        cluster.shutdown()
