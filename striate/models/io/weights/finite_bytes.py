"""Finds values that are infinite or no numbers in stored tensors, by their bits, as the bytes pass by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from striate.errors import ModelError

# Where all of these bits are set, a value is infinite or no number: by the format's code, in unsigned integers.
_ALL_SET: Mapping[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
    "F8_E5M2": (np.uint8, 0x7C),
    "F8_E4M3": (np.uint8, 0x7F),
}


def all_finite(code: str, content: bytes) -> bool:
    """Return whether values in the format `code` are all finite; what is no known floating point is."""
    if code not in _ALL_SET:
        return True
    kind, bits = _ALL_SET[code]
    values = np.frombuffer(content, dtype=kind, count=len(content) // kind().itemsize)
    mask = kind(bits)
    return not values.size or bool((values & mask).max() != mask)


class PassingNumbers:
    """Looks at the bytes of one tensor as they pass: numbers that are finite, or a mask of zeros and minus infinity.

    Some checkpoints hold such a mask, which is added to attention scores, as a buffer: nothing has diverged there.
    """

    def __init__(self, code: str) -> None:
        """Begin with a tensor in the format `code`."""
        self._code, self._finite, self._mask = code, True, True

    def fine(self, content: bytes) -> bool:
        """Return whether all that passed until now, `content` included, is finite or a mask."""
        self._finite = self._finite and all_finite(self._code, content)
        # Ordinary weights show in their first piece that they are none, and that is not asked again.
        self._mask = self._mask and _is_mask(self._code, content)
        return self._finite or self._mask


def _is_mask(code: str, content: bytes) -> bool:
    """Return whether `content` is zeros and minus infinity alone."""
    if code not in _ALL_SET or code == "F8_E4M3":  # Formats without an infinity.
        return False
    kind, bits = _ALL_SET[code]
    sign = 1 << (8 * kind().itemsize - 1)
    values = np.frombuffer(content, dtype=kind, count=len(content) // kind().itemsize)
    return bool((((values & kind(sign - 1)) == 0) | (values == kind(sign | bits))).all())


def not_finite(source: Path | str, name: str) -> ModelError:
    """Return the error for weights at `source` of which the tensor called `name` has such values."""
    return ModelError(
        f"the weights in {source} hold values that are infinite or no numbers, for example in {name}",
        "weights that are all finite numbers",
        "its training diverged, or a file is damaged: take an earlier checkpoint, or copy the model again",
    )
