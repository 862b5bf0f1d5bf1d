"""Estimate how many rows and tokens fit into a device's memory."""

from typing import Any

import torch

from striate.models.structure.anatomy import unwrap
from striate.tasks.inference.run_state import Budget

CPU_ROWS, CPU_TOKENS = 128, 16384
ACCELERATOR_ROWS, FALLBACK_TOKENS = 512, 65536
SHARE = 0.4
LEAST_TOKENS = 4096


def budget_for(model: Any, rows: int | None = None, tokens: int | None = None) -> Budget:
    """Return what is given, completed by what suits the model's device.

    On a GPU the tokens are those whose keys, values and activations take 40% of the memory that is free. A guess that
    is too large costs one failed batch: the budget then shrinks.
    """
    core = unwrap(model)
    on_cpu = core.device.type == "cpu"
    return Budget(
        rows=rows or (CPU_ROWS if on_cpu else ACCELERATOR_ROWS),
        tokens=tokens or (CPU_TOKENS if on_cpu else _tokens_that_fit(core)),
    )


def _tokens_that_fit(core: Any) -> int:
    if core.device.type != "cuda":
        return FALLBACK_TOKENS
    free, _ = torch.cuda.mem_get_info(core.device)
    return max(LEAST_TOKENS, int(SHARE * free / _bytes_of_token(core)))


def _bytes_of_token(core: Any) -> int:
    """Return about how much memory a token takes: keys and values, twice while rows are picked, and activations."""
    config = core.config.get_text_config()
    width = config.hidden_size
    heads = getattr(config, "num_attention_heads", None) or 1
    key_values = (getattr(config, "num_key_value_heads", None) or heads) * (
        getattr(config, "head_dim", None) or width // heads
    )
    inner = getattr(config, "intermediate_size", None) or 4 * width
    numbers = 4 * key_values * config.num_hidden_layers + 12 * width + 3 * inner
    return int(numbers * core.dtype.itemsize)
