"""Watches the logits of a model that is asked: one that computes NaN or infinity has no answers."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from striate.errors import ModelError, StriateError
from striate.models.structure.anatomy import unwrap


@contextmanager
def finite_logits(model: Any) -> Iterator[Callable[[], None]]:
    """Yield a function that raises if any logits of the model were not finite so far; it waits for the device.

    Errors that come of such logits, for example from a comparison of two ways to read a prompt, are replaced too.

    Raises:
        ModelError: they were not.
    """
    seen: list[Tensor] = []

    def look(module: Any, inputs: Any, output: Any) -> None:
        logits = getattr(output, "logits", None)
        if isinstance(logits, Tensor) and logits.numel():
            # The largest is NaN where any is; -inf only where all are, as tokens that are ruled out may be.
            bad = ~torch.isfinite(logits[:, -1].amax(-1)).all()
            seen[:] = [seen[0] | bad] if seen else [bad]

    def check() -> None:
        if seen and bool(seen[0]):
            raise ModelError(
                "the model computes NaN or infinity in place of logits: it has no answers",
                "finite weights, in a number format that holds what the model computes",
                "check the weights (a damaged checkpoint, a diverged training), or set machine.dtype to float32",
            )

    modules = {id(module): module for module in (model, unwrap(model))}
    hooks = [module.register_forward_hook(look) for module in modules.values()]
    try:
        yield check
        check()
    except StriateError:
        check()
        raise
    finally:
        for hook in hooks:
            hook.remove()
