"""Several linear layers as one product: values and gradients against each layer by itself, in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from striate.training.compile.merged import Shared, SharedLinear, SideBySide, merge, siblings, take_apart
from striate.training.compile.products import Gated as GatedProduct
from striate.training.compile.products import Joined, Turned

SIZES = {"two": (6, 4), "grouped": (8, 2, 2)}


def tensors(*shapes: tuple[int, ...]) -> list[Tensor]:
    """Return random tensors that need gradients."""
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("form", SIZES)
@pytest.mark.parametrize("adapted", [(), (0,), (0, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_frozen_weights(form: str, adapted: tuple[int, ...], biased: bool) -> None:
    """Outputs and the gradients of input and factors are those of the layers one by one."""
    sizes = SIZES[form]
    total, ranks = sum(sizes), [3, 2][: len(adapted)]
    shapes = [(2, 5, 7), *[(2, 5, r) for r in ranks], *[(sizes[i], r) for i, r in zip(adapted, ranks, strict=True)]]
    hidden, *factors = tensors(*shapes)
    weight = torch.randn(total, 7, dtype=torch.float64)
    bias = torch.randn(total, dtype=torch.float64) if biased else None
    copied = (len(sizes) - 1,) if len(sizes) > 2 else ()
    found = Joined.apply(hidden, weight, bias, (sizes, adapted, False, copied), *factors)
    expected = list(linear(hidden, weight, bias).split(sizes, -1))
    for place, index in enumerate(adapted):
        expected[index] = expected[index] + factors[place] @ factors[place + len(adapted)].t()
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
    weights = [torch.randn_like(one) for one in expected]
    inputs = [hidden, *factors]
    gradients = torch.autograd.grad(sum((a * b).sum() for a, b in zip(found, weights, strict=True)), inputs)
    wanted = torch.autograd.grad(sum((a * b).sum() for a, b in zip(expected, weights, strict=True)), inputs)
    for mine, theirs in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(mine, theirs)
    own = [one.untyped_storage().nbytes() == one.nbytes for one in found]
    assert own == [index in copied or index in adapted for index in range(len(sizes))]


@pytest.mark.parametrize("form", SIZES)
def test_weights_that_train(form: str) -> None:
    sizes = SIZES[form]
    hidden, weight, bias = tensors((2, 5, 7), (sum(sizes), 7), (sum(sizes),))
    assert torch.autograd.gradcheck(
        lambda *given: Joined.apply(*given, (sizes, (), True, ())), (hidden, weight, bias), fast_mode=False
    )


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(
    ("product", "sizes"), [(Joined, (4, 4)), (Joined, (4, 2, 2)), (Turned, (4, 2, 2)), (GatedProduct, (4, 4))]
)
def test_recomputed(product: type[torch.autograd.Function], sizes: tuple[int, ...], trained: bool) -> None:
    """A recomputed product finds what it keeps once in the backward pass, and gives the same gradients."""
    hidden, weight, narrow, wide = tensors((2, 5, 7), (sum(sizes), 7), (2, 5, 3), (sizes[0], 3))
    weight.requires_grad_(trained)
    positions = torch.randn(2, 2, 5, 2, dtype=torch.float64).unbind(0) if product is Turned else ()

    def run(hidden: Tensor, weight: Tensor, narrow: Tensor, wide: Tensor) -> Tensor:
        found = product.apply(hidden, weight, None, (sizes, (0,), trained, ()), *positions, narrow, wide)
        parts = found if isinstance(found, tuple) else (found,)
        return sum(((place + 1) * part).sin().sum() for place, part in enumerate(parts))

    inputs = [hidden, narrow, wide, *([weight] if trained else [])]
    given = hidden, weight, narrow, wide
    wanted = torch.autograd.grad(run(*given), inputs)
    found = torch.autograd.grad(checkpoint(run, *given, use_reentrant=False), inputs)
    for mine, theirs in zip(found, wanted, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("tokens", [1, 3])
def test_compiled_gradients(tokens: int) -> None:
    """Values of a single token are contiguous already: PyTorch 2.11's compiler loses gradients of such an alias."""

    def run(hidden: Tensor, weight: Tensor) -> Tensor:
        parts = Joined.apply(hidden, weight, None, ((4, 2, 2), (), False, (2,)))
        return sum(((place + 1) * part).sin().sum() for place, part in enumerate(parts))

    (hidden,), weight = tensors((1, tokens, 7)), torch.randn(8, 7, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    found, wanted = (torch.autograd.grad(one(hidden, weight), hidden)[0] for one in (compiled, run))
    torch.testing.assert_close(found, wanted)


class Gated(nn.Module):
    """A gated product behind two layers that read the same tensor, and one that reads another."""

    def __init__(self, second_reads_another: bool = False, trained: bool = False) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.gate, self.up, self.down = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 4)
        self.another = second_reads_another
        self.double().requires_grad_(trained)

    def forward(self, hidden: Tensor) -> Tensor:
        other = hidden + 0 if self.another else hidden
        found: Tensor = self.down(torch.sigmoid(self.gate(hidden)) * self.up(other))
        return found


