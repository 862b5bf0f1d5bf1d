"""What is in a sweep's folder of earlier: runs of other settings than now, and runs that are asked for no more."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from striate.artifacts import read_if_there
from striate.errors import ArtifactError, ConfigError
from striate.pipeline.sweeps.plan import Planned
from striate.runs.config_changes import check_same_config
from striate.runs.folder import CONFIG_FILE, RUN_FILE
from striate.runs.former_defaults import as_it_began, began_with
from striate.runs.run_record import RunRecord


def check_unchanged(folder: Path, runs: Collection[Planned]) -> None:
    """Check that the run folders in `folder` were made with the settings that the runs have now.

    Raises:
        ArtifactError: some were not; what differs is told of the first.
    """
    changed = [(run.name, told) for run in runs if (told := _changes(folder / run.name, run))]
    if changed:
        name, told = changed[0]
        raise ArtifactError(
            f"{len(changed)} of {len(runs)} runs in {folder} were made with other settings; {name}: {told}",
            "the settings that they were made with (machine:, report:, and what evaluate compares may differ)",
            "choose another --out, or use --overwrite to do their stages again that this changes",
        )


def runs_beside(folder: Path, runs: Collection[str]) -> list[str]:
    """Return the names of run folders in `folder` that are of none of the `runs`."""
    there = folder.iterdir() if folder.is_dir() else ()
    return sorted(path.name for path in there if path.name not in runs and (path / RUN_FILE).exists())


def _changes(folder: Path, run: Planned) -> str:
    """Return what differs between the config of a run folder and of its run; nothing where no stage is done yet."""
    # A damaged folder is told by its run, and stops no other.
    with suppress(ArtifactError, ConfigError):
        record = read_if_there(folder / RUN_FILE, RunRecord)
        if record is None or all(stage.status != "done" for stage in record.stages.values()):
            return ""
        kept = folder / CONFIG_FILE
        try:
            check_same_config(folder, began_with(kept), as_it_began(run.config, kept), overwrite=False)
        except ArtifactError as error:
            return error.given.partition(" holds a run of another config: ")[2]
    return ""
