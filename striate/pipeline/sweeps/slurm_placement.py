"""Places of a SLURM queue: a job a run, those that begin together as one job array."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from striate.errors import ConfigError, StriateError
from striate.pipeline.sweeps.placement import Call, CountedPlaces
from striate.pipeline.sweeps.ray_placement import required

_FOLDER, _CLUSTER = "slurm", "slurm"
_LOOK_SECONDS, _RESULT_SECONDS = 10.0, 30.0
_ENDED = {"", "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}


class SlurmPlacement(CountedPlaces):
    """Places of a SLURM queue, `at_once` of them."""

    def __init__(self, out: Path, settings: dict[str, Any], at_once: int, cluster: str = _CLUSTER) -> None:
        """Take what submitit asks SLURM for: its own names, such as timeout_min, gpus_per_node, slurm_partition.

        Raises:
            ConfigError: submitit is not installed or does not know a setting, or there is no SLURM here.
        """
        if cluster == _CLUSTER and not shutil.which("sbatch"):
            raise ConfigError(
                "there is no SLURM here: no command sbatch",
                "a machine that jobs are sent from",
                "begin the sweep on a login node of the cluster, or leave --on out",
            )
        submitit = required("submitit", "slurm")
        self._failed: type[Exception] = submitit.core.utils.FailedJobError
        self._executor = submitit.AutoExecutor(folder=out / _FOLDER, cluster=cluster)
        try:
            self._executor.update_parameters(name="striate-sweep", **settings)
        except (TypeError, NameError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"slurm: {error}", "the parameters of submitit's AutoExecutor", "see docs/sweeps.md"
            ) from error
        self._queue = SlurmQueue() if cluster == _CLUSTER else None
        # A thread waits for each job.
        self._waiting = ThreadPoolExecutor(at_once)
        super().__init__(at_once)

    def submit_all(self, calls: Sequence[Call]) -> list[Future[Any]]:
        """Add a job array of the calls.

        Raises:
            ConfigError: SLURM takes no such job.
        """
        try:
            with self._executor.batch():
                jobs = [self._executor.submit(*call) for call in calls]
        except self._failed as error:
            raise ConfigError(
                f"SLURM takes no such job: {str(error).strip().splitlines()[-1]}",
                "what `sbatch` takes on this cluster: `sinfo` lists its partitions",
                "change slurm: in the sweep's file",
            ) from error
        return [self.take(self._waiting.submit(self._answer, job)) for job in jobs]

    def close(self) -> None:
        """Wait for the jobs that are in the queue."""
        self._waiting.shutdown(wait=True)

    def _answer(self, job: Any) -> Any:
        """Return what a job returns, once it has."""
        if self._queue:
            self._queue.wait_for(str(job.job_id), job.paths.result_pickle)
        return job.result()


class SlurmQueue:
    """What SLURM says of this user's jobs, asked of all at once; needs no accounting, which not every cluster has."""

    def __init__(
        self,
        listed: Callable[[], str | None] | None = None,
        look: float = _LOOK_SECONDS,
        grace: float = _RESULT_SECONDS,
    ) -> None:
        """Take what returns lines of `ID|STATE`, or None where SLURM does not answer; by default `squeue`.

        `look` seconds lie between two looks, and after `grace` seconds the file of a job that ended comes no more.
        """
        self._listed, self._look, self._grace = listed or _squeue, look, grace
        self._lock, self._looked = threading.Lock(), float("-inf")
        self._states: dict[str, str] | None = None

    def wait_for(self, job: str, result: Path) -> None:
        """Wait until the file `result` of a job is there.

        Raises:
            StriateError: the job ended without one.
        """
        ended: float | None = None
        # A listing is what network file systems bring up to date.
        while result not in set(result.parent.iterdir()):
            state = self._state(job)
            now = time.monotonic()
            ended = (ended or now) if state is not None and state.partition(" ")[0] in _ENDED else None
            if ended and now - ended > self._grace:
                raise StriateError(
                    f"SLURM ended its job {job} ({state or 'no longer in the queue'})",
                    "jobs that end by themselves",
                    f"give it more time or memory under slurm:; {result.parent} has what it said",
                )
            time.sleep(min(1.0, self._look))

    def _state(self, job: str) -> str | None:
        """Return the state of a job, nothing where the queue has it no more; None where that can't be told."""
        with self._lock:
            if time.monotonic() - self._looked > self._look:
                said = self._listed()
                lines = None if said is None else [line.partition("|") for line in said.splitlines()]
                self._states = None if lines is None else {one.strip(): state.strip() for one, _, state in lines}
                self._looked = time.monotonic()
            return None if self._states is None else self._states.get(job, "")


def _squeue() -> str | None:
    """Return the state of every job of this user, also of those that ended lately."""
    command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
