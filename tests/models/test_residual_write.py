"""The linear module by which a layer writes to the residual stream: found, proved, or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from striate.errors import ModelError
from striate.models.interventions.layer_replay import LayerCall
from striate.models.interventions.residual_write import ResidualWrite, find_write

WIDTH, INNER = 16, 24


class Layer(nn.Module):
    """A decoder layer of one MLP: x + factor * down(act(up(x)))."""

    def __init__(self, down: nn.Module, factor: float = 1.0) -> None:
        super().__init__()
        self.up, self.down, self.factor = nn.Linear(WIDTH, INNER), down, factor

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.factor * self.down(self.up(hidden).tanh())


class Parallel(Layer):
    """A parallel block: attention and MLP read the same state; attention's part runs last."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(INNER, WIDTH))
        self.mixed = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + self.mixed(hidden.cumsum(1))


class Told(Layer):
    """A layer with a linear module behind its MLP whose output is not added, but gates the rest."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(INNER, WIDTH))
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) + 0 * self.gate(hidden).tanh()


def found(layer: nn.Module, dtype: torch.dtype = torch.float32) -> ResidualWrite:
    torch.manual_seed(0)
    layer = layer.to(dtype)
    hidden = torch.randn(2, 5, WIDTH).to(dtype)
    # One token whose state is a thousand times as long, as models have them.
    hidden[0, 0] *= 1000
    with torch.no_grad():
        return find_write(layer, LayerCall((hidden,), {}, layer(hidden)), torch.arange(10), "layer 3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("factor", [1.0, 0.22, -0.5])
def test_the_last_linear_module_and_its_gain(dtype: torch.dtype, factor: float) -> None:
    layer = Layer(nn.Linear(INNER, WIDTH), factor)
    former = layer.down.weight.clone()
    write = found(layer, dtype)
    assert (write.name, write.gain) == ("down", pytest.approx(factor, rel=0.03 if dtype == torch.bfloat16 else 1e-3))
    assert torch.equal(layer.down.weight, former.to(dtype))


def test_a_convolution_of_width_one_lies_the_other_way_round() -> None:
    layer = Layer(Conv1D(WIDTH, INNER))
    write = found(layer)
    assert write.weight.shape == (WIDTH, INNER)
    write.weight.copy_(torch.ones(WIDTH, INNER))
    assert torch.equal(layer.down.weight, torch.ones(INNER, WIDTH))


def test_either_part_of_a_parallel_block_will_do() -> None:
    assert found(Parallel()).name == "mixed"


def test_a_module_without_effect_is_passed_over() -> None:
    assert found(Told()).name == "down"


def test_weights_that_are_no_plain_numbers_are_no_linear_modules() -> None:
    packed: Any = nn.Linear(INNER, WIDTH)
    del packed.weight
    packed.weight = torch.zeros(INNER * WIDTH // 2, 1, dtype=torch.uint8)
    packed.forward = lambda hidden: hidden[..., :WIDTH]
    with pytest.raises(ModelError, match=r"layer 3 can't be compensated .* no linear module in it sees every token"):
        found(Layer(packed))
