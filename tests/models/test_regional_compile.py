"""Compiled decoder layers: the gradients of plain ones in every family, one graph a kind, LoRA's dropout, fallbacks."""

from __future__ import annotations

import contextlib
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
from striate.models.visual_token_skipping.skipped_layer import CurrentBatch, install
from striate.training.compile import regional
from striate.training.compile.equivalence_check import difference
from striate.training.compile.lora_dropout import KeyedDropout, draw_keys, keep_mask, keyed_dropout, keyed_dropouts
from striate.training.compile.regional import CompiledLayers, compiled_layers, frozen_encoders, layer_signature

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


def check_equal(model: Any, inputs: dict[str, Any], **limits: float) -> CompiledLayers:
    """Check that loss and gradients are those of the plain model; return the layers."""
    loss, gradients = loss_and_gradients(model, inputs)
    lines: list[str] = []
    with compiled_layers(model, lines.append, backend="eager") as layers:
        compiled_loss, compiled_gradients = loss_and_gradients(model, inputs)
    # Qwen's encoders cut their attention at lengths that are numbers in a tensor.
    assert all("VisionBlock is compiled in pieces: Data dependent operator" in line for line in lines)
    torch.testing.assert_close(compiled_loss, loss, **limits)
    assert compiled_gradients.keys() == gradients.keys()
    for name, gradient in compiled_gradients.items():
        torch.testing.assert_close(gradient, gradients[name], msg=name, **limits)
    return layers


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_the_plain_ones(name: str, family_builder: Any) -> None:
    """Without a compiler's own kernels the operations are the same, and so is every bit."""
    model, inputs = family_builder(name)
    model = opened(model, "lora")
    layers = check_equal(model, inputs, rtol=0, atol=0)
    kinds = {layer_signature(layer) for layer in decoder_layers(model)}
    assert len(kinds) <= 4
    assert not any(entry.refused for entry in layers._layers)
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))


