#!/usr/bin/env python3
"""Write configs/presets/ and docs/presets.md: for each LVLM, card and method what the memory forecast says fits.

No weights and no network: models are built on the meta device from the shapes in benchmarks/preset_shapes.py.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForImageTextToText

from striate.errors import TrainingError
from striate.models.forecast.layer_shapes import ModelShape, model_shape
from striate.models.forecast.memory import forecast_memory
from striate.models.forecast.settings import GIB, Settings
from striate.models.structure.anatomy import find_anatomy
from striate.models.structure.meta_model import Blueprint
from striate.selectors.spec.grammar import resolve
from striate.training.compile.memory_budget import within_budget

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

from preset_shapes import PRESETS  # noqa: E402

Method = Literal["lora", "qlora"]
FOLDER, PAGE = ROOT / "configs" / "presets", ROOT / "docs" / "presets.md"
LINK = re.compile(r"(?<=configs/presets/)[\w.-]+\.yaml(?=\))")
REGION, RANK = "uniform:25%", 128
# GiB that a step may reach: the rest is for CUDA itself, and for what an allocator can't hand out.
BUDGETS = {24: 20.0, 80: 70.0}
MICRO_BATCHES = (16, 8, 4, 2, 1)
TITLES = {"lora": "LoRA", "qlora": "QLoRA"}
METHODS: tuple[Method, ...] = ("lora", "qlora")
# The most tokens of a sample, pictures included: the first with which a step fits.
LENGTHS = (4096, 2048)
# Hub ids; Bunny's is a folder that `striate import` makes.
MODELS = {
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "bunny-llama-3-8b": "models/bunny-llama-3-8b",
    "qwen2.5-vl-7b": "Qwen/Qwen2.5-VL-7B-Instruct",
    "qwen3-vl-8b": "Qwen/Qwen3-VL-8B-Instruct",
    "smolvlm-2b": "HuggingFaceTB/SmolVLM-Instruct",
    "internvl3-8b": "OpenGVLab/InternVL3-8B-hf",
    "gemma-3-4b": "google/gemma-3-4b-it",
}
# One picture of a fixed size: longer samples are rare.
SHORT = {"llava-1.5-7b", "llava-1.5-13b", "bunny-llama-3-8b", "gemma-3-4b"}


@dataclass(frozen=True)
class Preset:
    """One config: a model, a card of so many GB, a method, and what fits: samples at a time and layers recomputed."""

    model: str
    card: int
    method: Method
    length: int
    micro_batch: int
    recomputed: int
    layers: int
    peak_gib: float

    @property
    def name(self) -> str:
        """The config's file name."""
        return f"{self.model}-{self.card}gb-{self.method}.yaml"

    def text(self) -> str:
        """Return the config."""
        path, many = MODELS[self.model], f"{self.micro_batch} samples have" if self.micro_batch > 1 else "a sample has"
        source = (
            ["# The model's folder is what `striate import` makes of the original checkpoint."]
            if "models/" in path
            else []
        )
        lines = [
            f"# {self.model}, {TITLES[self.method]} of {REGION} and the projector on a {self.card} GB card.",
            f"# Forecast where {many} {self.length} tokens: {self.peak_gib:.1f} GiB at the peak, {self.recomputed} of"
            f" {self.layers} layers recomputed.",
            *source,
            "# How to use it: docs/presets.md.",
        ]
        return (
            "\n".join(lines)
            + f"""
version: 1
seed: 0
model:
  path: {path}
data:
  train: [data/train]
  validate: 2%
select:
  region: {REGION}
train:
  method: {self.method}
  lora: {{r: {RANK}, alpha: {2 * RANK}, dropout: 0.05}}
  batch_size: 128
  max_length: {self.length}
  keep: best
machine:
  dtype: bfloat16
  micro_batch: {self.micro_batch}
  memory_budget: {BUDGETS[self.card]:g}
  workers: 8
"""
        )


@cache
def shape_of(model: str) -> ModelShape:
    """Return the widths that the forecast needs."""
    with torch.device("meta"):
        built = AutoModelForImageTextToText.from_config(PRESETS[model]())
    built.tie_weights()
    return model_shape(Blueprint(built, find_anatomy(built)))


