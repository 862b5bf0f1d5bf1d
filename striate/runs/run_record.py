"""The run record (`run.json`): versions, machine, seed, fingerprints, and how each stage ended."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Literal

from pydantic import Field

from striate.artifacts import Document
from striate.version import __version__

PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow", "pydantic")


class StageRecord(Document):
    """How one stage ended: its cost, the hash of its inputs, the hashes of its outputs."""

    status: Literal["done", "failed"]
    seconds: float
    peak_memory_gib: float
    key: str
    outputs: dict[str, str] = Field(default_factory=dict)
    finished: str


class RunRecord(Document):
    """What made a run folder (`run.json`): versions, machine, seed, command, fingerprints, stages."""

    version: Literal[1] = 1
    striate: str
    versions: dict[str, str]
    python: str
    platform: str
    device: str
    seed: int
    command: str
    fingerprints: dict[str, str]
    stages: dict[str, StageRecord]

    @classmethod
    def of_this_machine(
        cls,
        seed: int,
        device: str,
        command: str,
        stages: Mapping[str, StageRecord],
        fingerprints: Mapping[str, str],
    ) -> RunRecord:
        """Return the record of a run that is continued here: today's versions beside what earlier `stages` left."""
        return cls(
            striate=__version__,
            versions={name: version(name) for name in PACKAGES},
            python=platform.python_version(),
            platform=platform.platform(),
            device=device,
            seed=seed,
            command=command,
            fingerprints=dict(fingerprints),
            stages=dict(stages),
        )
