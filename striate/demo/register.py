"""Make the built-in vision encoder known to transformers, as soon as both are there."""

from __future__ import annotations

from types import ModuleType

import wrapt

CONFIGS, MODELS = "transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto"


def register_with_transformers() -> None:
    """Register the vision encoder's config and model with transformers' auto classes, now; once is enough."""
    from transformers import AutoConfig, AutoModel

    from striate.demo.vision import EfficientNetLiteConfig, EfficientNetLiteModel

    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)


def register_when_imported() -> None:
    """Register as soon as transformers' auto classes are imported: `import striate` itself stays without torch."""
    wrapt.register_post_import_hook(_after_import, MODELS)


def _after_import(_: ModuleType) -> None:
    """Run the registration once the auto classes exist."""
    register_with_transformers()