def settings_of(model: str, method: Method, length: int, micro_batch: int) -> Settings:
    """Return a step whose every sample is as long as may be, with one picture and half of its text answers."""
    text = length - shape_of(model).image_tokens
    return Settings(
        method=method, batch=micro_batch, text_tokens=text, answer_tokens=text // 2, r=RANK, accumulated=True
    )


def preset(model: str, card: int, method: Method) -> Preset | None:
    """Return what fits: the longest samples, and as many at a time as need at most half of the layers recomputed."""
    for length in LENGTHS[model in SHORT :]:
        found = [one for size in MICRO_BATCHES if (one := fitted(model, card, method, length, size))]
        few = [one for one in found if 2 * one.recomputed <= one.layers]
        if found:
            return few[0] if few else found[-1]
    return None


def fitted(model: str, card: int, method: Method, length: int, micro_batch: int) -> Preset | None:
    """Return the preset of so many samples at a time, with as few layers recomputed as fit; None where none fit."""
    shape = shape_of(model)
    region = resolve(REGION, len(shape.layers))
    try:
        step = within_budget(shape, region, settings_of(model, method, length, micro_batch), BUDGETS[card])
    except TrainingError:
        return None
    peak = forecast_memory(shape, region, step).peak / GIB
    return Preset(model, card, method, length, micro_batch, len(step.recomputed), len(shape.layers), peak)


def presets() -> list[Preset]:
    """Return every preset."""
    chosen = (preset(*one) for one in product(MODELS, BUDGETS, METHODS))
    return [one for one in chosen if one]


def page(every: list[Preset]) -> str:
    """Return the page about them."""
    lines = [
        "| "
        + " | ".join(
            [
                f"[{one.name}](../configs/presets/{one.name})",
                str(one.length),
                str(one.micro_batch),
                f"{one.recomputed} of {one.layers}",
                f"{one.peak_gib:.1f}",
            ]
        )
        + " |"
        for one in every
    ]
    missing = [
        f"{model} with {method} on {card} GB"
        for model, card, method in product(MODELS, BUDGETS, METHODS)
        if not any((one.model, one.card, one.method) == (model, card, method) for one in every)
    ]
    return f"""# Presets: models, cards, methods

    striate check configs/presets/qwen3-vl-8b-80gb-lora.yaml --set data.train='[PACK]'
    striate run configs/presets/qwen3-vl-8b-80gb-lora.yaml --out runs/a --set data.train='[PACK]'

A config for each of {len(MODELS)} LVLMs on a card of 24 GB and on one of 80 GB: LoRA and QLoRA of rank {RANK}, a
region of 25% and the projector. `machine.memory_budget` is {BUDGETS[24]:g} and {BUDGETS[80]:g} GiB: when training
begins, as few layers are recomputed as keep that for the largest micro-batch of your data. The table is the worst
case: every sample as long as `train.max_length` allows, with one picture and half of its text answers, gradients of
earlier micro-batches in memory. These are [forecasts](forecast.md) from the models' configs; none of the {len(every)}
was run on such a card. Not among them, as it does not fit: {", ".join(missing) or "none"}.

QLoRA trains in 4 bits, but `analyze` and `evaluate` read the model in 16 bits: for 13B on a 24 GB card use the verbs
`select` and `train`, as its weights alone take 25 GiB so. Pictures that a model cuts into tiles, or that are large,
make samples long: one that does not fit into `train.max_length` is told of by `check`. Bunny's weights are imported
first ([original checkpoints](original-checkpoints.md)).

| config | `train.max_length` | `machine.micro_batch` | layers recomputed | forecast, GiB |
|---|---|---|---|---|
{chr(10).join(lines)}

This page and the configs are written by `python scripts/presets.py`.
"""


def main() -> None:
    """Write the configs and the page."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    every = presets()
    for old in FOLDER.glob("*.yaml"):
        old.unlink()
    for one in every:
        (FOLDER / one.name).write_text(one.text(), encoding="utf-8")
    PAGE.write_text(page(every), encoding="utf-8")


if __name__ == "__main__":
    main()
