"""Compiled layers whose linear layers share products: how many, what they give, and where weights are meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from striate.artifacts import Region
from striate.models.structure.anatomy import decoder_layers
from striate.models.trainable.apply import apply_region, lora_config
from striate.training.compile import layer_function
from striate.training.compile.regional import FastLayers, fast_layers

QKV, GATED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("mlp.gate_proj", "mlp.up_proj")
MM = torch.ops.aten.mm.default


def opened(model: Any, method: str, dropout: float = 0.0) -> Any:
    """Return the model in training mode with every second layer open, LoRA's factors not zero."""
    depth = len(decoder_layers(model))
    region = Region(layers=tuple(range(1, depth, 2)), num_layers=depth, spec="odd")
    torch.manual_seed(0)
    if method == "lora":
        model = peft.get_peft_model(model, lora_config(model, region, r=4, alpha=8, dropout=dropout))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    apply_region(model, region, method)
    return model.train()


def loss_and_gradients(model: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss of a batch and what it gives every parameter."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)
    loss = model(**inputs, labels=inputs["input_ids"], use_cache=False).loss
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), found


def led_once(model: Any, layer: Any, note: Any, calls: int = 1) -> tuple[FastLayers, Callable[[], torch.Tensor]]:
    """Call a layer compiled, both ways, with `note` given its graphs; return what led it, and the call."""
    backend: Any = aot_autograd(fw_compiler=note, bw_compiler=note, partition_fn=min_cut_rematerialization_partition)
    hidden = torch.randn(2, 8, 32, requires_grad=True)
    rotary = model.get_decoder().rotary_emb(hidden, torch.arange(8)[None])
    call = partial(layer, hidden, position_embeddings=rotary, attention_mask=None)
    led = FastLayers([layer], backend=backend, say=pytest.fail)
    led.install()
    for _ in range(calls):
        call().sum().backward()
    led.remove()
    return led, call


@pytest.mark.parametrize(
    ("name", "method"),
    [("llava", "lora"), ("qwen2_5_vl", "full"), ("qwen3_vl", "lora")],
)
def test_loss_and_gradients_are_those_of_layers_one_by_one(name: str, method: str, family_builder: Any) -> None:
    """With grouped heads, biases, norms of queries and keys; afterwards weights have memory of their own again."""
    model, inputs = family_builder(name)
    model = opened(model, method, dropout=0.3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    results = []
    for merged in (False, True):
        said: list[str] = []
        with fast_layers(model, compiled=True, say=said.append, backend="eager", merged=merged) as layers:
            results.append(loss_and_gradients(model, inputs))
        assert not [line for line in said if "VisionBlock" not in line]
    assert all(function.merged for function in layers.functions.values())
    (loss, gradients), (found_loss, found) = results
    torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=1e-6)
    assert found.keys() == gradients.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, gradients[key], rtol=1e-3, atol=1e-5, msg=key)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    for parameter in decoder_layers(model).parameters():
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


@pytest.mark.parametrize(
    ("method", "dropout", "forward", "backward"),
    [("frozen", 0.1, 4, 4), ("lora", 0.1, 4 + 14, 4 + 28), ("lora", 0.0, 4 + 4 + 7, 4 + 8 + 14), ("full", 0.0, 4, 8)],
)
def test_products_of_a_compiled_layer(
    method: str, dropout: float, forward: int, backward: int, family_builder: Any
) -> None:
    """7 matrices make 4 products forward; backward 4 frozen or 8 trained, and LoRA's own.

    Without dropout, the matrices A that read the same are one product too: 4 instead of 7, three times.
    """
    model, _ = family_builder("llava")
    # Layer 0 is frozen, layer 1 open.
    model = opened(model, "full" if method == "full" else "lora", dropout)
    layer = decoder_layers(model)[0 if method == "frozen" else 1]
    counts: list[tuple[int, list[Any]]] = []

    def count(graph: Any, _: Any) -> Any:
        products = [node for node in graph.graph.nodes if node.target is MM]
        counts.append((len(products), [node.args[0].meta["val"].shape for node in products]))
        return graph

    led, _ = led_once(model, layer, count)
    assert [number for number, _ in counts] == [forward, backward]
    (function,) = led.functions.values()
    suffix = ".base_layer" if method == "lora" else ""
    groups = tuple(tuple(f"{name}{suffix}" for name in group) for group in (QKV, GATED))
    assert function.groups == (() if method == "full" else groups)


