"""What a launcher (`accelerate launch`, `torchrun`) told this process in its environment."""

from __future__ import annotations

import os
from dataclasses import dataclass

from striate.errors import ConfigError
from striate.printable import shown


@dataclass(frozen=True)
class Launch:
    """The rank of this process, its rank on this machine, and how many processes there are: one without it."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def launch() -> Launch:
    """Return what the environment says.

    Raises:
        ConfigError: WORLD_SIZE, RANK or LOCAL_RANK is no number, or none that fits the others.
    """
    world_size = _number("WORLD_SIZE", "1", 1, None)
    if world_size == 1:
        return Launch()
    return Launch(_number("RANK", "0", 0, world_size - 1), _number("LOCAL_RANK", "0", 0, world_size - 1), world_size)


def _number(name: str, default: str, least: int, most: int | None) -> int:
    text = os.environ.get(name, default)
    value = int(text) if text.strip().isdecimal() and len(text) < 10 else -1
    if value < least or (most is not None and value > most):
        raise ConfigError(
            f"the environment has {name}={shown(text)}",
            f"a whole number from {least}" + ("" if most is None else f" to {most}"),
            f"unset {name}, or start striate with accelerate launch or torchrun, which set it",
        )
    return value
