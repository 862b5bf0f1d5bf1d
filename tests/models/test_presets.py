"""Presets: configs for models and cards, against the shapes that the models' authors published and the forecast."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from striate.config import load_config
from striate.models.forecast.memory import forecast_memory
from striate.models.forecast.settings import ACCELERATORS, GIB, Settings
from striate.selectors.spec.grammar import resolve
from striate.training.compile.memory_budget import within_budget

SCRIPT = Path(__file__).parents[2] / "scripts" / "presets.py"
# As counted in the published checkpoints.
PARAMETERS = {
    "llava-1.5-7b": 7_063_427_072,
    "llava-1.5-13b": 13_351_494_656,
    "bunny-llama-3-8b": 8_479_990_848,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-8b": 8_767_123_696,
    "smolvlm-2b": 2_246_272_880,
    "internvl3-8b": 7_944_373_760,
    "gemma-3-4b": 4_300_079_472,
}
CARDS = {"24gb": "rtx4090", "80gb": "a100"}


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("presets", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules["presets"] = module
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parents[1] / "benchmarks"))


def test_every_model_has_presets(script: ModuleType) -> None:
    names = {path.name for path in script.FOLDER.glob("*.yaml")}
    missing = {
        f"{model}-{card}gb-{method}.yaml" for model in PARAMETERS for card in (24, 80) for method in ("lora", "qlora")
    } - names
    # 13B in 16 bits take 25 GiB.
    assert missing <= {"llava-1.5-13b-24gb-lora.yaml", "qwen3-vl-8b-24gb-lora.yaml"}
    assert names == {one.group(0) for one in script.LINK.finditer(script.PAGE.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("model", PARAMETERS)
def test_presets_fit_their_cards(script: ModuleType, model: str) -> None:
    shape = script.shape_of(model)
    total = shape.other_parameters + shape.projector_parameters + sum(layer.parameters for layer in shape.layers)
    assert total == PARAMETERS[model]
    files = sorted(script.FOLDER.glob(f"{model}-*.yaml"))
    assert len(files) >= 3
    for file in files:
        config = load_config(file)
        region = resolve(config.select.region, len(shape.layers))
        tokens = config.train.max_length - shape.image_tokens
        worst = Settings(
            method=config.train.method,
            batch=config.machine.micro_batch,
            text_tokens=tokens,
            answer_tokens=tokens // 2,
            r=config.train.lora.r,
            accumulated=config.train.batch_size > config.machine.micro_batch,
        )
        step = within_budget(shape, region, worst, config.machine.memory_budget or 0)
        card = next(one for one in ACCELERATORS if one.name == CARDS[file.stem.split("-")[-2]])
        peak = forecast_memory(shape, region, step).peak / GIB
        assert peak < 0.9 * card.memory_gib, file.name
        assert f"{peak:.1f} GiB at the peak, {len(step.recomputed)} of {len(shape.layers)} layers" in file.read_text()
