"""What a forecast is made for: the method and batch of a training step, and the accelerator it runs on."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from striate.config import TrainSection

GIB = 2**30


@dataclass(frozen=True)
class Settings:
    """One training step.

    Attributes:
        method: `lora`, `qlora` or `full`.
        batch: samples of a forward pass, one picture each.
        text_tokens: text tokens of a sample, answers included.
        answer_tokens: how many of them are answers.
        checkpointing: whether decoder layers are run again in the backward pass.
        r: LoRA rank.
        modules: which linear layers of a trained layer have adapters, as `train.lora.modules` says it.
        rank_pattern: modules of another rank, as PEFT reads it.
        use_dora: whether adapters are DoRA's.
        projector: how the projector trains.
        vision: how layers of the vision encoder train.
        vision_chosen: which of them; None for all that features pass.
        masters: whether trained weights are float32 and run in bfloat16; else they are bfloat16 all through.
        answers_only: whether the LM head sees answer positions only; else all of them.
        accumulated: whether gradients of earlier micro-batches are kept while one runs.
        fused: whether the decoder layers run compiled.
        recomputed: the layers that are run again where not all are.
        frozen: number format of the matrices of decoder layers outside the region.
        skipped: the layers that image tokens skip: keys and values are all that these compute of them.
        optimizer: AdamW with two moments in the number format of what trains, or in 8 bits.
    """

    method: Literal["lora", "qlora", "full"] = "lora"
    batch: int = 8
    text_tokens: int = 200
    answer_tokens: int = 100
    checkpointing: bool = False
    r: int = 128
    modules: str = "all"
    rank_pattern: tuple[tuple[str, int], ...] = ()
    use_dora: bool = False
    projector: Literal["frozen", "full", "lora"] = "full"
    vision: Literal["frozen", "full", "lora"] = "frozen"
    vision_chosen: frozenset[int] | None = None
    masters: bool = True
    answers_only: bool = True
    accumulated: bool = False
    fused: bool = False
    recomputed: frozenset[int] = frozenset()
    frozen: Literal["exact", "fp8", "int8"] = "exact"
    skipped: frozenset[int] = frozenset()
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"

    @classmethod
    def of(cls, config: TrainSection, encoder: Collection[int] = ()) -> Settings:
        """Return what follows from a run's settings; batch and tokens are the defaults.

        `encoder` are the layers of the vision encoder that train.
        """
        return cls(
            method=config.method,
            r=config.lora.r,
            modules=config.lora.modules,
            rank_pattern=tuple(config.lora.rank_pattern.items()),
            use_dora=config.lora.use_dora,
            projector=config.projector,
            vision=config.vision,
            vision_chosen=frozenset(encoder),
            frozen=config.frozen,
            optimizer=config.optimizer,
        )

    def recomputes(self, layer: int) -> bool:
        """Return whether the decoder layer is run again in the backward pass."""
        return self.checkpointing or layer in self.recomputed

    @property
    def before_decoder(self) -> bool:
        """Whether something trains that comes before the first decoder layer: gradients then cross all of them."""
        return (self.projector, self.vision) != ("frozen", "frozen")

    @property
    def adapted(self) -> bool:
        """Whether adapters train instead of weights."""
        return self.method != "full"


@dataclass(frozen=True)
class Accelerator:
    """One accelerator: bfloat16 matrix products a second, memory traffic a second, memory, and where they are from."""

    name: str
    title: str
    flops: float
    bytes_per_second: float
    memory_gib: float
    source: str


_SHEET = "data sheet"
ACCELERATORS: tuple[Accelerator, ...] = (
    Accelerator("h100", "H100 SXM 80 GB", 798e12, 3.35e12, 79.2, "products measured, memory from the data sheet"),
    Accelerator(
        "h200", "H200 141 GB", 798e12, 4.8e12, 139.8, "products as on the H100, the same chip; memory " + _SHEET
    ),
    Accelerator("a100", "A100 SXM 80 GB", 0.81 * 312e12, 2.04e12, 79.2, "81% of the products of the " + _SHEET),
    Accelerator("l40s", "L40S 48 GB", 0.81 * 362e12, 0.864e12, 44.4, "81% of the products of the " + _SHEET),
    Accelerator("rtx4090", "RTX 4090 24 GB", 0.81 * 165e12, 1.008e12, 23.6, "81% of the products of the " + _SHEET),
)
