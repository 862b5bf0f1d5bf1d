"""One of two gloo processes that train the tiny LLaVA with DeepSpeed's ZeRO-3 on its CPU accelerator.

Run by test_scale_deepspeed.py: `python zero3_worker.py FOLDER SCENARIO...`, with scenarios of scale_worker.py's kind.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scale_worker
import torch

CONFIG = Path(__file__).parents[2] / "configs" / "accelerate" / "zero3.yaml"
LAUNCHED = ("ACCELERATE_", "FSDP_")


def environment() -> dict[str, str]:
    """Return what `accelerate launch` tells its processes for the shipped config."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env

    args = launch_command_parser().parse_args(["--config_file", str(CONFIG), "striate"])
    args, _, _ = _validate_launch_command(args)
    args.deepspeed_fields_from_accelerate_config = ""
    _, found = prepare_deepspeed_cmd_env(args)
    return {key: value for key, value in found.items() if key.startswith(LAUNCHED)}


@contextlib.contextmanager
def zero3() -> Iterator[None]:
    """Shard weights as the shipped config says; Accelerate and transformers remember that until they are told."""
    from accelerate.state import AcceleratorState
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    wanted = environment()
    AcceleratorState._reset_state()
    os.environ.update(wanted)
    try:
        yield
    finally:
        AcceleratorState._reset_state()
        unset_hf_deepspeed_config()
        for name in wanted:
            os.environ.pop(name, None)


def scenario(folder: Path, name: str) -> dict[str, Any]:
    """Return what the scenario called `name` gives."""
    full, lora = scale_worker.FULL, scale_worker.LORA
    if name == "zero3-resumed":
        with zero3(), scale_worker.interrupted_after(3):
            scale_worker.run(folder, name, lora)
    config = {"full": full, "packed": full.model_copy(update={"packing": True})}.get(name.partition("-")[2], lora)
    # Gradients are clipped by DeepSpeed, which must be told the limit.
    clipped = {"zero3-clipped": 0.5}.get(name, config.max_grad_norm)
    more: dict[str, Any] = {"dtype": torch.bfloat16} if name == "zero3-half" else {}
    if name == "zero3-layers-alone":
        # The lowest trained layer's input then needs no gradient of itself.
        config = config.model_copy(update={"projector": "frozen"})
    if name == "zero3-compiled":
        more["machine"] = scale_worker.MACHINE.model_copy(update={"compile": "on"})
    with zero3():
        return scale_worker.run(folder, name, config.model_copy(update={"max_grad_norm": clipped}), **more)


if __name__ == "__main__":
    scale_worker.main(scenario)
