"""The numbers of layers on a curve, from a text such as `0:50%` or `0:50%:2`."""

from __future__ import annotations

import re

from striate.errors import ConfigError
from striate.printable import shown
from striate.pruning.removal import layers_to_remove

_PART = r"\s*(\d{1,6}|(?:100|\d{1,2})(?:\.\d{1,9})?\s*%)\s*"
_FORM = re.compile(rf"{_PART}:{_PART}(?::\s*(\d{{1,6}})\s*)?")
ALLOWED = "FROM:TO or FROM:TO:STEP; FROM and TO are numbers of layers, or percentages such as 50%"


def curve_counts(text: str, num_layers: int) -> tuple[int, ...]:
    """Return the numbers of layers, of `num_layers` in all, that `text` means: from FROM to TO, both of them, by STEP.

    0 is among them in any case: it is the model that all others are held against.

    Raises:
        ConfigError: another form, no number over 0, or a step of 0.
    """
    match = _FORM.fullmatch(text)
    if match is None or int(match[3] or 1) == 0:
        raise ConfigError(f"a curve of {shown(text)}", ALLOWED, "for example --curve 0:50%")
    first, last = (layers_to_remove(int(part) if part.isdigit() else part, num_layers) for part in match.group(1, 2))
    counts = [count for count in range(first, last + 1, int(match[3] or 1)) if count]
    if not counts:
        raise ConfigError(
            f"a curve of {shown(text)}: of {num_layers} layers that is from {first} to {last}, and none goes",
            f"at least one number over 0: {ALLOWED}",
            "for example --curve 0:50%",
        )
    return (0, *counts)
