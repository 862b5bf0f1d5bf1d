"""Layer-importance measures, higher = keep. One a file, listed here."""

from __future__ import annotations

from striate.registry import Registry
from striate.scorers.angular_distance import ANGULAR_DISTANCE
from striate.scorers.block_influence import BLOCK_INFLUENCE
from striate.scorers.modality_block_influence import MODALITY_BLOCK_INFLUENCE
from striate.scorers.stream import Scorer

SCORERS: Registry[Scorer] = Registry("scorer", [BLOCK_INFLUENCE, MODALITY_BLOCK_INFLUENCE, ANGULAR_DISTANCE])
