"""The run config: one strict, frozen document a run, one section a stage, machine settings apart."""

from striate.config.anchoring import anchored
from striate.config.evaluation import EvaluateSection, ReportSection
from striate.config.inputs import BUILTIN, DataSection, ModelSection, is_builtin, looks_like_hub_id
from striate.config.layers import AnalyzeSection, PruneSection, SelectSection
from striate.config.machine import MachineSection
from striate.config.reading import dump_config, load_config, parse_config
from striate.config.run import NAME, OWN_MODELS, STAGES, RunConfig
from striate.config.section import Section
from striate.config.training import LoraSection, ResampleSection, TrainSection

__all__ = [
    "BUILTIN",
    "NAME",
    "OWN_MODELS",
    "STAGES",
    "AnalyzeSection",
    "DataSection",
    "EvaluateSection",
    "LoraSection",
    "MachineSection",
    "ModelSection",
    "PruneSection",
    "ReportSection",
    "ResampleSection",
    "RunConfig",
    "Section",
    "SelectSection",
    "TrainSection",
    "anchored",
    "dump_config",
    "is_builtin",
    "load_config",
    "looks_like_hub_id",
    "parse_config",
]
