"""Frozen matrices in 8-bit integers: half a step of the scale at most, the products, half the bytes, all as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from striate.artifacts import Region
from striate.models.structure.anatomy import decoder_layers
from striate.training.quantization.int8_linear import Int8Linear, dequantise, frozen_in_int8, quantise_outputs


def region_of(model: Any, *layers: int) -> Region:
    return Region(layers=layers, num_layers=len(decoder_layers(model)), spec="ids")


def test_no_weight_moves_by_more_than_half_a_step() -> None:
    torch.manual_seed(0)
    weight = torch.randn(50, 96) * torch.logspace(-6, 6, 50)[:, None]
    integers, scale = quantise_outputs(weight)
    assert integers.dtype is torch.int8
    assert int(integers.min()) >= -127
    # The largest of each output is met exactly, so no finer scale would do.
    assert torch.equal(integers.abs().amax(1), torch.full((50,), 127, dtype=torch.int8))
    wide = weight.double().numpy()
    np.testing.assert_allclose(scale.numpy(), np.abs(wide).max(1) / 127, rtol=1e-6)
    error = np.abs(integers.double().numpy() * scale.double().numpy()[:, None] - wide)
    assert (error <= scale.double().numpy()[:, None] * (0.5 + 1e-4)).all()
    assert error.max(1).min() > 0


@pytest.mark.parametrize(("dtype", "places"), [(torch.float32, 24), (torch.bfloat16, 8), (torch.float16, 11)])
def test_a_half_format_rounds_once_more(dtype: torch.dtype, places: int) -> None:
    weight = torch.randn(8, 64)
    integers, scale = quantise_outputs(weight)
    exact = integers.double() * scale.double()[:, None]
    made = dequantise(integers, scale, dtype)
    assert made.dtype is dtype
    assert float(((made.double() - exact).abs() / exact.abs().clamp_min(1e-9)).max()) <= 2.0**-places * 1.01


def test_an_output_of_zeros_stays_zero() -> None:
    integers, scale = quantise_outputs(torch.zeros(2, 16))
    assert torch.equal(dequantise(integers, scale, torch.float32), torch.zeros(2, 16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_product_and_gradient(dtype: torch.dtype, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 33, bias=bias, dtype=dtype)
    frozen = Int8Linear(plain.weight.data, plain.bias.data if bias else None)
    x = torch.randn(2, 5, 64, dtype=dtype, requires_grad=True)
    y = frozen(x)
    gradient = torch.randn(2, 5, 33, dtype=dtype)
    y.backward(gradient)
    integers, scale = quantise_outputs(plain.weight.data)
    weight = dequantise(integers, scale, dtype).double().numpy()
    wanted = x.detach().double().numpy() @ weight.T + (plain.bias.data.double().numpy() if bias else 0)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype is torch.float32 else {"rtol": 0.01, "atol": 0.02}
    np.testing.assert_allclose(y.detach().double().numpy(), wanted, **tolerance)
    assert x.grad is not None
    assert x.grad.dtype is dtype
    np.testing.assert_allclose(x.grad.double().numpy(), gradient.double().numpy() @ weight, **tolerance)
    assert y.dtype is dtype


def test_autocast_decides_the_format_of_the_result() -> None:
    """A norm with float32 masters hands float32 on; the product is in the model's format then, as a plain one."""
    plain = nn.Linear(32, 16, bias=False, dtype=torch.bfloat16)
    frozen = Int8Linear(plain.weight.data, None)
    x = torch.randn(3, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert frozen(x).dtype is plain(x).dtype is torch.bfloat16
        frozen(x).float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype is torch.float32


def test_layers_outside_the_region_only_and_back_bit_for_bit(tiny_llava: Any) -> None:
    model = tiny_llava.model.to(torch.bfloat16).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    sizes = [sum(one.nbytes for one in layer.parameters()) for layer in decoder_layers(model)]
    lines: list[str] = []
    with frozen_in_int8(model, region_of(model, 1), lines.append) as count:
        kinds = [
            {type(module).__name__ for module in layer.modules()} & {"Linear", "Int8Linear"}
            for layer in decoder_layers(model)
        ]
        assert kinds == [{"Int8Linear"}, {"Linear"}, {"Int8Linear"}, {"Int8Linear"}]
        assert count == 3 * 7
        held = sum(one.nbytes for one in [*decoder_layers(model)[0].parameters(), *decoder_layers(model)[0].buffers()])
        # Scales weigh much at a width of 32, and nothing at one of 4,096.
        assert held < 0.6 * sizes[0]
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert lines == []


def test_back_after_an_error_and_what_trains_stays(tiny_llava: Any) -> None:
    model = tiny_llava.model.requires_grad_(False)
    decoder_layers(model)[0].mlp.up_proj.requires_grad_(True)
    lines: list[str] = []
    frozen = frozen_in_int8(model, region_of(model, 1), lines.append)
    assert frozen.__enter__() == 3 * 7 - 1
    assert type(decoder_layers(model)[0].mlp.up_proj) is nn.Linear
    with pytest.raises(RuntimeError, match="stop"):
        frozen.gen.throw(RuntimeError("stop"))
    assert not any(isinstance(module, Int8Linear) for module in model.modules())
    assert lines == ["1 linear layers outside the region stay as they are: they train"]


def test_outputs_stay_nearer_than_in_8_bit_floats(tiny_llava: Any) -> None:
    from striate.training.quantization.fp8_linear import frozen_in_fp8

    model = tiny_llava.model.to(torch.bfloat16).requires_grad_(False)
    ids = torch.randint(5, 100, (2, 12))
    with torch.no_grad():
        plain = model(input_ids=ids).logits.float()
        errors = []
        for frozen in (frozen_in_int8, frozen_in_fp8):
            with frozen(model, region_of(model, 1)):
                errors.append(float((model(input_ids=ids).logits.float() - plain).norm() / plain.norm()))
    assert 0 < errors[0] < 0.05
    assert errors[0] < errors[1] / 2
