"""Compiled layers that image tokens pass: values, gradients, what is computed at all, and fallbacks."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd

from striate.artifacts import Region
from striate.config import TrainSection
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.trainable.apply import apply_region
from striate.models.visual_token_skipping.rule import ImageSkip
from striate.models.visual_token_skipping.token_indices import Places
from striate.training.approximations import frozen_format
from striate.training.compile.regional import FastLayers, fast_layers
from striate.training.loss import answer_loss
from striate.training.visual_token_skipping.layer import TextAnswerFunction, TextFunction
from striate.training.visual_token_skipping.token_layout import reading, rows_for

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

# The compiler's trace is written for tools; capturing it takes longer than compiling.
logging.getLogger("torch.__trace").propagate = False


@pytest.fixture(autouse=True)
def decoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave vision encoders as they are: they take time to compile."""
    monkeypatch.setattr("striate.training.compile.regional.frozen_encoders", lambda _: [])


def opened(model: Any, first: int = 1) -> Region:
    """Open the projector and full weights of every second layer from `first` on, and return the region."""
    depth = len(decoder_layers(model))
    region = Region(layers=tuple(range(first, depth, 2)), num_layers=depth, spec="x")
    apply_region(model, region, "full")
    model.train()
    return region


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
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    return loss.detach(), found


def check_equal(model: Any, batch: dict[str, Any], **how: Any) -> FastLayers:
    """Check that the rule compiled gives what it gives uncompiled; return the layers."""
    loss, gradients = loss_and_gradients(model, batch)
    said: list[str] = []
    with fast_layers(model, compiled=True, say=said.append, **{"backend": "eager", **how}) as layers:
        found, found_gradients = loss_and_gradients(model, batch)
    assert not [line for line in said if "VisionBlock runs uncompiled: it can't be compiled" not in line]
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    assert found_gradients.keys() == gradients.keys()
    for name, gradient in found_gradients.items():
        error = (gradient - gradients[name]).norm() / gradients[name].norm().clamp_min(1e-9)
        assert error < 1e-4, (name, float(error), float(gradients[name].norm()))
    return layers


@pytest.mark.parametrize(
    ("name", "pad"), [("llava", 0), ("llava", 2), ("qwen2_5_vl", 0), ("gemma3", 0), ("internvl", 2)]
)
def test_the_same_compiled(name: str, pad: int, family_builder: Any) -> None:
    """Batches without padding go by runs of text, others by a mask."""
    model, inputs = family_builder(name)
    region = opened(model)
    batch = labelled(padded(inputs, pad) if pad else inputs)
    with ImageSkip(model, region):
        layers = check_equal(model, batch)
    kinds = [type(function) for function in layers.functions.values()]
    assert TextFunction in kinds
    assert layers.describe().startswith(f"{region.num_layers} of {region.num_layers} decoder layers run compiled")


PRODUCTS = ("mm", "addmm", "bmm", "_scaled_mm")


def products(graph: Any) -> list[tuple[int, ...]]:
    """Return rows, inner size and columns of a graph's matrix products."""
    found = []
    for node in graph.graph.nodes:
        if node.op == "call_function" and getattr(node.target, "__name__", "").split(".")[0] in PRODUCTS:
            shapes = [arg.meta["val"].shape for arg in node.args if hasattr(arg, "meta")]
            left, right = [shape for shape in shapes if len(shape) == 2][:2]
            found.append((left[0], left[1], right[1]))
    return found


def test_image_tokens_cost_keys_and_values_alone(tiny_llava: Loaded) -> None:
    """Forward and backward no product of their queries, output projection or MLP is left, in 8-bit floats too."""
    model = tiny_llava.model.to(torch.bfloat16)
    region = opened(model, first=4)
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
        ImageSkip(model, region),
        frozen_format(model, region, TrainSection(frozen="fp8"), lambda _: None),
        fast_layers(model, compiled=True, backend=backend) as layers,
        torch.autocast("cpu", torch.bfloat16),
    ):
        answer_loss(model, batch).backward()
    assert [type(one) for one in layers.functions.values()] == [TextFunction, TextAnswerFunction]
    # Three tokens before the picture are keys of two runs of text.
    keys, queries, answers = 2 * (16 + 3), 2 * 12, 2 * 3
    for which, rows in (("forward", queries), ("forward", answers), ("backward", queries), ("backward", answers)):
        both = [(keys, width, kv)] * 2 + [(queries, width, width), (rows, width, width)]
        both += [(rows, width, inner)] * 2 + [(rows, inner, width)]
        # In the backward pass a product's columns are its inner size.
        wanted = sorted(both if which == "forward" else [(m, n, k) for m, k, n in both])
        assert wanted in [sorted(products(graph)) for name, graph in graphs if name == which]


def test_recomputed_and_lean(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    region = opened(model)
    with ImageSkip(model, region):
        check_equal(model, labelled(inputs), recomputed=(0, 1, 2), lean=True)


def test_batches_of_other_lengths_compile_once_more(family_builder: Any) -> None:
    """Also batches without pictures, whose layers are whole; values stay those of the rule uncompiled."""
    model, inputs = family_builder("llava")
    region = opened(model)
    graphs: list[Any] = []

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def longer(by: int) -> dict[str, Any]:
        more = torch.randint(5, 50, (inputs["input_ids"].shape[0], by))
        ids = torch.cat([inputs["input_ids"], more], dim=1)
        return labelled({**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)})

    text = {"input_ids": torch.randint(5, 50, (2, 9)), "attention_mask": torch.ones(2, 9, dtype=torch.long)}
    batches = [*map(longer, (0, 1, 2)), labelled(text)]
    with ImageSkip(model, region) as rule:
        expected = [float(loss_and_gradients(model, batch)[0]) for batch in batches]
        with fast_layers(model, compiled=True, backend=count):  # type: ignore[arg-type]
            found, counts = [], []
            for batch in batches:
                with reading(rule, batch["input_ids"], torch.device("cpu")):
                    found.append(float(loss_and_gradients(model, batch)[0]))
                counts.append(len(graphs))
    assert found == pytest.approx(expected, rel=1e-5)
    # One set of graphs for the first batch, one from the second on for all lengths.
    assert counts[1] == counts[2], counts


def test_places_that_were_told_are_not_asked_for(family_builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = family_builder("llava")
    region = opened(model)
    batch = labelled(inputs)
    with ImageSkip(model, region) as rule, torch.no_grad():
        expected = model(**inputs).logits
        with reading(rule, batch["input_ids"], torch.device("cpu")) as rows:
            monkeypatch.setattr(Places, "of", lambda *_: 1 / 0)
            assert torch.equal(model(**inputs).logits, expected)
            assert rows is not None
            assert rows_for(rule) is rows
        with reading(rule, torch.full_like(batch["input_ids"], 7), torch.device("cpu")) as rows:
            assert rows is None
            assert rows_for(rule) is None


def test_a_layer_that_can_not_be_cut_says_so(family_builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong function is found out before its first use, and the rule runs uncompiled."""
    model, inputs = family_builder("llava")
    region = opened(model)
    batch = labelled(inputs)
    said: list[str] = []
    with ImageSkip(model, region):
        loss, _ = loss_and_gradients(model, batch)
        monkeypatch.setattr("striate.training.visual_token_skipping.kv_then_text.put", lambda values, *_: 2 * values)
        with fast_layers(model, compiled=True, backend="eager", say=said.append):
            found, _ = loss_and_gradients(model, batch)
    torch.testing.assert_close(found, loss)
    assert [line for line in said if "without the compiler it differs from the layer" in line]