def test_full_weights_and_recomputation(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    check_equal(model, inputs, rtol=0, atol=0)
    loss, gradients = loss_and_gradients(model, inputs)
    for compiled in (False, True):
        with compiled_layers(model, compiled=compiled, recomputed=(0, 1), backend="eager") as layers:
            again, same = loss_and_gradients(model, inputs)
        assert layers.recomputed == 2
        assert torch.equal(again, loss)
        assert all(torch.equal(same[name], gradients[name]) for name in gradients)


def test_a_recomputed_layer_keeps_its_input_alone(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")

    def kept_bytes() -> int:
        sizes: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            model(**inputs, use_cache=False)
        return sum(sizes.values())

    whole = kept_bytes()
    with compiled_layers(model, compiled=False, recomputed=range(len(decoder_layers(model)))):
        assert kept_bytes() < 0.7 * whole


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
    with compiled_layers(model, backend=count) as layers:
        loss_and_gradients(model, inputs)
        assert len(graphs) == 3
        depth = len(decoder_layers(model))
        assert layers.describe().startswith(f"{depth + 4} of {depth + 4} layers run compiled, as 3 kinds (")
        text = {"input_ids": torch.randint(10, 20, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
        for length in (9, 8, 7, 6, 5):
            loss_and_gradients(model, {name: value[:, :length] for name, value in text.items()})
    assert len(graphs) <= 9


@pytest.mark.parametrize("vary", [True, False])
def test_a_graph_that_is_told_so_takes_any_length(family_builder: Any, vary: bool) -> None:
    model, _ = family_builder("llava")
    model = opened(model, "full")
    counts, graphs = [], 0

    def count(graph: Any, _: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    torch._dynamo.reset()
    tokens = torch.randint(10, 20, (2, 24))
    with compiled_layers(model, lengths_vary=vary, backend=count):
        for length in (24, 23, 11, 7):
            text = {"input_ids": tokens[:, :length], "attention_mask": torch.ones(2, length, dtype=torch.long)}
            _, compiled = loss_and_gradients(model, text)
            counts.append(graphs)
    assert (counts[-1] == counts[0]) is vary
    _, plain = loss_and_gradients(model, text)
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_vision_encoder_of_many_kinds_is_not_compiled(family_builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind takes seconds, and the kinds there may be are the decoder's."""
    monkeypatch.setattr(regional, "MOST_VISION_KINDS", 2)
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    vision = frozen_encoders(model)[0]
    for place, layer in enumerate(vision):
        layer.width = place // 2
    check_equal(model, inputs)
    for place, layer in enumerate(vision):
        layer.width = place
    lines: list[str] = []
    with compiled_layers(model, lines.append, backend="eager") as layers:
        loss_and_gradients(model, inputs)
    assert lines == ["4 layers of the vision encoder run uncompiled: they are of 4 kinds"]
    depth = len(decoder_layers(model))
    assert layers.describe().startswith(f"{depth} of {depth} layers run compiled, as 2 kinds (")
    # Few enough, the encoder's kinds leave the decoder as many as before.
    monkeypatch.setattr(regional, "MOST_VISION_KINDS", 4)
    monkeypatch.setattr(regional, "MOST_KINDS", 2)
    with compiled_layers(model, backend="eager") as layers:
        loss_and_gradients(model, inputs)
    assert layers.describe().startswith(f"{depth + 4} of {depth + 4} layers run compiled, as 6 kinds (")
    lines.clear()
    with compiled_layers(model, lines.append, vision=False, backend="eager") as layers:
        loss_and_gradients(model, inputs)
    assert layers.describe().startswith(f"{depth} of {depth} layers run compiled, as 2 kinds (")


def test_layers_run_as_they_are_without_gradients(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    with torch.no_grad():
        expected = model(**inputs).logits
        with compiled_layers(model, backend="eager") as layers:
            assert torch.equal(model(**inputs).logits, expected)
        assert layers.describe().startswith("0 of 0")


def test_a_layer_that_opens_later_changes_its_kind(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    with compiled_layers(model, backend="eager") as layers:
        loss_and_gradients(model, inputs)
        decoder_layers(model)[0].requires_grad_(True)
        decoder_layers(model)[1].requires_grad_(False)
        layers.recheck()
        _, compiled = loss_and_gradients(model, inputs)
    _, expected = loss_and_gradients(model, inputs)
    assert compiled.keys() == expected.keys()
    assert any(".layers.0." in name for name in compiled)
    assert not any(".layers.1." in name for name in compiled)
    assert all(torch.equal(compiled[name], expected[name]) for name in expected)


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_dropout_keeps_the_right_share_independently(probability: float) -> None:
    """Shares within 5 standard errors: of all, of every column, of neighbours together, of two masks together."""
    torch.manual_seed(0)
    rows, columns = 4096, 96
    keys = torch.randint(-(2**31), 2**31, (2, rows), dtype=torch.int32)
    first, second = (keep_mask(key, columns, probability).double() for key in keys)
    keep = 1 - probability
    one = math.sqrt(keep * probability)
    assert abs(float(first.mean()) - keep) < 5 * one / math.sqrt(rows * columns)
    assert float((first.mean(0) - keep).abs().max()) < 5 * one / math.sqrt(rows)
    both = math.sqrt(keep**2 * (1 - keep**2))
    for other in (first.roll(1, 1), first.roll(1, 0), first.roll(17, 1), second):
        assert abs(float((first * other).mean()) - keep**2) < 5 * both / math.sqrt(rows * columns)


def test_dropout_has_the_moments_of_torch() -> None:
    """Over many draws the mean is the input, and the variance that of `nn.Dropout`: x^2 p / (1 - p)."""
    torch.manual_seed(0)
    x = torch.randn(64)
    many = x.expand(20_000, 64)
    keyed = KeyedDropout(0.3)
    draw_keys([keyed], many)
    for dropout in (keyed, nn.Dropout(0.3)):
        draws = dropout.train()(many)
        spread = x.abs() * math.sqrt(0.3 / 0.7)
        assert float(((draws.mean(0) - x).abs() / spread).max()) < 5 / math.sqrt(20_000)
        torch.testing.assert_close(draws.std(0), spread, rtol=0.05, atol=0)


def test_dropout_is_of_its_own_while_compiled_only(family_builder: Any) -> None:
    model, _ = family_builder("llava")
    model = opened(model, "lora", dropout=0.3)
    before = {name: type(module) for name, module in model.named_modules() if "lora_dropout" in name}
    with keyed_dropout(model):
        inside = {type(module) for name, module in model.named_modules() if name.endswith("lora_dropout.default")}
        assert inside == {KeyedDropout}
        assert all(module.training for module in model.modules() if isinstance(module, KeyedDropout))
    assert before == {name: type(module) for name, module in model.named_modules() if "lora_dropout" in name}


def test_without_dropping_the_layer_is_pefts(family_builder: Any) -> None:
    """Also its scale, alpha / r, which moves into the dropout."""
    model, inputs = family_builder("llava")
    model = opened(model, "lora", dropout=0.3).eval()
    expected = model(**inputs).logits
    with keyed_dropout(model):
        torch.testing.assert_close(model(**inputs).logits, expected)
    assert torch.equal(model(**inputs).logits, expected)


def test_the_same_seed_drops_the_same(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "lora", dropout=0.3)
    losses = []
    with compiled_layers(model, backend="eager"):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            losses.append(float(loss_and_gradients(model, inputs)[0]))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("name", [*FAMILIES, "mllama"])
def test_dropout_runs_in_every_family(name: str, family_builder: Any) -> None:
    """Also where adapters read other rows than their layer's: cross-attention reads the vision encoder's."""
    model, inputs = family_builder(name)
    batch = {key: torch.cat([value] * 2) for key, value in inputs.items()}
    model = opened(model, "lora", dropout=0.3)
    with compiled_layers(model, backend="eager") as layers:
        loss, gradients = loss_and_gradients(model, batch)
        across = [dropout for dropout in keyed_dropouts(model) if dropout.unkeyed]
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients.values())
    assert bool(across) == (name == "mllama")
    assert not any(entry.refused for entry in layers._layers)


def test_keys_of_dropout_are_no_static_inputs(family_builder: Any) -> None:
    """A CUDA graph is recorded anew for each address of an input that counts as static, and keys are new each call."""
    seen: dict[torch.dtype, set[Any]] = {}

    def backend(graph: torch.fx.GraphModule, given: Any) -> Any:
        for node in graph.graph.find_nodes(op="placeholder"):
            static = node.meta["tensor_dict"].get("_dynamo_static_input_type") if "tensor_dict" in node.meta else None
            seen.setdefault(node.meta["example_value"].dtype, set()).add(static)
        return graph.forward

    # Else graphs of other tests are taken.
    torch.compiler.reset()
    model, inputs = family_builder("llava")
    model = opened(model, "lora", dropout=0.3)
    with compiled_layers(model, backend=backend):
        loss_and_gradients(model, inputs)
    assert seen[torch.int32] == {None}
    assert "unguarded" in seen[torch.float32]


def test_keys_of_a_row_hold_for_an_input_without_the_batch_axis() -> None:
    """Experts see tokens one after another: (B T, D) instead of (B, T, D)."""
    torch.manual_seed(0)
    hidden, keyed = torch.randn(2, 3, 8), KeyedDropout(0.5)
    draw_keys([keyed], hidden)
    assert torch.equal(keyed(hidden).flatten(0, 1), keyed(hidden.flatten(0, 1)))
    assert not keyed.unkeyed


def test_skipped_and_whole_layers_are_of_different_kinds(family_builder: Any) -> None:
    model, _ = family_builder("llava")
    first, second = decoder_layers(model)[:2]
    assert layer_signature(first) == layer_signature(second)
    install(first, CurrentBatch(), skipped=True, step=None, varlen=False)
    assert layer_signature(first) != layer_signature(second)


def test_a_gradient_too_few_is_a_difference() -> None:
    layer = nn.Linear(4, 4)
    hidden = torch.randn(1, 3, 4, requires_grad=True)

    def without_bias(hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, layer.weight) + layer.bias.detach()

    assert "gives a gradient where the layer gives none" in difference(
        layer, without_bias, layer.forward, (hidden,), {}
    )
    detached = difference(layer, lambda hidden: layer(hidden).detach(), layer.forward, (hidden,), {})
    assert detached == "compiled, it gives gradients to other tensors"


def test_the_first_step_draws_no_other_numbers_for_being_compared(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "lora", dropout=0.3)
    losses = []
    for compared in (False, True):
        with compiled_layers(model, backend="eager") as layers, contextlib.ExitStack() as stack:
            if not compared:
                stack.enter_context(layers.uncompiled())
            torch.manual_seed(0)
            losses.append(loss_and_gradients(model, inputs)[0])
    assert torch.equal(*losses)


def test_no_mask_and_no_dropped_input_is_kept(family_builder: Any) -> None:
    """Of an adapted linear layer under autocast the compiled graph keeps its input, a key a token, and A's result."""
    model, _ = family_builder("llava")
    layer = opened(model, "lora", dropout=0.3).base_model.model.model.language_model.layers[1].mlp.up_proj
    layer.base_layer.bfloat16()
    hidden = torch.randn(2, 5, layer.in_features, dtype=torch.bfloat16, requires_grad=True)
    kept: list[torch.Tensor] = []
    weights = {weight.data_ptr() for weight in layer.parameters()}
    with torch.autocast("cpu", torch.bfloat16), keyed_dropout(layer):
        draw_keys(keyed_dropouts(layer), hidden)
        compiled = torch.compile(layer.forward, fullgraph=True, backend="aot_eager_decomp_partition")
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda one: one):
            compiled(hidden).sum().backward()
    activations = [tensor for tensor in kept if tensor.shape[:-1] in ((2, 5), (10,)) or tensor.shape == (2, 5)]
    wide = [tensor for tensor in activations if layer.in_features in tensor.shape and tensor.data_ptr() not in weights]
    assert not any(tensor.dtype is torch.bool for tensor in kept)
    assert {tensor.data_ptr() for tensor in wide} <= {hidden.data_ptr()}


def test_a_layer_that_differs_runs_as_it_is(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    expected = loss_and_gradients(model, inputs)[0]

    def wrong(graph: Any, _: Any) -> Any:
        return lambda *args: [value * 1.1 for value in graph.forward(*args)]

    lines: list[str] = []
    with compiled_layers(model, lines.append, backend=wrong):
        assert torch.equal(loss_and_gradients(model, inputs)[0], expected)
    assert len(lines) == 3
    assert all("runs uncompiled: compiled it differs from the layer by" in line for line in lines)


def test_a_gradient_that_differs_is_told(family_builder: Any) -> None:
    model, _ = family_builder("llava")
    layer = decoder_layers(opened(model, "full"))[1].mlp
    hidden = torch.randn(2, 5, 32, requires_grad=True)

    def wrong(states: torch.Tensor) -> torch.Tensor:
        right: torch.Tensor = layer(states)
        return right + 5 * states - 5 * states.detach()

    assert not difference(layer, layer.forward, layer.forward, (hidden,), {})
    told = difference(layer, wrong, layer.forward, (hidden,), {})
    assert told.startswith("compiled, in its gradients, it differs from the layer by")


def test_a_layer_that_cannot_be_compiled_runs_as_it_is(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    expected = loss_and_gradients(model, inputs)[0]

    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler on this machine")

    lines: list[str] = []
    with compiled_layers(model, lines.append, backend=broken) as layers:
        assert torch.equal(loss_and_gradients(model, inputs)[0], expected)
    assert len(lines) == 3
    assert all("it can't be compiled" in line and "no compiler on this machine" in line for line in lines)
    assert layers.describe().startswith("0 of")


def test_paused_layers_compile_nothing(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    with compiled_layers(model, backend=count) as layers:
        with layers.uncompiled():
            loss_and_gradients(model, inputs)
        assert not graphs
        loss_and_gradients(model, inputs)
        assert graphs


def test_dora_compiles_in_pieces(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    # Every adapter of this kind breaks the trace, and each piece is compiled by itself.
    config = lora_config(model, region_of(model), r=4, dropout=0.3, modules="q_proj")
    config.use_dora = True
    model = peft.get_peft_model(model, config)
    apply_region(model, region_of(model), "lora")
    lines: list[str] = []
    with compiled_layers(model.train(), lines.append, backend="eager"):
        loss_and_gradients(model, inputs)
    assert len(lines) == 1
    assert lines[0].startswith("LlamaDecoderLayer is compiled in pieces: ")


# A C++ compiler takes ten seconds; continuous integration runs these beside the families.
@pytest.mark.families
def test_an_inductor_graph_drops_what_the_plain_one_drops(family_builder: Any) -> None:
    """PyTorch's own compiler on one adapted linear layer: the same keys give its kernels the same masks, both ways."""
    if not shutil.which("g++"):
        pytest.skip("no C++ compiler here")
    model, _ = family_builder("llava")
    layer = decoder_layers(opened(model, "lora", dropout=0.3))[1].mlp.down_proj
    hidden = torch.randn(2, 5, layer.in_features, requires_grad=True)
    with keyed_dropout(layer):
        draw_keys(keyed_dropouts(layer), hidden)
        compiled = torch.compile(layer.forward, fullgraph=True)
        assert not difference(layer, compiled, layer.forward, (hidden,), {})
        first = compiled(hidden)
        draw_keys(keyed_dropouts(layer), hidden)
        assert not torch.equal(compiled(hidden), first)
