"""Triton's kernels compile to machine code for data centre cards, which takes no card."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

if importlib.util.find_spec("triton") is None:
    pytest.skip("needs Triton", allow_module_level=True)

from triton import compile as build
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from striate.training.compile import dropped_kernel, gated_kernel, rotary_kernel, short_kernels

TURN = {"QUERIES": 9, "KEYS": 3, "D": 80, "HALF": 64, "ROWS": 32}
SHORT = {"GROUP": 3, "T": 64, "D": 32}
DROPPED = {"RANK": 128}
NUMBERS, INTEGERS = {"scale": "fp32"}, {"ends", "keys"}


@pytest.mark.parametrize(
    ("kernel", "constants"),
    [
        (rotary_kernel.turn_kernel, {**TURN, "BACK": False}),
        (rotary_kernel.turn_kernel, {**TURN, "BACK": True}),
        (gated_kernel.gate_kernel, {"ROWS": 4, "COLUMNS": 1024}),
        (dropped_kernel.narrow_kernel, {**DROPPED, "WIDTH": 4096, "ROWS": 64, "COLUMNS": 64}),
        (dropped_kernel.narrow_kernel, {**DROPPED, "WIDTH": 11008, "ROWS": 32, "COLUMNS": 64}),
        (dropped_kernel.back_kernel, {**DROPPED, "ROWS": 64, "COLUMNS": 128, "COUNT": 3}),
        (short_kernels.forward_kernel, {**SHORT, "PACKED": True}),
        (short_kernels.backward_kernel, {**SHORT, "PACKED": False}),
    ],
)
@pytest.mark.parametrize(("kind", "capability"), [("fp16", 80), ("bf16", 90)])
def test_it_compiles(kernel: Any, constants: dict[str, Any], kind: str, capability: int) -> None:
    """Tensors are the arguments before the first count."""
    names = list(kernel.arg_names)
    counts = names.index("rows" if "rows" in names else "length")
    signature: dict[str, str] = {}
    for place, name in enumerate(names):
        pointer = "*i32" if name in INTEGERS else f"*{kind}"
        signature[name] = "constexpr" if name in constants else pointer if place < counts else NUMBERS.get(name, "i32")
    places = {(names.index(name),): value for name, value in constants.items()}
    built = build(
        ASTSource(fn=kernel, signature=signature, constexprs=places), target=GPUTarget("cuda", capability, 32)
    )
    assert len(built.asm["cubin"]) > 1000
    assert built.metadata.shared <= 160 * 1024
