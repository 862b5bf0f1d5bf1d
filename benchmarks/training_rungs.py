"""The rungs of the training ladder: what each changes against the one below, at which shape and batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from published_shapes import SHAPES, llava
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

# Tests of the machinery, not of speed: CUDA-free values of every rung.
TINY_TEXT, TINY_BATCH = 16, 2


def small() -> LlavaConfig:
    """Return the shape of the built-in LVLM's language model with 49 image tokens from a vision encoder of no weight.

    So a step is one with cached vision features, and the projector trains.
    """
    text = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=98,
        patch_size=14,
        projection_dim=32,
    )
    return llava(text, vision)


MODELS: dict[str, Callable[[], LlavaConfig]] = {**SHAPES, "small": small}


@dataclass(frozen=True)
class Rung:
    """One configuration of a step.

    Attributes:
        name: what its line is called.
        says: what it changes, in words.
        model: a shape of `MODELS`.
        region: a SPEC.
        method: what trains.
        plain: whether the step is plain Hugging Face's: logits everywhere, no masters, no clipping.
        checkpointing: whether every layer is recomputed.
        compiled: whether layers run compiled.
        budget: GiB of `machine.memory_budget`.
        batch: samples a step.
        text: text tokens a sample, half of them answers.
        answers: answer tokens a sample, where not half of the text.
        dropout: of LoRA.
        attention: PyTorch's choice of attention kernel, or cuDNN's first.
        frozen: number format of the decoder layers outside the region.
        optimizer: AdamW with its moments in float32, or in 8 bits by bitsandbytes.
        image_tokens: whether image tokens are computed in all layers, or in the region alone.
        image_also: a SPEC of layers that compute them too, where it is the region alone.
        graphs: whether kernels are recorded as CUDA graphs.
        hints: whether answers, padding and places of image tokens are found on the CPU, so that no step waits.
        keyed: whether LoRA's dropout is made from keys again, in place of a stored mask.
        options: of the compiler.
        kept_features: whether vision features are kept, so that no step runs the vision encoder.
        optional: whether it runs only when asked for by name.
    """

    name: str
    says: str
    model: str = "llava-1.5-7b"
    region: str = "uniform:25%"
    method: Literal["lora", "full"] = "lora"
    plain: bool = False
    checkpointing: bool = False
    compiled: bool = False
    budget: float | None = None
    batch: int = 8
    text: int = 200
    answers: int | None = None
    dropout: float = 0.05
    attention: Literal["default", "cudnn"] = "default"
    frozen: Literal["exact", "fp8", "int8"] = "exact"
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    image_tokens: Literal["all", "region"] = "all"
    image_also: str = "none"
    graphs: bool = False
    hints: bool = True
    keyed: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    kept_features: bool = False
    optional: bool = False

    @property
    def setup(self) -> tuple[Any, ...]:
        """What two rungs share that can be measured on one model."""
        return self.model, self.region, self.method, self.plain, self.dropout, self.optimizer


# The built-in LVLM as its quickstart tunes it: full weights, short samples.
_SMALL: dict[str, Any] = {"model": "small", "method": "full", "batch": 256, "text": 35, "answers": 3}

RUNGS = (
    Rung(
        "reference", "the paper's way: LoRA on all layers, checkpointing", region="all", plain=True, checkpointing=True
    ),
    Rung("region checkpointed", "25% of the layers", plain=True, checkpointing=True),
    Rung("region", "no checkpointing", plain=True),
    Rung("answers", "the loss at answers only, float32 masters, clipping", hints=False),
    Rung("mask", "compiled layers, LoRA's dropout with a stored mask", compiled=True, hints=False, keyed=False),
    Rung("compiled", "LoRA's dropout from keys", compiled=True, hints=False),
    Rung("exact", "no step waits for the accelerator", compiled=True),
    Rung("exact kept", "vision features kept, as the encoder is frozen", compiled=True, kept_features=True),
    Rung("exact graphs", "kernels recorded as CUDA graphs", compiled=True, graphs=True, optional=True),
    Rung("exact cudnn", "attention by cuDNN first", compiled=True, attention="cudnn"),
    Rung("exact no dropout", "LoRA without dropout", compiled=True, dropout=0.0, optional=True),
    Rung(
        "exact tuned",
        "the compiler tries launch settings",
        compiled=True,
        options={"coordinate_descent_tuning": True},
        optional=True,
    ),
    Rung("int8", "frozen layers in 8-bit integers, for memory", compiled=True, frozen="int8"),
    Rung("fp8", "frozen layers in 8-bit floats", compiled=True, frozen="fp8"),
    Rung("region-only", "image tokens in the region alone, exact matrices", compiled=True, image_tokens="region"),
    Rung(
        "region-only uncompiled",
        "the same with Hugging Face's and PEFT's code",
        image_tokens="region",
        optional=True,
    ),
    Rung(
        "fast",
        "frozen layers in 8-bit floats, image tokens in the region",
        compiled=True,
        frozen="fp8",
        image_tokens="region",
    ),
    Rung(
        "fast half",
        "the same with image tokens in half of the layers",
        compiled=True,
        frozen="fp8",
        image_tokens="region",
        image_also="uniform:50%",
    ),
    Rung(
        "fast kept",
        "the same with vision features kept",
        compiled=True,
        frozen="fp8",
        image_tokens="region",
        kept_features=True,
    ),
    Rung(
        "exact autotuned",
        "the compiler writes and times its own matrix products too",
        compiled=True,
        options={"max_autotune_gemm": True, "prologue_fusion": True},
        optional=True,
    ),
    Rung("exact batch 4", "half the batch, nothing recomputed", compiled=True, batch=4),
    Rung("exact batch 4, 22 GiB", "as few layers recomputed as 22 GiB take", compiled=True, batch=4, budget=22.0),
    Rung("full", "full weights of 25%", method="full"),
    Rung("full exact", "full weights, compiled layers", method="full", compiled=True),
    Rung(
        "full exact 8-bit",
        "AdamW's moments in 8 bits",
        method="full",
        compiled=True,
        optimizer="adamw-8bit",
        optional=True,
    ),
    Rung("all exact", "LoRA on all layers, compiled", region="all", compiled=True),
    Rung("13b, 40 GiB", "LLaVA-1.5-13B within 40 GiB", model="llava-1.5-13b", compiled=True, batch=4, budget=40.0),
    Rung("small", "the built-in LVLM's shape, full weights", **_SMALL),
    Rung("small exact", "compiled layers", **_SMALL, compiled=True),
    Rung(
        "small graphed",
        "kernels recorded as CUDA graphs",
        **_SMALL,
        compiled=True,
        graphs=True,
    ),
    Rung(
        "small graphed wide",
        "twice the batch",
        **{**_SMALL, "batch": 512},
        compiled=True,
        graphs=True,
    ),
    Rung("small exact wide", "the same without graphs", **{**_SMALL, "batch": 512}, compiled=True),
    Rung(
        "small lora graphed",
        "LoRA, kernels recorded",
        **{**_SMALL, "method": "lora"},
        compiled=True,
        graphs=True,
        optional=True,
    ),
    Rung("small lora exact", "LoRA", **{**_SMALL, "method": "lora"}, compiled=True, optional=True),
    Rung("reference again", "to see how much the machine drifts", region="all", plain=True, checkpointing=True),
)
