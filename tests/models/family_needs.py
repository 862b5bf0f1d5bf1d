"""Skip what the installed transformers can't show: a model type that it lacks, or whose own code fails in it."""

from __future__ import annotations

import pytest
import transformers
from family_matrix import RELEASE
from family_zoo import model_types

from striate.models.structure.families import BROKEN


def needs(model_type: str) -> None:
    """Skip the test unless the installed transformers has the model type and can run it."""
    if model_type not in model_types():
        pytest.skip(f"transformers {transformers.__version__} has no model type {model_type!r}")
    if (model_type, RELEASE) in BROKEN:
        pytest.skip(f"{model_type} in transformers {RELEASE}: {BROKEN[model_type, RELEASE]}")
