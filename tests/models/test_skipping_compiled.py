"""Compiled layers that image tokens skip: values, gradients, what is computed at all, how many graphs that takes."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd

from striate.artifacts import Region
from striate.config import TrainSection
from striate.models.interventions.model_rule import reading_batch
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.trainable.apply import apply_region
from striate.models.visual_token_skipping import skipped_layer
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.token_layout import TokenLayout
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.training.approximations import frozen_format
from striate.training.compile.regional import compiled_layers
from striate.training.loss import answer_loss

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

CPU = torch.device("cpu")
# The compiler's trace is written for tools; capturing it takes longer than compiling.
logging.getLogger("torch.__trace").propagate = False


@contextmanager
def compiled(model: Any, backend: Any = "eager", layers: Any = None) -> Iterator[None]:
    """Run each decoder layer, or some, by its own `.compile()`."""
    torch._dynamo.reset()
    chosen = layers or decoder_layers(model)
    for layer in chosen:
        layer.compile(fullgraph=True, backend=backend)
    try:
        yield
    finally:
        for layer in chosen:
            layer._compiled_call_impl = None


def opened(model: Any, first: int = 1) -> VisualCompute:
    """Open the projector and full weights of every second layer from `first` on; these compute image tokens."""
    depth = len(decoder_layers(model))
    region = Region(layers=tuple(range(first, depth, 2)), num_layers=depth, spec="x")
    apply_region(model, region, "full")
    model.train()
    return VisualCompute(layers=region.layers, num_layers=depth)


def labelled(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with answers at the last three positions that are not padding."""
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, mask in enumerate(inputs.get("attention_mask", torch.ones_like(labels))):
        end = int(mask.sum())
        labels[row, end - 3 : end] = inputs["input_ids"][row, end - 3 : end]
    return {**inputs, "labels": labels}


def padded(inputs: dict[str, Any], by: int) -> dict[str, Any]:
    """Return the inputs with the first row right-padded: it is cut there."""
    mask = torch.ones_like(inputs["input_ids"])
    mask[0, mask.shape[1] - by :] = 0
    return {**inputs, "attention_mask": mask}


