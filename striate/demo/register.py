"""Registers the built-in vision encoder with transformers' auto classes, once these are imported."""

from __future__ import annotations

from types import ModuleType

import wrapt

CONFIGS, MODELS = "transformers.models.auto.configuration_auto", "transformers.models.auto.modeling_auto"


def register_with_transformers() -> None:
    """Register the vision encoder's config and model with transformers' auto classes, now; once is enough."""
    from transformers.models.auto import configuration_auto, modeling_auto

    _register_config(configuration_auto)
    _register_model(modeling_auto)


def register_when_imported() -> None:
    """Register as soon as transformers' auto classes are imported: `import striate` itself stays without torch."""
    wrapt.register_post_import_hook(_register_config, CONFIGS)
    wrapt.register_post_import_hook(_register_model, MODELS)


def _register_config(configuration_auto: ModuleType) -> None:
    """Let `AutoConfig` know the config: it may be asked for before any model is imported."""
    from striate.demo.vision_config import EfficientNetLiteConfig

    configuration_auto.AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)


def _register_model(modeling_auto: ModuleType) -> None:
    from striate.demo.vision import EfficientNetLiteConfig, EfficientNetLiteModel

    modeling_auto.AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
