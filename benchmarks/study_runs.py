"""Every finished run of a study as a line of JSON: settings, scores, time, memory, versions, digests of its inputs."""

from __future__ import annotations

from typing import Any

from study_arms import Study, rate_of

from striate.artifacts import read_if_there
from striate.pipeline.sweeps.arm_flow import RUNS
from striate.pipeline.sweeps.plan import Planned
from striate.runs.folder import RUN_FILE
from striate.runs.run_record import RunRecord


def runs_told(study: Study) -> list[dict[str, Any]]:
    """Return what each finished run reached, what it took, and what it was made of."""
    return [_told(study, run) for run in study.runs if study.is_done(run)]


def _told(study: Study, run: Planned) -> dict[str, Any]:
    scored, _ = study.answers(run.name)
    trained = study.trained(run.name)
    made = read_if_there(study.folder / RUNS / run.name / RUN_FILE, RunRecord)
    return {
        "run": run.name,
        "settings": run.settings,
        "layers": list(study.region(run).layers),
        "rate": rate_of(run),
        "seed": run.seed,
        "held_out": study.measured(run),
        "tasks": {f"{task.pack}/{task.task}/{task.metric}": [task.score, task.n] for task in scored.tasks},
        "visual": scored.visual,
        "text": scored.text,
        "trained_parameters": trained.trainable.trainable,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "train_seconds": round(trained.seconds, 1),
        "train_peak_gib": round(trained.peak_memory_gib, 2),
        **(made.model_dump(include={"striate", "versions", "device", "fingerprints"}) if made else {}),
    }
