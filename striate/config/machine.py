"""Settings of the machine (device, dtype, micro-batch, compile, caches), apart from the science."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from striate.config.section import MOST, Section

DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d{1,3})?")


class MachineSection(Section):
    """The machine, apart from the science: changing it must not change what is learned, only how fast.

    `micro_batch` is the most samples of a padded micro-batch; where it does not divide what falls to a process of
    `train.batch_size`, the largest number below it that does is taken. `eval_batch` is the most rows, `eval_tokens`
    the most tokens (padding and new tokens included) of a batch in evaluation; the defaults depend on the device.
    With `train.packing`, `pack_tokens` is the most tokens of a row, in place of `micro_batch`. `compile` compiles
    every decoder layer for training (regional compilation). `memory_budget` is the peak in GiB that training may
    reach: the fewest layers are recomputed (activation checkpointing) that keep it. `graphs` launches the kernels
    of compiled layers as CUDA graphs: for small models with `train.packing`. `cache_vision` caches the frozen
    vision encoder's features of each training picture, in memory, or on disk in `cache_folder` for all runs of a
    sweep. `max_pixels` and `max_ratio`, of the longer side to the shorter, bound the pictures that are decoded at
    all: a picture beyond them is an error. `log_to` names loggers that get the numbers of training, through Hugging
    Face's callbacks.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    micro_batch: int = Field(default=8, ge=1, le=1_000_000)
    eval_batch: int | None = Field(default=None, ge=1, le=1_000_000)
    eval_tokens: int | None = Field(default=None, ge=1, le=MOST)
    workers: int = Field(default=0, ge=0, le=256)
    compile: Literal["auto", "off", "on"] = "auto"
    graphs: Literal["auto", "off", "on"] = "auto"
    memory_budget: float | None = Field(default=None, gt=0, le=1_000_000)
    pack_tokens: int = Field(default=8192, ge=16, le=10_000_000)
    cache_vision: Literal["off", "memory", "disk"] = "off"
    cache_folder: str | None = None
    max_pixels: int = Field(default=64_000_000, ge=1, le=178_000_000)
    max_ratio: float = Field(default=50, ge=1, le=1_000_000)
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _without_hidden_state_cache(cls, values: Any) -> Any:
        """Return the values without `cache_hidden`, which older configs have as `off`."""
        if not isinstance(values, dict) or "cache_hidden" not in values:
            return values
        if values["cache_hidden"] not in ("off", False):
            raise ValueError(
                f"cache_hidden is {values['cache_hidden']!r}, but hidden states are no longer cached: only 'off' is"
                " allowed, or no such key; use machine.cache_vision, which caches the vision encoder's features"
            )
        return {key: value for key, value in values.items() if key != "cache_hidden"}

    @field_validator("device")
    @classmethod
    def _known_device(cls, value: str) -> str:
        if not DEVICE.fullmatch(value):
            raise ValueError(f"unknown device {value!r}: auto, cpu, cuda, cuda:N or mps")
        return value

    @field_validator("compile", "graphs", "cache_vision", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """Return the word for what YAML takes for a truth value."""
        return {False: "off", True: "on"}[value] if isinstance(value, bool) else value