@pytest.mark.parametrize("trained", [False, True])
def test_siblings_are_found_and_merged(trained: bool) -> None:
    hidden = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    module = Gated(trained=trained)
    groups = siblings(module, lambda: module(hidden))
    assert groups == [("gate", "up")]
    expected = module(hidden)
    inputs = [hidden, *(one for one in module.parameters() if one.requires_grad)]
    wanted = torch.autograd.grad(expected.sum(), inputs)
    template = Gated(trained=trained)
    (product,) = merge(template, groups)
    assert (product.names, product.trained) == (groups[0], trained)
    assert isinstance(template.up, SharedLinear)
    assert (template.up.weight is None) != trained
    side = SideBySide([] if trained else groups)
    given = side.apply(dict(module.named_parameters()))
    found = torch.func.functional_call(template, given, (hidden,), strict=True)
    torch.testing.assert_close(found, expected)
    for mine, theirs in zip(torch.autograd.grad(found.sum(), inputs), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_layers_that_do_not_belong_together_stay_apart() -> None:
    hidden = torch.randn(3, 4, dtype=torch.float64)
    apart = Gated(second_reads_another=True)
    assert siblings(apart, lambda: apart(hidden)) == []
    twice = Gated()
    assert siblings(twice, lambda: (twice(hidden), twice(hidden))) == []
    half_trained = Gated()
    half_trained.gate.requires_grad_(True)
    assert siblings(half_trained, lambda: half_trained(hidden)) == []
    no_bias = Gated()
    no_bias.up.bias = None
    assert siblings(no_bias, lambda: no_bias(hidden)) == []
    assert not any(one._forward_pre_hooks for one in no_bias.modules())


def test_other_inputs_than_before_give_other_products() -> None:
    """Sharing is never assumed: each tensor gets its own product."""
    module, hidden = Gated(second_reads_another=True, trained=True), torch.randn(3, 4, dtype=torch.float64)
    expected = module(hidden)
    merge(module, [("gate", "up")])
    torch.testing.assert_close(module(hidden), expected)


def test_weights_lie_side_by_side_and_come_back() -> None:
    module = Gated()
    before = {name: one.clone() for name, one in module.named_parameters()}
    groups = [("gate", "up")]
    side = SideBySide(groups)
    given = side.apply(dict(module.named_parameters()))
    assert set(given) == {"gate.weight", "gate.bias", "down.weight", "down.bias"}
    assert given["gate.weight"].data_ptr() == module.gate.weight.data_ptr()
    assert torch.equal(given["gate.weight"], torch.cat([before["gate.weight"], before["up.weight"]]))
    # A second asker finds them as they are; a changed value is seen, a moved weight is put back beside the other.
    assert (
        SideBySide(groups).apply(dict(module.named_parameters()))["gate.weight"].data_ptr()
        == given["gate.weight"].data_ptr()
    )
    module.up.weight.data.mul_(2)
    assert torch.equal(given["gate.weight"][6:], 2 * before["up.weight"])
    module.up.weight.data = before["up.weight"].clone()
    again = side.apply(dict(module.named_parameters()))
    assert torch.equal(again["gate.weight"][6:], before["up.weight"])
    take_apart(dict(module.named_parameters()), groups)
    for name, one in module.named_parameters():
        assert torch.equal(one, before[name])
        assert one.untyped_storage().nbytes() == one.nbytes


def test_an_interrupted_call_leaves_nothing_behind() -> None:
    """A call that ends between the members does not hand its parts to the next."""
    one, other = nn.Linear(4, 2), nn.Linear(4, 3)
    shared = Shared([one, other], ("one", "other"))
    first, second = torch.randn(2, 1, 4)
    shared.part(0, first)
    torch.testing.assert_close(shared.part(0, second), one(second))
    torch.testing.assert_close(shared.part(1, second), other(second))