def test_what_follows_a_product_is_part_of_it(family_builder: Any) -> None:
    """Queries and keys are turned by one operator each way, and one makes the gradients of a gated product.

    What a model writes as slices, signs and concatenations is gone, both ways.
    """
    model, _ = family_builder("llava")
    model = opened(model, "full")
    layer = decoder_layers(model)[0]
    found: list[set[str]] = []

    def note(graph: Any, _: Any) -> Any:
        found.append({str(node.target) for node in graph.graph.nodes if node.op == "call_function"})
        return graph

    _, call = led_once(model, layer, note, calls=2)
    forward, backward = found
    assert "striate.turn.default" in forward
    assert {"striate.turn_back.default", "striate.gate_back.default"} <= backward
    assert not [one for one in forward | backward if one.startswith(("aten.cat", "aten.slice", "aten.neg"))]
    assert call().shape == (2, 8, 32)


def test_lean_layers_share_products_too(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    loss, gradients = loss_and_gradients(model, inputs)
    said: list[str] = []
    with fast_layers(model, compiled=True, lean=True, backend="aot_eager", say=said.append) as layers:
        found_loss, found = loss_and_gradients(model, inputs)
    assert not said
    assert all(function.merged for function in layers.functions.values())
    torch.testing.assert_close(found_loss, loss, rtol=1e-5, atol=1e-6)
    for key, gradient in found.items():
        torch.testing.assert_close(gradient, gradients[key], rtol=1e-3, atol=1e-5, msg=key)


def test_where_it_fails_layers_run_one_by_one(family_builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merged product that differs is given up, one line says so, and the layers stay compiled."""
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    expected = loss_and_gradients(model, inputs)[0]
    right = layer_function.merge

    def wrong(template: Any, groups: Any, copies: bool = True) -> Any:
        found = right(template, groups, copies)
        template.mlp.gate_proj.shared.gated = lambda hidden: hidden.new_zeros(*hidden.shape[:-1], 48)
        return found

    monkeypatch.setattr(layer_function, "merge", wrong)
    said: list[str] = []
    with fast_layers(model, compiled=True, say=said.append, backend="eager") as layers:
        loss = loss_and_gradients(model, inputs)[0]
        assert layers.describe().startswith(f"{len(decoder_layers(model))} of {len(decoder_layers(model))} decoder")
    torch.testing.assert_close(loss, expected)
    lines = [line for line in said if line.startswith("linear layers of LlamaDecoderLayer that share their input run")]
    assert len(lines) == 2
    assert all("one by one: without the compiler it differs from the layer by" in line for line in lines)
    assert not any(function.merged for function in layers.functions.values())


def test_layers_that_open_and_close_keep_learning(family_builder: Any) -> None:
    """A frozen weight beside others is opened, moved by an update and frozen again: the next product has it."""
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    layer = decoder_layers(model)[0]
    with fast_layers(model, compiled=True, backend="eager"):
        loss_and_gradients(model, inputs)
        weight = layer.self_attn.k_proj.weight
        assert weight.untyped_storage().nbytes() > weight.nbytes
        layer.requires_grad_(True)
        loss_and_gradients(model, inputs)
        with torch.no_grad():
            weight.add_(0.1 * weight.grad.sign())
        layer.requires_grad_(False)
        found = loss_and_gradients(model, inputs)[0]
    torch.testing.assert_close(found, loss_and_gradients(model, inputs)[0], rtol=1e-5, atol=1e-6)


def test_a_model_is_saved_whole_meanwhile(family_builder: Any, tmp_path: Path) -> None:
    """Views of one piece of memory are written as the tensors that they are."""
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with fast_layers(model, compiled=True, backend="eager"):
        loss_and_gradients(model, inputs)
        model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).state_dict()
    assert again.keys() == before.keys()
    assert all(torch.equal(again[name], value) for name, value in before.items())
