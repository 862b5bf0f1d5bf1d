"""Restores the record and the log of a finished training from what its checkpoint holds."""

from pathlib import Path

from pydantic import ValidationError

from striate.artifacts import TrainRecord, write_document
from striate.errors import ArtifactError
from striate.storage.atomic import write_text
from striate.storage.fingerprints import RECORD_FILE
from striate.storage.manifest import read_manifest
from striate.training.metrics.metrics_log import dump_rows

WORK_FOLDER = ".training"


def restore_training(run: Path, key: str) -> float | None:
    """Write train.json and train_log.jsonl of the run's finished training again; return its seconds.

    A training whose checkpoint is whole is finished, whatever was lost beside it. None where that is not so: there is
    no checkpoint, it is damaged, of an earlier version, or was made from other inputs than `key` says.
    """
    try:
        kept = read_manifest(run / "checkpoint" / RECORD_FILE)
        if kept.get("key") != key:
            return None
        record = TrainRecord.model_validate(kept["record"])
    except (ArtifactError, ValidationError, KeyError):
        return None
    # Imports the libraries of training, which an up-to-date one does without.
    from striate.training.checkpointing.checkpoints import remove_checkpoints

    write_document(run / "train.json", record)
    write_text(run / "train_log.jsonl", dump_rows(kept["log"]))
    remove_checkpoints(run / WORK_FOLDER)
    return record.seconds
