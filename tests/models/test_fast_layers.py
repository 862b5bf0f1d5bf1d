"""Compiled decoder layers: the gradients of plain ones in every family, one graph a kind, LoRA's dropout, fallbacks."""

from __future__ import annotations

import copy
import logging
import math
import shutil
from typing import Any

import peft
import pytest
import torch
from torch import nn

from striate.artifacts import Region
from striate.models.structure.anatomy import decoder_layers
from striate.models.trainable.apply import apply_region, lora_config
from striate.training.compile.dropped import draw_keys, kept
from striate.training.compile.last_layer_answers import AnswerFunction
from striate.training.compile.layer_form import kind_of, refusal
from striate.training.compile.layer_function import LayerFunction
from striate.training.compile.lora_dropout import FastLora
from striate.training.compile.regional import FastLayers, fast_layers
from striate.training.loss import answer_loss

# The compiler's trace is written for tools; capturing it takes longer than compiling.
logging.getLogger("torch.__trace").propagate = False
FAMILIES = ["llava", "qwen2_5_vl", "gemma3", "internvl", "qwen3_vl"]


def region_of(model: Any) -> Region:
    """Return every second layer."""
    depth = len(decoder_layers(model))
    return Region(layers=tuple(range(1, depth, 2)), num_layers=depth, spec="odd")


def opened(model: Any, method: str, dropout: float = 0.0) -> Any:
    """Return the model in training mode with its region open, LoRA's factors not zero."""
    region = region_of(model)
    if method == "lora":
        model = peft.get_peft_model(model, lora_config(model, region, r=4, alpha=8, dropout=dropout))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    apply_region(model, region, method)
    return model.train()


