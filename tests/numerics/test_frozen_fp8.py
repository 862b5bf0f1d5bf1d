"""Frozen matrices in 8-bit floats: the format, the products, and everything back as it was."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from striate.artifacts import Region
from striate.models.structure.anatomy import decoder_layers
from striate.models.trainable.apply import apply_region
from striate.training.precision import MasterWeights
from striate.training.quantization.fp8_linear import Fp8Linear, frozen_in_fp8, quantise_rows


def nearest_e4m3(values: np.ndarray) -> np.ndarray:
    """Return the nearest number with 4 significant bits, of exponent -6 at least; half to even."""
    exponent = np.floor(np.log2(np.maximum(np.abs(values), 2.0**-6)))
    step = 2.0 ** (exponent - 3)
    return np.round(values / step) * step


def test_rows_are_quantised_to_the_nearest_number() -> None:
    values = torch.randn(50, 64, dtype=torch.float64) * torch.logspace(-6, 6, 50, dtype=torch.float64)[:, None]
    quantised, scale = quantise_rows(values)
    expected_scale = values.abs().amax(1).numpy() / 448
    np.testing.assert_allclose(scale[:, 0].numpy(), expected_scale, rtol=1e-6)
    expected = nearest_e4m3((values.float() / scale).double().numpy())
    np.testing.assert_array_equal(quantised.double().numpy(), expected)


def test_a_row_of_zeros_stays_zero() -> None:
    quantised, scale = quantise_rows(torch.zeros(2, 16))
    assert torch.equal(quantised.float(), torch.zeros(2, 16))
    assert torch.isfinite(scale).all()


def dequantised(matrix: torch.Tensor) -> torch.Tensor:
    quantised, scale = quantise_rows(matrix)
    return quantised.double() * scale.double()


@pytest.mark.parametrize("bias", [False, True])
def test_product_and_gradient(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 32, bias=bias)
    fast = Fp8Linear(linear.weight.data, linear.bias.data if bias else None)
    x = torch.randn(2, 5, 64, dtype=torch.bfloat16, requires_grad=True)
    y = fast(x)
    gradient = torch.randn(2, 5, 32, dtype=torch.bfloat16)
    y.backward(gradient)
    rows, weight = x.detach().reshape(10, 64), linear.weight.data
    expected = dequantised(rows) @ dequantised(weight).t()
    if bias:
        expected = expected + linear.bias.data.double()
    torch.testing.assert_close(y.detach().reshape(10, 32).double(), expected, atol=0.02, rtol=0.01)
    assert x.grad is not None
    back = dequantised(gradient.reshape(10, 32)) @ dequantised(weight.t()).t()
    torch.testing.assert_close(x.grad.reshape(10, 64).double(), back, atol=0.02, rtol=0.01)
    exact = rows.double() @ weight.double().t()
    error = (expected - (linear.bias.data.double() if bias else 0) - exact).norm() / exact.norm()
    assert 0.01 < float(error) < 0.06


def region_of(model: Any, *layers: int) -> Region:
    return Region(layers=layers, num_layers=len(decoder_layers(model)), spec="ids")


def test_layers_outside_the_region_only_and_back_bit_for_bit(tiny_llava: Any) -> None:
    model = tiny_llava.model.to(torch.bfloat16).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    lines: list[str] = []
    with frozen_in_fp8(model, region_of(model, 1), lines.append) as count:
        kinds = [
            {type(module).__name__ for module in layer.modules()} & {"Linear", "Fp8Linear"}
            for layer in decoder_layers(model)
        ]
        assert kinds == [{"Fp8Linear"}, {"Linear"}, {"Fp8Linear"}, {"Fp8Linear"}]
        assert count == 3 * 7
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert lines == []


def test_back_after_an_error(tiny_llava: Any) -> None:
    model = tiny_llava.model.to(torch.bfloat16).requires_grad_(False)
    with pytest.raises(RuntimeError, match="stop"), frozen_in_fp8(model, region_of(model, 1)):
        raise RuntimeError("stop")
    assert not any(isinstance(module, Fp8Linear) for module in model.modules())


def test_what_trains_stays(tiny_llava: Any) -> None:
    model = tiny_llava.model.to(torch.bfloat16).requires_grad_(False)
    decoder_layers(model)[0].mlp.up_proj.requires_grad_(True)
    lines: list[str] = []
    with frozen_in_fp8(model, region_of(model, 1), lines.append) as count:
        assert type(decoder_layers(model)[0].mlp.up_proj) is nn.Linear
    assert count == 3 * 7 - 1
    assert lines == ["1 linear layers outside the region stay as they are: they train, or their widths do not fit"]


def test_another_number_format_is_said_and_nothing_changes(tiny_llava: Any) -> None:
    lines: list[str] = []
    with frozen_in_fp8(tiny_llava.model, region_of(tiny_llava.model, 1), lines.append) as count:
        assert count == 0
        assert not any(isinstance(module, Fp8Linear) for module in tiny_llava.model.modules())
    assert lines == ["frozen layers stay as they are: the model computes in torch.float32, not in bfloat16"]


def test_float32_masters_of_layers_that_train_are_no_reason(tiny_llava: Any) -> None:
    model, lines = tiny_llava.model.to(torch.bfloat16), list[str]()
    region = region_of(model, 0, 2)
    apply_region(model, region, "full")
    MasterWeights(model)
    assert next(decoder_layers(model)[0].parameters()).dtype is torch.float32
    with frozen_in_fp8(model, region, lines.append) as count:
        assert count == 2 * 7
    assert lines == []


def test_a_region_of_all_layers_says_so(tiny_llava: Any) -> None:
    lines: list[str] = []
    with frozen_in_fp8(tiny_llava.model, region_of(tiny_llava.model, 0, 1, 2, 3), lines.append) as count:
        assert count == 0
    assert lines == ["frozen layers stay as they are: no decoder layer lies outside the region"]


def test_outputs_stay_near(tiny_llava: Any) -> None:
    model = tiny_llava.model.to(torch.bfloat16).requires_grad_(False)
    ids = torch.randint(5, 100, (2, 12))
    with torch.no_grad():
        plain = model(input_ids=ids).logits.float()
        with frozen_in_fp8(model, region_of(model, 1)):
            fast = model(input_ids=ids).logits.float()
    error = (fast - plain).norm() / plain.norm()
    # Random layers spread the error of a matrix; trained ones do less.
    assert 0 < float(error) < 0.25
