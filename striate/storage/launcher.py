"""What a launcher (`accelerate launch`, `torchrun`) told this process in its environment."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from striate.errors import ConfigError
from striate.printable import shown

SHARDING_FLAGS = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
FLAG_WORDS = ("true", "false", "1", "0", "yes", "no", "y", "n", "t", "f", "on", "off")


@dataclass(frozen=True)
class Launch:
    """The rank of this process, its rank on this machine, and how many processes there are: one without it."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1


def launch() -> Launch:
    """Return what the environment says.

    Raises:
        ConfigError: a variable is no number or no truth value, or does not fit the others.
    """
    world_size = _number("WORLD_SIZE", "1", 1, None)
    for name in SHARDING_FLAGS:
        if os.environ.get(name, "false").lower() not in FLAG_WORDS:
            raise _wrong(name, ", ".join(FLAG_WORDS))
    if world_size == 1:
        # accelerate reads them all the same.
        _number("RANK", "0", -1, None)
        if _number("LOCAL_RANK", "-1", -1, None) >= 0 and "MASTER_ADDR" not in os.environ:
            raise _wrong("LOCAL_RANK", "no such variable where there is no MASTER_ADDR")
        return Launch()
    return Launch(_number("RANK", "0", 0, world_size - 1), _number("LOCAL_RANK", "0", 0, world_size - 1), world_size)


def _number(name: str, default: str, least: int, most: int | None) -> int:
    text = os.environ.get(name, default)
    value = int(text) if re.fullmatch(r"\s*-?[0-9]{1,9}\s*", text) else least - 1
    if value < least or (most is not None and value > most):
        raise _wrong(name, f"a whole number from {least}" + ("" if most is None else f" to {most}"))
    return value


def _wrong(name: str, allowed: str) -> ConfigError:
    return ConfigError(
        f"the environment has {name}={shown(os.environ[name])}",
        allowed,
        f"unset {name}, or start striate with accelerate launch or torchrun, which set it",
    )