def loss_and_gradients(model: Any, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the loss at answers, and what it gives every parameter."""
    model.zero_grad(set_to_none=True)
    loss = answer_loss(model, batch)
    loss.backward()
    gradients = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    return loss.detach(), gradients


def check_equal(model: Any, batch: dict[str, Any], expected: tuple[torch.Tensor, dict[str, torch.Tensor]]) -> None:
    """Check loss and gradients."""
    loss, gradients = loss_and_gradients(model, batch)
    torch.testing.assert_close(loss, expected[0], rtol=1e-5, atol=1e-6)
    assert gradients.keys() == expected[1].keys()
    for name, gradient in gradients.items():
        error = (gradient - expected[1][name]).norm() / expected[1][name].norm().clamp_min(1e-9)
        assert error < 1e-4, (name, float(error))


@pytest.mark.parametrize("runs", [False, True], ids=["mask", "runs"])
@pytest.mark.parametrize(
    ("name", "pad"), [("llava", 0), ("llava", 2), ("qwen2_5_vl", 0), ("gemma3", 0), ("internvl", 2)]
)
def test_the_same_compiled_and_by_runs_of_text(
    name: str, pad: int, runs: bool, family_builder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps too; batches without padding may go by runs of text, others by a mask."""
    model, inputs = family_builder(name)
    compute = opened(model)
    batch = labelled(padded(inputs, pad) if pad else inputs)
    width = model.config.get_text_config().hidden_size
    shift = {layer: torch.randn(width) / 10 for layer in (0, 1, 2)}
    with VisualTokenSkipping(model, compute, shift):
        expected = loss_and_gradients(model, batch)
        # The CPU has no kernel for them, and a mask stands in.
        monkeypatch.setattr(skipped_layer, "kernel_runs", lambda *_: runs)
        if runs:
            check_equal(model, batch, expected)
        with compiled(model):
            check_equal(model, batch, expected)


@pytest.mark.parametrize("pad", [0, 2])
def test_whole_and_skipping_steps_in_turn_are_those_uncompiled(family_builder: Any, pad: int) -> None:
    """By the compiler of training, which compares each form of a layer before it uses it."""
    model, inputs = family_builder("llava")
    compute = opened(model)
    batch = labelled(padded(inputs, pad) if pad else inputs)
    width = model.config.get_text_config().hidden_size
    torch._dynamo.reset()
    exact = loss_and_gradients(model, batch)
    with VisualTokenSkipping(model, compute, {layer: torch.randn(width) for layer in (0, 2)}) as rule:
        ruled = loss_and_gradients(model, batch)
        assert abs(float(exact[0] - ruled[0])) > 1e-3
        said: list[str] = []
        with compiled_layers(model, said.append, backend="eager") as layers:
            for whole in (False, True, False, True, True, False):
                rule.whole = whole
                layers.recheck()
                check_equal(model, batch, exact if whole else ruled)
            # Layers that train, the others in both forms, and the vision encoder's.
            assert "run compiled, as 4 kinds" in layers.describe()
    assert said == []


PRODUCTS = ("mm", "addmm", "bmm", "_scaled_mm")


def products(graph: Any) -> list[tuple[int, ...]]:
    """Return rows, inner size and columns of a graph's matrix products."""
    shapes_of = []
    for node in graph.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", "").split(".")[0] in PRODUCTS:
            shapes = [arg.meta["val"].shape for arg in node.args if hasattr(arg, "meta")]
            left, right = [shape for shape in shapes if len(shape) == 2][:2]
            shapes_of.append((left[0], left[1], right[1]))
    return shapes_of


def test_image_tokens_cost_keys_and_values_alone(tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward no product of their queries, output projection or MLP is left, in 8-bit floats too."""
    monkeypatch.setattr(skipped_layer, "kernel_runs", lambda *_: True)
    model = tiny_llava.model.to(torch.bfloat16)
    compute = opened(model, first=4)
    region = Region(layers=(), num_layers=4, spec="none")
    text = model.config.get_text_config()
    width, inner = text.hidden_size, text.intermediate_size
    kv = width * text.num_key_value_heads // text.num_attention_heads
    ids = torch.randint(10, 20, (2, 4 + 12))
    ids[:, 3:7] = find_anatomy(model).image_token_ids[0]
    pictures = torch.randn(2, 3, 28, 28, dtype=torch.bfloat16)
    batch = labelled({"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pictures})
    graphs: list[tuple[str, Any]] = []

    def keep(which: str) -> Any:
        return lambda graph, _: graphs.append((which, graph)) or make_boxed_func(graph)

    backend = aot_autograd(
        fw_compiler=keep("forward"), bw_compiler=keep("backward"), partition_fn=min_cut_rematerialization_partition
    )
    with (
        VisualTokenSkipping(model, compute),
        frozen_format(model, region, TrainSection(frozen="fp8"), lambda _: None),
        compiled(model, backend),
        torch.autocast("cpu", torch.bfloat16),
    ):
        answer_loss(model, batch).backward()
    assert [which for which, _ in graphs] == ["forward", "backward"]
    # Three tokens before the picture are keys of two runs of text.
    keys, queries = 2 * (16 + 3), 2 * 12
    both = [(keys, width, kv)] * 2 + [(queries, width, width)] * 2
    both += [(queries, width, inner)] * 2 + [(queries, inner, width)]
    for which, graph in graphs:
        # In the backward pass a product's columns are its inner size.
        assert sorted(products(graph)) == sorted(both if which == "forward" else [(m, n, k) for m, k, n in both])


def test_layers_share_graphs_and_lengths_compile_once_more(family_builder: Any) -> None:
    """Also batches without pictures, whose layers are whole; values stay those of the rule uncompiled."""
    model, inputs = family_builder("llava")
    compute = opened(model, first=0)
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def longer(by: int) -> dict[str, Any]:
        more = torch.randint(5, 50, (inputs["input_ids"].shape[0], by))
        ids = torch.cat([inputs["input_ids"], more], dim=1)
        return labelled({**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})

    text = {"input_ids": torch.randint(5, 50, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    batches = [*map(longer, (0, 1, 2, 3)), labelled(text)]
    width = model.config.get_text_config().hidden_size
    shift = {layer: torch.randn(width) / 10 for layer in compute.skipped[:-1]}
    with VisualTokenSkipping(model, compute, shift):
        expected = [float(loss_and_gradients(model, batch)[0]) for batch in batches]
        counts = []
        with compiled(model, count):
            losses = []
            for batch in batches:
                with reading_batch(model, batch["input_ids"], CPU):
                    losses.append(float(loss_and_gradients(model, batch)[0]))
                counts.append(len(graphs))
    assert losses == pytest.approx(expected, rel=1e-5)
    # Of eight layers: those of the region, and those that image tokens skip.
    assert counts[0] == 2, counts
    # One set of graphs for the first batch, one from the second on for all lengths.
    assert counts[1] == counts[2] == counts[3], counts


def test_a_batch_that_is_known_is_not_asked_for(family_builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = family_builder("llava")
    batch = labelled(inputs)
    with VisualTokenSkipping(model, opened(model)), torch.no_grad():
        expected = model(**inputs).logits
        with reading_batch(model, batch["input_ids"], CPU):
            monkeypatch.setattr(TokenLayout, "of", lambda *_: 1 / 0)
            assert torch.equal(model(**inputs).logits, expected)
    with reading_batch(model, batch["input_ids"], CPU):
        pass


def test_packed_rows_by_runs_of_text(family_builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a mask would not tell: that a row holds several samples."""
    model, inputs = family_builder("llava")
    ids = inputs["input_ids"]
    lengths = [ids.shape[1]] * len(ids)
    with VisualTokenSkipping(model, opened(model)) as rule, rule.reading(ids.reshape(1, -1), CPU, lengths):
        layer, width = decoder_layers(model)[0], model.config.get_text_config().hidden_size
        hidden = torch.randn(1, ids.numel(), width)
        positions = torch.arange(ids.shape[1]).repeat(len(ids))[None]
        rotary = model.model.language_model.rotary_emb(hidden, positions)
        packed = layer(hidden, position_embeddings=rotary, attention_mask=None)
        with compiled(model, layers=[layer]):
            torch.testing.assert_close(layer(hidden, position_embeddings=rotary, attention_mask=None), packed)
    apart = hidden.view(len(ids), -1, width)
    with VisualTokenSkipping(model, rule.compute) as rule, rule.reading(ids, CPU):
        rotary = model.model.language_model.rotary_emb(apart, positions[:, : ids.shape[1]])
        expected = layer(apart, position_embeddings=rotary, attention_mask=None)
    torch.testing.assert_close(packed.view_as(expected), expected)
