"""How fast a model reads a prompt and writes an answer, and the memory that takes."""

import math
from typing import Literal

from pydantic import Field

from striate.artifacts.base import Document


class Spread(Document):
    """The median of repeated measurements, and the lowest and highest of them."""

    median: float
    low: float
    high: float


class SpeedRecord(Document):
    """Prefill and decoding of one model on one device, by transformers' own `generate` with the KV cache.

    Attributes:
        device: name of the accelerator, or the CPU with its number of threads.
        dtype: of the weights.
        num_layers: decoder layers.
        prompts: prompts in the batch.
        prompt_tokens: tokens of each, image tokens included.
        image_tokens: how many of them are image tokens.
        new_tokens: tokens that were written after each.
        repeats: measurements, after those that warmed up.
        prefill_seconds: from the prompt to its first new token, vision encoder included.
        decode_tokens_per_second: of all rows together, from the first new token on.
        weights_gib: of parameters and buffers.
        peak_memory_gib: on an accelerator of the weights and what came on top of them, on a CPU the resident memory of
            the whole process; None where that can't be told.
    """

    device: str
    dtype: str
    num_layers: int
    prompts: int
    prompt_tokens: int
    image_tokens: int
    new_tokens: int
    repeats: int
    prefill_seconds: Spread
    decode_tokens_per_second: Spread
    weights_gib: float
    peak_memory_gib: float | None = None

    @property
    def prefill_tokens_per_second(self) -> float:
        """Tokens of all prompts that are read in a second, image tokens included, by the median."""
        seconds = self.prefill_seconds.median
        return self.prompts * self.prompt_tokens / seconds if seconds > 0 else math.inf


class SpeedRatio(Document):
    """How many times as fast as the first model another one is: of the medians, and the lowest and highest of a round.

    Attributes:
        prefill: of reading the prompt.
        decode: of writing tokens.
    """

    prefill: Spread
    decode: Spread


class Bench(Document):
    """Models that took turns on a machine, a round each: whatever else it did slowed all alike (`speed.json`).

    Attributes:
        models: what was measured of each, by its name; the first is what the others are compared with.
        ratios: of every model but the first.
        versions: of what computed.
        load: the machine's load average when it began; None where the system does not tell.
        finished: when, in UTC.
    """

    version: Literal[1] = 1
    models: dict[str, SpeedRecord] = Field(min_length=1)
    ratios: dict[str, SpeedRatio]
    versions: dict[str, str]
    load: float | None
    finished: str
