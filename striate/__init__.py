"""striate: find, tune, prune around and prove the visual region of a large vision-language model."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from striate.demo.register import register_when_imported
from striate.version import __version__

if TYPE_CHECKING:
    from striate.api import load_model, prune
    from striate.artifacts import Region, Scores
    from striate.models.trainable.apply import apply_region, lora_config
    from striate.stages.analyze import analyze
    from striate.stages.select import select


__all__ = [
    "Region",
    "Scores",
    "__version__",
    "analyze",
    "apply_region",
    "load_model",
    "lora_config",
    "prune",
    "select",
]

_PLACES = {
    "Region": "striate.artifacts",
    "Scores": "striate.artifacts",
    "analyze": "striate.stages.analyze",
    "apply_region": "striate.models.trainable.apply",
    "load_model": "striate.api",
    "lora_config": "striate.models.trainable.apply",
    "prune": "striate.api",
    "select": "striate.stages.select",
}

register_when_imported()


def _draw_by_the_report(base: ModuleType) -> None:
    """Let notebooks show artifacts as the report draws them, which is imported when one is shown."""
    base.Document.drawing = staticmethod(lambda document: import_module("striate.reporting.notebook").html_of(document))


wrapt.register_post_import_hook(_draw_by_the_report, "striate.artifacts.base")


def __getattr__(name: str) -> Any:
    """Return a public name, importing torch only when one that needs it is asked for."""
    if name not in _PLACES:
        raise AttributeError(f"module 'striate' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
