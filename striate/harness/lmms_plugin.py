"""Registers striate's model class with lmms-eval, by name, while lmms-eval is being imported."""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

MODEL_CLASS = "striate.harness.lmms_eval.StriateLmms"


def manifest() -> ModelManifest:
    """Return where the model called `striate` is: lmms-eval's `--model striate`."""
    return ModelManifest("striate", simple_class_path=MODEL_CLASS)
