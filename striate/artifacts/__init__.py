"""The documents that stages hand to each other through the run folder: one module a stage, all of them found here."""

from striate.artifacts.base import Document, read_document, read_if_there, read_lines, write_document, write_lines
from striate.artifacts.compensation_record import CompensatedGap, Compensation, CompensationMethod
from striate.artifacts.eval_records import (
    AskingFacts,
    DataNotes,
    Difference,
    EvalRecord,
    GateResult,
    GateRow,
    Kind,
    Prediction,
    Retention,
    SuiteRecord,
    TaskScore,
)
from striate.artifacts.heal_record import HealRecord
from striate.artifacts.layer_scores import LayerScores, Peak, Scores, SplitHalf
from striate.artifacts.prune_record import Cut, PruneRecord, SelfTest, UnfinishedRanking
from striate.artifacts.region import Region
from striate.artifacts.speed_record import SpeedRecord, Spread
from striate.artifacts.train_record import ComponentCount, Resampled, Trainable, TrainRecord, ValidationRecord

__all__ = [
    "AskingFacts",
    "CompensatedGap",
    "Compensation",
    "CompensationMethod",
    "ComponentCount",
    "Cut",
    "DataNotes",
    "Difference",
    "Document",
    "EvalRecord",
    "GateResult",
    "GateRow",
    "HealRecord",
    "Kind",
    "LayerScores",
    "Peak",
    "Prediction",
    "PruneRecord",
    "Region",
    "Resampled",
    "Retention",
    "Scores",
    "SelfTest",
    "SpeedRecord",
    "SplitHalf",
    "Spread",
    "SuiteRecord",
    "TaskScore",
    "TrainRecord",
    "Trainable",
    "UnfinishedRanking",
    "ValidationRecord",
    "read_document",
    "read_if_there",
    "read_lines",
    "write_document",
    "write_lines",
]
