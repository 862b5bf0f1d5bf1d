"""A job of SLURM that ends without a word is told by its state, and one that goes on is waited for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from striate.errors import ConfigError, StriateError
from striate.pipeline.sweeps.slurm_placement import SlurmPlacement, SlurmQueue, _squeue


def queue(said: Iterator[str | None], grace: float = 0.0) -> SlurmQueue:
    return SlurmQueue(lambda: next(said), look=0.0, grace=grace)


@pytest.mark.parametrize(
    ("last", "told"),
    [
        ("7_0|RUNNING\n7_1|TIMEOUT\n", "SLURM ended its job 7_1 (TIMEOUT)"),
        ("7_1|CANCELLED by 1000\n", "SLURM ended its job 7_1 (CANCELLED by 1000)"),
        ("7_0|RUNNING\n", "SLURM ended its job 7_1 (no longer in the queue)"),
        ("", "SLURM ended its job 7_1 (no longer in the queue)"),
    ],
)
def test_a_job_that_ended_without_a_result_is_an_error(last: str, told: str, tmp_path: Path) -> None:
    said = iter(["7_0|RUNNING\n7_1|PENDING\n", None, *[last] * 9])
    with pytest.raises(StriateError, match=re.escape(told)) as error:
        queue(said).wait_for("7_1", tmp_path / "7_1_0_result.pkl")
    assert error.value.allowed
    assert error.value.next_step == f"give it more time or memory under slurm:; {tmp_path} has what it said"


def test_a_job_is_waited_for_while_it_is_in_the_queue_or_nobody_knows(tmp_path: Path) -> None:
    result = tmp_path / "7_0_result.pkl"

    def said() -> Iterator[str | None]:
        yield from ("7|PENDING\n", None, "7|COMPLETING\n", None, "7|PREEMPTED\n", "7|PENDING\n", "7|RUNNING\n")
        result.touch()
        yield "7|COMPLETED\n"

    looks = said()
    queue(looks).wait_for("7", result)
    assert next(looks, "all") == "all"


def test_the_result_of_a_job_that_ended_may_take_a_while_to_be_seen(tmp_path: Path) -> None:
    result = tmp_path / "7_0_result.pkl"

    def said() -> Iterator[str | None]:
        yield from ("7|COMPLETED\n", "", "")
        result.touch()
        yield ""

    queue(said(), grace=60).wait_for("7", result)


def test_the_queue_is_asked_once_for_all_jobs(tmp_path: Path) -> None:
    asked = []

    def said() -> str:
        asked.append(1)
        return ""

    slow = SlurmQueue(said, look=60, grace=0)
    for job in ("1", "2"):
        with pytest.raises(StriateError, match=f"ended its job {job} "):
            slow.wait_for(job, tmp_path / "none")
    assert len(asked) == 1


def test_without_slurm_nothing_is_sent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _squeue() is None
    with pytest.raises(ConfigError, match="there is no SLURM here: no command sbatch") as error:
        SlurmPlacement(tmp_path, {}, 1)
    assert error.value.next_step == "begin the sweep on a login node of the cluster, or leave --on out"
