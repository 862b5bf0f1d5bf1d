"""What `striate run` looks at before it computes: what would otherwise be refused only after hours."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from striate.errors import ArtifactError
from striate.harness.suites import parse_suite, require
from striate.pipeline.checking.model_ahead import check_models
from striate.pipeline.checking.region_ahead import check_region_ahead
from striate.pipeline.preflight import (
    check_cache_folder,
    check_loggers,
    check_number_format,
    check_parts,
    labels_of,
    prompts_fit,
)
from striate.pipeline.stage_keys import StageKeys
from striate.selectors.spec.required_scores import check_specs

if TYPE_CHECKING:
    import torch


def check_run_ahead(keys: StageKeys, device: torch.device, num_layers: Callable[[], int]) -> None:
    """Return if a run can use its model, SPECs, packs and suites; `num_layers` returns how deep the model is.

    Raises:
        StriateError: one of them can't.
    """
    config, model = keys.run.config, keys.inputs.model
    check_number_format(config, device)
    if config.train.method == "qlora":
        from striate.models.io.quantized import check_quantization

        check_quantization(device)
    check_models(config, model)
    check_loggers(config)
    check_cache_folder(config)
    check_parts(config, model)
    check_specs(config, keys.region_spec)
    check_region_ahead(config, keys.region_spec, num_layers())
    packs = keys.read_packs()
    if packs and labels_of(config) and not _were_asked(keys):
        list(prompts_fit(config, model, packs))
    for text in config.evaluate.suites:
        require(parse_suite(text))


def _were_asked(keys: StageKeys) -> bool:
    """Return whether a model of the run has answered these very items, which then fit."""
    for label in labels_of(keys.run.config):
        # Of a model that is not there yet.
        with suppress(ArtifactError):
            if keys.run.is_done(f"evaluate:{label}", keys.evaluate(label)):
                return True
    return False
