"""Runs a sweep: begins what is not done wherever there is a free place, and keeps its table as runs end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from striate.artifacts import RunState, SweepRecord, SweptRun, write_document
from striate.config import dump_config
from striate.config.sweep_settings import SEED
from striate.errors import ArtifactError, ConfigError, did_you_mean
from striate.pipeline.sweeps.arm_flow import CONFIGS, LOGS, RUNS, SHARED, run_arm
from striate.pipeline.sweeps.choosing import at_an_end, survivors
from striate.pipeline.sweeps.earlier_runs import check_unchanged, runs_beside
from striate.pipeline.sweeps.placement import Call, LocalPlacement, Placement, devices_here, first_ended, told
from striate.pipeline.sweeps.plan import Plan, Planned
from striate.pipeline.sweeps.ray_placement import RayPlacement
from striate.pipeline.sweeps.room import runs_side_by_side
from striate.pipeline.sweeps.slurm_placement import SlurmPlacement
from striate.pipeline.sweeps.table import Table
from striate.printable import shown
from striate.progress import Progress
from striate.reporting.sweep_page import draw_sweep
from striate.runs.folder import CONFIG_FILE
from striate.runs.former_defaults import as_it_began
from striate.storage.atomic import cannot_write, is_temporary, write_text
from striate.storage.held_folders import hold

RECORD_FILE, PAGE_FILE = "sweep.json", "sweep.html"
HERE, RAY, SLURM = "local", "ray", "slurm"
_LOOK_SECONDS = 5.0


class Sweep:
    """One sweep and its folder: `runs/` has a run folder a run, `sweep.json` the table, `sweep.html` the page.

    Nothing is noted of what is done but the run folders: each run is asked, and those that are up to date say so.
    """

    def __init__(
        self, plan: Plan, out: Path, placement: Callable[[], Placement], progress: Progress, overwrite: bool = False
    ) -> None:
        """Take the plan, the folder, what makes the places when they are needed, and where to say how far it is.

        With `overwrite` runs whose settings have changed do again the stages that follow from these.
        """
        self.plan, self.out, self.progress, self.overwrite = plan, out, progress, overwrite
        self._make_placement = placement
        self._table = Table(plan.sweep, out / RUNS)
        self._states: dict[str, SweptRun] = {}
        self._planned: dict[str, Planned] = {}

    def run(self) -> SweepRecord:
        """Do all runs; return the table. A run that fails is told, and stops no other.

        Raises:
            ArtifactError: runs in the folder have other settings than now, and nothing may be overwritten.
        """
        choose = self.plan.sweep.choose
        self._know(self.plan.runs)
        places = self._make_placement()
        try:
            left = list(self.plan.runs)
            for share in choose.rungs if choose else ():
                left = self._rung(places, left, share)
            self._do(places, left)
            if choose and choose.seeds:
                best = self._table.best(self._done(left))
                seeds = [seed for seed in choose.seeds if seed != best[0].config.seed] if best else []
                again = [self.plan.with_settings(run, {SEED: seed}) for run in best for seed in seeds]
                self._know(again)
                self._do(places, again)
        finally:
            places.close()
        if choose:
            for line in at_an_end(self._table.best(self._done(left)), choose.over, self.plan.runs):
                self.progress.say(f"sweep: {line}: others may be better")
        if left_out := runs_beside(self.out / RUNS, self._planned):
            names = ", ".join(left_out[:4]) + (", ..." if len(left_out) > 4 else "")
            self.progress.say(f"sweep: {len(left_out)} in {self.out / RUNS} are not asked for now, and stay: {names}")
        return self.record()

    def record(self) -> SweepRecord:
        """Return the table as far as runs are done, after writing it and the page."""
        choose = self.plan.sweep.choose
        record = SweepRecord(
            varied=self.plan.varied,
            chosen_by=choose.by if choose else "",
            runs=tuple(self._states.values()),
            groups=self._table.groups(self._done(run for run in self._planned.values() if run.rung == 1)),
        )
        write_document(self.out / RECORD_FILE, record)
        write_text(self.out / PAGE_FILE, draw_sweep(record, self.out.name))
        return record

    def _rung(self, places: Placement, runs: Sequence[Planned], share: float) -> list[Planned]:
        """Return the runs that go on after a short training of all of them; the others are dropped."""
        short = {run.name: self.plan.on_rung(run, share) for run in runs}
        self._know(short.values())
        self._do(places, list(short.values()))
        choose = self.plan.sweep.choose
        assert choose is not None
        kept = survivors(runs, choose, lambda run: self._table.measured(short[run.name]))
        names = {run.name for run in kept}
        for run in runs:
            if run.name not in names:
                self._note(run, "dropped")
        self.progress.say(f"sweep: {len(kept)} of {len(runs)} runs go on after {100 * share:g}% of the training")
        return kept

    def _do(self, places: Placement, runs: Sequence[Planned]) -> None:
        """Do `runs`, as many at a time as there are places."""
        left, running = list(runs), dict[Future[Any], tuple[Planned, float]]()
        ended = False
        while left or running:
            try:
                left = self._fill(places, left, running)
            finally:
                if ended:
                    # Once places are filled: while the table of many runs is made, others run.
                    self.record()
            ended = self._wait(running)
        self.record()

    def _fill(
        self, places: Placement, left: list[Planned], running: dict[Future[Any], tuple[Planned, float]]
    ) -> list[Planned]:
        """Begin runs in all places that are free; return those that are left."""
        while left and (free := places.free):
            now, left = left[:free], left[free:]
            for run, future in zip(now, places.submit_all([self._call(run) for run in now]), strict=True):
                running[future] = run, time.perf_counter()
                self._note(run, "running")
        return left

    def _wait(self, running: dict[Future[Any], tuple[Planned, float]]) -> bool:
        """Wait a while for a run to end; return whether any did."""
        ended = first_ended(list(running), _LOOK_SECONDS)
        for future in ended:
            run, began = running.pop(future)
            self._end(run, future.exception(), time.perf_counter() - began)
        return bool(ended)

    def _end(self, run: Planned, error: BaseException | None, seconds: float) -> None:
        if error is None:
            self._note(run, "done", seconds=seconds)
            self.progress.say(f"sweep: {run.name} is done, {seconds:.0f} s; {self._told()}")
        else:
            self._note(run, "failed", error=told(error), seconds=seconds)
            self.progress.say(f"sweep: {run.name} failed: {told(error)}\n  {self._files(run)[2]}; {self._told()}")

    def _call(self, run: Planned) -> Call:
        """Return the call that does a run."""
        wanted = self.plan.sweep.compare
        return run_arm, *self._files(run), self.overwrite, bool(wanted) and run.has(wanted)

    def _files(self, run: Planned) -> tuple[Path, Path, Path]:
        """Return the config of a run, written, its folder and its log."""
        config, folder = self.out / CONFIGS / f"{run.name}.yaml", self.out / RUNS / run.name
        config.parent.mkdir(parents=True, exist_ok=True)
        # What is written names every setting: of those left open the run would see today's defaults as asked for.
        began = as_it_began(run.config, folder / CONFIG_FILE, lambda line: self.progress.say(f"{run.name}: {line}"))
        write_text(config, dump_config(began))
        return config, folder, self.out / LOGS / f"{run.name}.log"

    def _know(self, runs: Collection[Planned]) -> None:
        if not self.overwrite:
            check_unchanged(self.out / RUNS, runs)
        for run in runs:
            self._planned[run.name] = run
            self._note(run, "waiting")

    def _note(self, run: Planned, state: RunState, error: str = "", seconds: float | None = None) -> None:
        self._states[run.name] = SweptRun(
            name=run.name, settings=run.settings, state=state, rung=run.rung, error=error, seconds=seconds
        )

    def _done(self, runs: Iterable[Planned]) -> list[Planned]:
        return [run for run in runs if self._states[run.name].state == "done"]

    def _told(self) -> str:
        states: tuple[RunState, ...] = ("done", "failed", "running", "waiting")
        counts = {state: sum(run.state == state for run in self._states.values()) for state in states}
        return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def open_sweep(plan: Plan, out: Path, progress: Progress, where: str = HERE, overwrite: bool = False) -> Sweep:
    """Return the sweep in the folder `out`, new or continued.

    Args:
        plan: its runs.
        out: made if it is not there; of a cluster all machines must see it at the same path.
        progress: where to say how far it is.
        where: `local` (the devices of this machine), `slurm`, `ray`, or `ray:ADDRESS` of a cluster.
        overwrite: whether stages of runs are done again whose inputs have changed.

    Raises:
        ArtifactError: the folder holds other things, can't be written, or another sweep is at work in it.
        ConfigError: there is no such place for runs.
    """
    out = out.absolute()
    check_place(where)
    _check_folder(out)
    sweep = Sweep(plan, out, lambda: _places(plan, out, progress, where), progress, overwrite)
    hold(out, sweep)
    return sweep


def check_place(where: str) -> None:
    """Raise where `where` names no place for runs."""
    if where.partition(":")[0] not in (HERE, RAY, SLURM) or (":" in where and not where.startswith(f"{RAY}:")):
        raise ConfigError(
            f"{shown(where)} is no place for runs",
            f"{HERE}, {RAY}, {RAY}:ADDRESS or {SLURM}",
            f"leave --on out for the devices of this machine{did_you_mean(where, (HERE, RAY, SLURM))}",
        )


def _places(plan: Plan, out: Path, progress: Progress, where: str) -> Placement:
    if where == HERE:
        return LocalPlacement(devices_here(), runs_side_by_side(plan, out, progress))
    # Of machines that are not this one nothing is forecast.
    if where == SLURM:
        return SlurmPlacement(out, plan.sweep.slurm, plan.sweep.jobs)
    return RayPlacement(where.partition(":")[2] or "auto", plan.sweep.per_device or 1)


def _check_folder(out: Path) -> None:
    """Make the folder; what is in it must be a sweep's."""
    own = {RUNS, CONFIGS, LOGS, SHARED, SLURM, RECORD_FILE, PAGE_FILE}
    try:
        out.mkdir(parents=True, exist_ok=True)
        strange = sorted(path.name for path in out.iterdir() if path.name not in own and not is_temporary(path))
    except OSError as error:
        raise cannot_write(out, error) from error
    if strange:
        raise ArtifactError(
            f"{out} holds {shown(strange[0])}, which is no part of a sweep",
            "a new or empty folder, or one of a sweep",
            "choose another --out",
        )
