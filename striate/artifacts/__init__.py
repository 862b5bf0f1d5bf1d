"""The documents that stages hand to each other through the run folder: one module a stage, all of them found here."""

from striate.artifacts.base import Document, read_document, read_if_there, read_lines, write_document, write_lines
from striate.artifacts.compensation_record import CompensatedGap, Compensation, CompensationMethod
from striate.artifacts.curve_record import (
    AnswerForm,
    Curve,
    CurvePoint,
    CurveScore,
    Recommendation,
    Trial,
    TrialSpeed,
    UntilRecord,
    UntilTrial,
)
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
from striate.artifacts.rate_search import RateSearch, RateTrial
from striate.artifacts.region import Region
from striate.artifacts.speed_record import Bench, SpeedRatio, SpeedRecord, Spread
from striate.artifacts.sweep_record import RunState, SweepRecord, SweptGroup, SweptRun, SweptScore
from striate.artifacts.train_record import (
    ComponentCount,
    ImageCheck,
    Resampled,
    SourceSeen,
    Trainable,
    TrainRecord,
    ValidationRecord,
)

__all__ = [
    "AnswerForm",
    "AskingFacts",
    "Bench",
    "CompensatedGap",
    "Compensation",
    "CompensationMethod",
    "ComponentCount",
    "Curve",
    "CurvePoint",
    "CurveScore",
    "Cut",
    "DataNotes",
    "Difference",
    "Document",
    "EvalRecord",
    "GateResult",
    "GateRow",
    "HealRecord",
    "ImageCheck",
    "Kind",
    "LayerScores",
    "Peak",
    "Prediction",
    "PruneRecord",
    "RateSearch",
    "RateTrial",
    "Recommendation",
    "Region",
    "Resampled",
    "Retention",
    "RunState",
    "Scores",
    "SelfTest",
    "SourceSeen",
    "SpeedRatio",
    "SpeedRecord",
    "SplitHalf",
    "Spread",
    "SuiteRecord",
    "SweepRecord",
    "SweptGroup",
    "SweptRun",
    "SweptScore",
    "TaskScore",
    "TrainRecord",
    "Trainable",
    "Trial",
    "TrialSpeed",
    "UnfinishedRanking",
    "UntilRecord",
    "UntilTrial",
    "ValidationRecord",
    "read_document",
    "read_if_there",
    "read_lines",
    "write_document",
    "write_lines",
]
