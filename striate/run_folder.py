"""The run folder: one unit of work on disk, and the record of what made it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from striate.artifacts import Document


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
