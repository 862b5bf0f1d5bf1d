"""The run config: one strict, frozen document a run, one section a stage, machine settings apart."""

from striate.config.evaluate_settings import EvaluateSection, ReportSection
from striate.config.heal_settings import BESIDE, REGION, HealSection
from striate.config.inputs import BUILTIN, DataSection, ModelSection, is_builtin, looks_like_hub_id, share_of
from striate.config.layer_settings import AnalyzeSection, PruneSection, SelectSection
from striate.config.learning_rate import AUTO, auto_rate
from striate.config.machine import MachineSection
from striate.config.resolve_paths import anchored
from striate.config.run_config import OWN_MODELS, RunConfig
from striate.config.section import Section, specs_of
from striate.config.train_settings import LoraSection, Metric, ResampleSection, TrainSection
from striate.config.yaml_io import dump_config, load_config, parse_config

__all__ = [
    "AUTO",
    "BESIDE",
    "BUILTIN",
    "OWN_MODELS",
    "REGION",
    "AnalyzeSection",
    "DataSection",
    "EvaluateSection",
    "HealSection",
    "LoraSection",
    "MachineSection",
    "Metric",
    "ModelSection",
    "PruneSection",
    "ReportSection",
    "ResampleSection",
    "RunConfig",
    "Section",
    "SelectSection",
    "TrainSection",
    "anchored",
    "auto_rate",
    "dump_config",
    "is_builtin",
    "load_config",
    "looks_like_hub_id",
    "parse_config",
    "share_of",
    "specs_of",
]