def loss_and_gradients(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of a batch and what it gives every parameter."""
    model.zero_grad(set_to_none=True)
    loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), found


def check_equal(model: Any, inputs: dict[str, Any], **limits: float) -> FastLayers:
    """Check that loss and gradients are those of the plain model; return the layers."""
    loss, gradients = loss_and_gradients(model, inputs)
    said: list[str] = []
    with fast_layers(model, compiled=True, say=said.append, backend="eager", merged=False) as layers:
        fast_loss, fast_gradients = loss_and_gradients(model, inputs)
    # Encoders of Qwen cut their attention at lengths that are numbers in a tensor: no compiler follows that.
    assert not [line for line in said if "VisionBlock runs uncompiled: it can't be compiled" not in line]
    torch.testing.assert_close(fast_loss, loss, **limits)
    assert fast_gradients.keys() == gradients.keys()
    for name, gradient in fast_gradients.items():
        torch.testing.assert_close(gradient, gradients[name], msg=name, **limits)
    return layers


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_the_plain_ones(name: str, family_builder: Any) -> None:
    """Without a compiler's own kernels the operations are the same, and so is every bit."""
    model, inputs = family_builder(name)
    model = opened(model, "lora")
    layers = check_equal(model, inputs, rtol=0, atol=0)
    kinds = {kind_of(layer) for layer in decoder_layers(model)}
    assert len(layers.functions) == len(kinds) <= 4
    assert layers.describe().startswith(f"{len(decoder_layers(model))} of {len(decoder_layers(model))} decoder layers")


@pytest.mark.parametrize(
    ("name", "method"), [("llava", "lora"), ("llava", "full"), ("qwen2_5_vl", "lora"), ("gemma3", "full")]
)
def test_the_last_layer_at_answers_only(name: str, method: str, family_builder: Any) -> None:
    """Same loss and gradients, where a family's layer has the known form; else the whole layer."""
    model, inputs = family_builder(name)
    model = opened(model, method)
    inputs = {**inputs, "labels": inputs["input_ids"].clone()}
    inputs["labels"][:, :-3] = -100
    loss = answer_loss(model, inputs)
    loss.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    said: list[str] = []
    with fast_layers(model, compiled=True, say=said.append, backend="eager") as layers:
        found = answer_loss(model, inputs)
        found.backward()
    assert not [line for line in said if "VisionBlock" not in line]
    assert any(isinstance(one, AnswerFunction) for one in layers.functions.values()) == (name != "gemma3")
    torch.testing.assert_close(found, loss, rtol=1e-6, atol=1e-6)
    for name, one in model.named_parameters():
        if one.grad is not None:
            torch.testing.assert_close(one.grad, gradients.pop(name), rtol=1e-4, atol=1e-5, msg=name)
    assert not gradients


def test_full_weights_and_recomputation(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    check_equal(model, inputs, rtol=0, atol=0)
    loss, gradients = loss_and_gradients(model, inputs)
    for compiled in (False, True):
        with fast_layers(model, compiled=compiled, recomputed=(0, 1), backend="eager", merged=False):
            again, found = loss_and_gradients(model, inputs)
        assert torch.equal(again, loss)
        assert all(torch.equal(found[name], gradients[name]) for name in gradients)


def test_a_graph_a_kind_not_a_layer(family_builder: Any) -> None:
    """Two kinds of decoder layers, frozen and trained, and one of the encoder's; other lengths and batches add few."""
    model, inputs = family_builder("llava")
    model = opened(model, "lora")
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    # Lengths that other tests have made dynamic already would save graphs here.
    torch._dynamo.reset()
    with fast_layers(model, compiled=True, backend=count):  # type: ignore[arg-type]
        loss_and_gradients(model, inputs)
        assert len(graphs) == 3
        text = {"input_ids": torch.randint(10, 20, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
        for length in (9, 8, 7, 6, 5):
            loss_and_gradients(model, {name: value[:, :length] for name, value in text.items()})
    assert len(graphs) <= 9


def test_layers_run_as_they_are_without_gradients(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    with torch.no_grad():
        expected = model(**inputs).logits
        with fast_layers(model, compiled=True, backend="eager") as layers:
            assert torch.equal(model(**inputs).logits, expected)
        assert not layers.functions
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))


def test_a_layer_that_opens_later_changes_its_kind(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    with fast_layers(model, compiled=True, backend="eager", merged=False) as layers:
        loss_and_gradients(model, inputs)
        decoder_layers(model)[0].requires_grad_(True)
        decoder_layers(model)[1].requires_grad_(False)
        _, found = loss_and_gradients(model, inputs)
        assert len(layers.functions) == 2
    _, expected = loss_and_gradients(model, inputs)
    assert found.keys() == expected.keys()
    assert any(".layers.0." in name for name in found)
    assert not any(".layers.1." in name for name in found)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_dropout_keeps_the_right_share_independently(probability: float) -> None:
    """Shares within 5 standard errors: of all, of every column, of neighbours together, of two masks together."""
    torch.manual_seed(0)
    rows, columns = 4096, 96
    first, second = (
        kept(key, columns, probability).double() for key in draw_keys(2, torch.Size([rows]), torch.device("cpu"))
    )
    keep = 1 - probability
    one = math.sqrt(keep * probability)
    assert abs(float(first.mean()) - keep) < 5 * one / math.sqrt(rows * columns)
    assert float((first.mean(0) - keep).abs().max()) < 5 * one / math.sqrt(rows)
    both = math.sqrt(keep**2 * (1 - keep**2))
    for other in (first.roll(1, 1), first.roll(1, 0), first.roll(17, 1), second):
        assert abs(float((first * other).mean()) - keep**2) < 5 * both / math.sqrt(rows * columns)


def test_dropout_has_pefts_mean_and_variance(family_builder: Any) -> None:
    """Over many draws the adapter's output has the moments that PEFT's has."""
    model, _ = family_builder("llava")
    model = opened(model, "lora", dropout=0.3)
    module = next(one for one in decoder_layers(model)[1].modules() if hasattr(one, "lora_A"))
    fast = FastLora(module)
    hidden = torch.randn(1, 1, module.in_features).expand(1, 4000, -1)
    torch.manual_seed(1)
    with torch.no_grad():
        fast.keys = draw_keys(1, hidden.shape[:-1], hidden.device)[0]
        ours, theirs = fast(hidden)[0], module(hidden)[0]
        module.eval()
        mean = module(hidden[:, :1])[0, 0]
    spread = theirs.std(0)
    assert float(((ours.mean(0) - mean).abs() / spread).max()) < 5 / math.sqrt(4000)
    torch.testing.assert_close(ours.std(0), spread, rtol=0.1, atol=0)


def test_the_same_seed_drops_the_same(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "lora", dropout=0.3)
    losses = []
    with fast_layers(model, compiled=True, backend="eager"):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            losses.append(float(loss_and_gradients(model, inputs)[0]))
    assert losses[0] == losses[1] != losses[2]


def test_what_cannot_be_a_function_runs_as_it_is(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    layer = decoder_layers(model)[0]
    handle = layer.mlp.register_forward_hook(lambda module, args, output: 2 * output)
    expected = loss_and_gradients(model, inputs)[0]
    said: list[str] = []
    with fast_layers(model, compiled=True, say=said.append, backend="eager") as layers:
        assert torch.equal(loss_and_gradients(model, inputs)[0], expected)
    handle.remove()
    assert said == ["LlamaDecoderLayer runs uncompiled: mlp has a hook"]
    assert f"{len(decoder_layers(model)) - 1} of" in layers.describe()


def test_a_function_that_differs_is_refused(family_builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    expected = loss_and_gradients(model, inputs)[0]
    right = LayerFunction.plain
    monkeypatch.setattr(LayerFunction, "plain", lambda *args: right(*args) * 1.1)
    said: list[str] = []
    with fast_layers(model, compiled=True, say=said.append, backend="eager"):
        assert torch.equal(loss_and_gradients(model, inputs)[0], expected)
    assert len(said) == 3
    assert all("runs uncompiled: without the compiler it differs from the layer by" in line for line in said)


def test_a_layer_that_cannot_be_compiled_runs_as_it_is(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    expected = loss_and_gradients(model, inputs)[0]

    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    said: list[str] = []
    with fast_layers(model, compiled=True, say=said.append, backend=broken):  # type: ignore[arg-type]
        assert torch.equal(loss_and_gradients(model, inputs)[0], expected)
    assert len(said) == 3
    assert all("it can't be compiled" in line and "no compiler on this machine" in line for line in said)


def test_adapters_other_than_plain_lora_are_refused(family_builder: Any) -> None:
    model, _ = family_builder("llava")
    config = lora_config(model, region_of(model), r=4)
    config.use_dora = True
    model = peft.get_peft_model(copy.deepcopy(model), config)
    assert refusal(decoder_layers(model)[0]) == ""
    assert refusal(decoder_layers(model)[1]).endswith("is a variant of LoRA")


def test_an_inductor_graph_drops_what_the_plain_one_drops(family_builder: Any) -> None:
    """PyTorch's own compiler on one adapted linear layer: the keys give its kernels the same masks, both ways."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler here")
    model, _ = family_builder("llava")
    model = opened(model, "lora", dropout=0.3)
    layer = nn.Sequential(decoder_layers(model)[1].mlp.down_proj)
    function = LayerFunction(layer)
    hidden = torch.randn(2, 5, layer[0].in_features, requires_grad=True)
    tensors = dict(layer.named_parameters())
    trained = [hidden, *(tensor for tensor in tensors.values() if tensor.requires_grad)]
    keys = function.keys(hidden)
    found, expected = (run(tensors, keys, (hidden,), {}) for run in (function, function.plain))
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        *(torch.autograd.grad(out.square().sum(), trained) for out in (found, expected)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert not torch.equal(function.plain(tensors, function.keys(hidden), (hidden,), {}), expected)
