"""Training steps as other tools make them, and striate's own: one shape, samples of one size, LoRA of rank 128.

Every arm is measured in a process of its own: some tools patch what they touch for good.
"""

from __future__ import annotations

import statistics
import time
from argparse import Namespace
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from peers_trl import trainable_of, trl_steps
from peers_unsloth import unsloth_model
from published_shapes import SHAPES, tiny
from training_ladder import Bench, print_line
from training_rungs import RUNGS, TINY_BATCH, TINY_TEXT
from true_shapes import Case, build, make_batch, measure, open_region, shape_of

from striate import Region
from striate.selectors.spec.grammar import resolve
from striate.training.precision import checkpointed

MODEL, BATCH, TEXT = "llava-1.5-7b", 8, 200


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Attributes:
        tool: whose step it is; a function of this name measures it.
        region: a SPEC.
        checkpointing: whether every layer is recomputed.
        rung: of the training ladder, for striate's own.
        packages: whose versions the line tells, beside torch, transformers and PEFT.
    """

    tool: str
    region: str = "uniform:25%"
    checkpointing: bool = False
    rung: str = ""
    packages: tuple[str, ...] = ()


def _three(tool: str, *packages: str) -> dict[str, Arm]:
    return {
        f"{tool}-25": Arm(tool, packages=packages),
        f"{tool}-all": Arm(tool, "all", packages=packages),
        f"{tool}-all-checkpointed": Arm(tool, "all", checkpointing=True, packages=packages),
    }


REFERENCE = Arm("peft", "all", checkpointing=True)
ARMS = {
    "reference": REFERENCE,
    "peft-25": Arm("peft"),
    "peft-all": Arm("peft", "all"),
    "striate-exact": Arm("striate", rung="exact"),
    "striate-all": Arm("striate", "all", rung="all exact"),
    **_three("liger", "liger-kernel"),
    **_three("trl", "trl", "datasets"),
    **_three("unsloth", "unsloth"),
    "striate-fp8": Arm("striate", rung="fp8"),
    "striate-fast": Arm("striate", rung="fast"),
    "striate-fast-half": Arm("striate", rung="fast half"),
    "reference-again": REFERENCE,
}


def measured(name: str, given: Namespace) -> dict[str, Any]:
    """Return the line of an arm."""
    arm, device = ARMS[name], "cpu" if given.tiny else "cuda"
    found, begin = STEPS[arm.tool](arm, given, device)
    packages = ("torch", "transformers", "peft", *arm.packages)
    middle = statistics.median(found["steps_ms"])
    return {
        "name": name,
        "ms": round(middle, 1),
        "ms_min": round(min(found["steps_ms"]), 1),
        "tokens_per_s": round(1e3 * found["tokens"] / middle),
        "tokens": found["tokens"],
        # The same of all tools at one region: they train the same.
        "trainable_m": round(found["trainable"] / 1e6, 3),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0, 2),
        # All that came between a built model and the first timed step: kernels, compiling, comparisons.
        "warm_s": round(time.perf_counter() - begin - sum(found["steps_ms"]) / 1e3, 1),
        "loss": found["loss"],
        "versions": {package: version(package) for package in packages},
        "steps_ms": found["steps_ms"],
    }


def peft(arm: Arm, given: Namespace, device: str, patched: Any = lambda model: None) -> tuple[dict[str, Any], float]:
    """Return steps of transformers with PEFT, and when the model was built."""
    model, config, size = _model(arm, given, device)
    patched(model.get_base_model())
    with checkpointed(model, arm.checkpointing):
        return _plain_steps(model, config, size, arm, given, device)


def unsloth(arm: Arm, given: Namespace, device: str) -> tuple[dict[str, Any], float]:
    """Return the same of a model that unsloth made ready, which checkpoints by itself."""
    config, region, size = _shape(arm, given)
    return _plain_steps(unsloth_model(config, region, device, arm.checkpointing), config, size, arm, given, device)


def liger(arm: Arm, given: Namespace, device: str) -> tuple[dict[str, Any], float]:
    """Return the same with Liger's kernels in the language model, and its loss."""
    patch = import_module("liger_kernel.transformers").apply_liger_kernel_to_llava
    return peft(arm, given, device, lambda model: patch(model=model))


def trl(arm: Arm, given: Namespace, device: str) -> tuple[dict[str, Any], float]:
    """Return steps of TRL's SFTTrainer."""
    model, config, size = _model(arm, given, device)
    return trl_steps(model, config, size, given, device, arm.checkpointing)


def striate(arm: Arm, given: Namespace, device: str) -> tuple[dict[str, Any], float]:
    """Return steps of a rung of the training ladder."""
    rung = next(rung for rung in RUNGS if rung.name == arm.rung)
    if given.tiny:
        rung = replace(rung, batch=TINY_BATCH)
    bench = Bench(rung, Namespace(**vars(given), profile=[]), device)
    # As the others' steps do.
    bench.waits = True
    begin = time.perf_counter()
    found = bench.measure(rung)
    print_line(f"{arm.rung}: {found.get('layers_run', 'uncompiled')}")
    return {**found, "loss": round(found["loss_last"], 3), "trainable": trainable_of(bench.model)}, begin


STEPS: dict[str, Any] = {"peft": peft, "liger": liger, "trl": trl, "unsloth": unsloth, "striate": striate}


def _case(arm: Arm) -> Case:
    return Case(MODEL, arm.region, "lora", arm.checkpointing, reference=True)


def _plain_steps(
    model: Any, config: Any, size: tuple[int, int], arm: Arm, given: Namespace, device: str
) -> tuple[dict[str, Any], float]:
    torch.manual_seed(1)
    batch = make_batch(config, shape_of(config), *size, device)
    begin = time.perf_counter()
    found = measure(model, batch, _case(arm), device, given.steps, given.warmup)
    return {**found, "tokens": batch["input_ids"].numel(), "trainable": trainable_of(model)}, begin


def _shape(arm: Arm, given: Namespace) -> tuple[Any, Region, tuple[int, int]]:
    """Return the model's shape, the region, and samples and text tokens of a batch."""
    config = SHAPES[MODEL]()
    config = tiny(config) if given.tiny else config
    region = resolve(arm.region, config.text_config.num_hidden_layers)
    return config, region, (TINY_BATCH, TINY_TEXT) if given.tiny else (BATCH, TEXT)


def _model(arm: Arm, given: Namespace, device: str) -> tuple[Any, Any, tuple[int, int]]:
    """Return the model with its region open, its shape, and the sizes of a batch."""
    config, region, size = _shape(arm, given)
    return open_region(build(config, device), region, _case(arm), device), config, size
