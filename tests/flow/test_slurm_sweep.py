"""`striate sweep --on slurm`: jobs of submitit, and a real queue where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from striate.cli import app
from striate.errors import ConfigError, StriateError
from striate.pipeline.sweeps import sweep as module
from striate.pipeline.sweeps.slurm_placement import SlurmPlacement, SlurmQueue

pytestmark = pytest.mark.harness
SETTINGS = {"timeout_min": 5, "cpus_per_task": 1}


@pytest.fixture(autouse=True)
def _submitit() -> None:
    pytest.importorskip("submitit", reason="needs submitit (the extra `slurm`)")


@pytest.fixture
def _queue() -> None:
    if not shutil.which("sbatch") or subprocess.run(["sinfo"], capture_output=True, check=False).returncode:
        pytest.skip("needs SLURM: no sbatch here, or no controller that answers")


def test_jobs_of_submitit_are_places(tmp_path: Path) -> None:
    places = SlurmPlacement(tmp_path, {"timeout_min": 1}, 2, cluster="local")
    # Not this module's own function, which a job could not import.
    (first,) = places.submit_all([(os.getpid,)])
    assert places.free == 1
    assert first.result() != os.getpid()
    (failed,) = places.submit_all([(int, "x")])
    assert "ValueError" in str(failed.exception())
    places.close()
    with pytest.raises(StriateError, match="slurm: "):
        SlurmPlacement(tmp_path, {"partitionn": "gpu"}, 1, cluster="local")


@pytest.mark.usefixtures("_queue")
def test_jobs_that_begin_together_are_one_array_and_each_ends_by_itself(tmp_path: Path) -> None:
    places = SlurmPlacement(tmp_path, SETTINGS, 3)
    places._queue = SlurmQueue(look=1, grace=3)
    try:
        good, failed, ended = places.submit_all([(os.getpid,), (int, "x"), (time.sleep, 600)])
        assert places.free == 0
        assert good.result() != os.getpid()
        assert "ValueError" in str(failed.exception())
        (array,) = {file.name.partition("_")[0] for file in tmp_path.glob("slurm/*_submitted.pkl")}
        subprocess.run(["scancel", f"{array}_2"], check=True)
        error = ended.exception()
        assert isinstance(error, StriateError)
        assert f"SLURM ended its job {array}_2 (CANCELLED" in str(error)
        assert places.free == 3
    finally:
        places.close()


@pytest.mark.usefixtures("_queue")
def test_a_job_that_the_cluster_does_not_take_is_told(tmp_path: Path) -> None:
    places = SlurmPlacement(tmp_path, {**SETTINGS, "slurm_partition": "nowhere"}, 1)
    with pytest.raises(ConfigError, match=r"SLURM takes no such job: .*nvalid partition"):
        places.submit_all([(os.getpid,)])
    places.close()


@pytest.mark.usefixtures("_queue")
def test_the_queue_gives_the_table_of_this_machine(run_yaml: Path, tmp_path: Path) -> None:
    changes = {"train.max_steps": 2, "prune.remove": 0}
    asked = {"set": changes, "grid": {"select.region": ["all", "uniform:50%", "top:50%"]}, "slurm": SETTINGS}
    file = tmp_path / "SWEEP.yaml"
    file.write_text(yaml.safe_dump({"base": str(run_yaml), **asked, "compare": {"select.region": "all"}}))
    tables = []
    for where in (module.HERE, module.SLURM):
        out = tmp_path / where
        result = CliRunner().invoke(app, ["sweep", str(file), "--out", str(out), "--on", where])
        assert result.exit_code == 0, result.output
        tables.append([_reached(group) for group in json.loads((out / "sweep.json").read_text())["groups"]])
        weights = sorted(out.glob("runs/*/checkpoint/adapter_model.safetensors"))
        tables[-1].append([weight.read_bytes() for weight in weights])
    assert len(tables[0]) == 4
    assert tables[0] == tables[1]


def _reached(group: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a table without what tells how busy the machine was."""
    return {name: value for name, value in group.items() if name not in ("train_seconds", "peak_memory_gib")}
