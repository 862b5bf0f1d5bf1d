"""Recorded layers, with work run again in the place of CUDA graphs: gradients, steps, interleaving, what is refused."""

from __future__ import annotations

import copy
import logging
from typing import Any

import peft
import pytest
import torch
from torch import nn

from striate.artifacts import Region
from striate.models.structure.anatomy import decoder_layers
from striate.models.trainable.apply import apply_region, lora_config
from striate.training.compile.cuda_graphs import stack_graphs
from striate.training.compile.cuda_graphs.recorded import RerunRecorder
from striate.training.compile.layer_function import LayerFunction
from striate.training.compile.regional import FastLayers, fast_layers
from striate.training.loss import answer_loss

logging.getLogger("torch.__trace").propagate = False
Batch = dict[str, Any]


def opened(model: Any, method: str, dropout: float = 0.0) -> Any:
    """Return the model in training mode with every second layer open."""
    depth = len(decoder_layers(model))
    region = Region(layers=tuple(range(1, depth, 2)), num_layers=depth, spec="odd")
    if method == "lora":
        model = peft.get_peft_model(model, lora_config(model, region, r=4, alpha=8, dropout=dropout))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    apply_region(model, region, method)
    return model.train()


def batches(inputs: Batch, count: int) -> list[Batch]:
    """Return batches of one form with other tokens, and the same answers' places."""
    found = []
    for seed in range(count):
        ids = inputs["input_ids"].clone()
        text = slice(-4, None)
        ids[:, text] = torch.randint(10, 20, ids[:, text].shape, generator=torch.Generator().manual_seed(seed))
        labels = ids.clone()
        labels[:, :-3] = -100
        found.append({**inputs, "input_ids": ids, "labels": labels})
    return found


def trained(
    model: Any, steps: list[list[Batch]], recorder: RerunRecorder | None, **how: Any
) -> tuple[list[float], list[dict[str, torch.Tensor]], FastLayers]:
    """Return losses and gradients of every step, each of several micro-batches, with AdamW between."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2)
    losses, gradients = [], []
    torch.manual_seed(3)
    with fast_layers(model, compiled=True, backend="eager", recorder=recorder, **how) as layers:
        for step in steps:
            for batch in step:
                loss = answer_loss(model, batch)
                loss.backward()
                losses.append(loss.item())
            named = model.named_parameters()
            gradients.append({name: one.grad.clone() for name, one in named if one.grad is not None})
            optimizer.step()
            optimizer.zero_grad()
    return losses, gradients, layers


def check(model: Any, steps: list[list[Batch]], recorder: RerunRecorder | None = None, **how: Any) -> FastLayers:
    """Check that recorded training is the other to the bit; return the layers."""
    plain = trained(copy.deepcopy(model), steps, None, **{**how, "say": lambda line: None})
    losses, gradients, layers = trained(model, steps, recorder or RerunRecorder(), **how)
    assert losses == plain[0]
    for found, expected in zip(gradients, plain[1], strict=True):
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            assert torch.equal(gradient, expected[name]), name
    return layers


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions' operations one by one: what is recorded is the same, and nothing is traced."""
    monkeypatch.setattr(LayerFunction, "__call__", lambda self, *args: self.plain(*args))


def test_compiled_layers_recorded(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    found = batches(inputs, 4)
    layers = check(opened(model, "lora", 0.3), [found[:2], found[2:]])
    assert layers.graphs is not None
    assert layers.graphs.replayed == 2 * len(decoder_layers(model))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("name", "method", "dropout"),
    [("llava", "full", 0.0), ("llava", "lora", 0.3), ("qwen3_vl", "full", 0.0), ("gemma3", "lora", 0.3)],
)
def test_recorded_training_is_the_other(name: str, method: str, dropout: float, family_builder: Any) -> None:
    """Six micro-batches, three a step, weights changed between; two are tried, four replayed, by every layer."""
    model, inputs = family_builder(name)
    model = opened(model, method, dropout)
    found = batches(inputs, 6)
    layers = check(model, [found[:3], found[3:]])
    assert layers.graphs is not None
    assert layers.graphs.replayed == 4 * len(decoder_layers(model))
    assert layers.graphs.missed == 0
    assert "CUDA graphs of 1 form of batches, used in 100% of later layer calls" in layers.describe()


@pytest.mark.usefixtures("uncompiled")
def test_forms_of_batches_take_turns(family_builder: Any) -> None:
    """Two lengths in turn, each recorded; other numbers of answers leave out the last layer alone."""
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    found = batches(inputs, 8)
    for batch in found[::2]:
        for key in ("input_ids", "attention_mask", "labels"):
            batch[key] = batch[key][:, :-1]
    found[7]["labels"][:, -2:] = -100
    layers = check(model, [found[:4], found[4:]])
    assert layers.graphs is not None
    assert layers.graphs.recorded == 2
    depth = len(decoder_layers(model))
    assert layers.graphs.replayed == 4 * depth - 1
    assert layers.graphs.missed == 1


@pytest.mark.usefixtures("uncompiled")
def test_nothing_below_the_region_with_a_frozen_projector(family_builder: Any) -> None:
    """The lowest layers' hidden states need no gradient: they have no backward pass to record."""
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    for name, parameter in model.named_parameters():
        if "projector" in name:
            parameter.requires_grad_(False)
    found = batches(inputs, 5)
    layers = check(model, [found[:3], found[3:]])
    assert layers.graphs is not None
    assert layers.graphs.replayed == 3 * len(decoder_layers(model))


@pytest.mark.usefixtures("uncompiled")
def test_a_pass_within_a_pass_is_not_replayed(family_builder: Any) -> None:
    """Two losses before one backward pass: the second forward pass leaves alone what the first needs."""
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    found = batches(inputs, 2)
    (answer_loss(model, found[0]) + answer_loss(model, found[1])).backward()
    expected = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    with fast_layers(model, compiled=True, backend="eager", recorder=RerunRecorder()) as layers:
        for _ in range(4):
            # Left behind without a backward pass, as by an interrupted step.
            answer_loss(model, found[0])
        first = answer_loss(model, found[0])
        (first + answer_loss(model, found[1])).backward()
        depth = len(decoder_layers(model))
        assert layers.graphs is not None
        assert (layers.graphs.replayed, layers.graphs.missed) == (3 * depth, depth)
        with pytest.raises(RuntimeError):
            first.backward()
    for name, gradient in expected.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.usefixtures("uncompiled")
def test_weights_elsewhere_in_memory_are_not_replayed(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    batch = batches(inputs, 1)[0]
    with fast_layers(model, compiled=True, backend="eager", recorder=RerunRecorder()) as layers:
        for _ in range(3):
            before = answer_loss(model, batch)
            before.backward()
        weight = decoder_layers(model)[0].mlp.down_proj.weight
        weight.data = 2 * weight.data
        after = answer_loss(model, batch)
        assert layers.graphs is not None
        assert layers.graphs.missed == 1
    assert not torch.equal(before, after)
    assert torch.equal(after, answer_loss(model, batch))


@pytest.mark.usefixtures("uncompiled")
def test_what_cannot_be_recorded_is_said_once(family_builder: Any) -> None:
    class Broken(RerunRecorder):
        def record(self, work: Any) -> Any:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    model, inputs = family_builder("llava")
    model = opened(model, "full")
    found = batches(inputs, 5)
    said: list[str] = []
    layers = check(model, [found[:2], found[2:]], recorder=Broken(), say=said.append)
    assert said == ["decoder layers run without CUDA graphs: operation not permitted when stream is capturing"]
    assert layers.graphs is not None
    assert layers.graphs.replayed == 0
    assert "CUDA graphs" not in layers.describe()


@pytest.mark.usefixtures("uncompiled")
def test_more_forms_than_are_recorded(family_builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_graphs, "MOST_FORMS", 1)
    model, inputs = family_builder("llava")
    model = opened(model, "full")
    long = batches(inputs, 4)
    short = [
        {**batch, **{key: batch[key][:, :-1] for key in ("input_ids", "attention_mask", "labels")}} for batch in long
    ]
    said: list[str] = []
    layers = check(model, [long, short], say=said.append)
    assert said == ["batches have more than 1 forms: CUDA graphs are made of the first ones alone"]
    assert layers.graphs is not None
    assert layers.graphs.replayed == 2 * len(decoder_layers(model))


@pytest.mark.usefixtures("uncompiled")
def test_recomputed_layers_are_launched_as_ever(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    found = batches(inputs, 4)
    layers = check(opened(model, "full"), [found[:2], found[2:]], recomputed=(0,))
    assert layers.graphs is not None
    assert layers.graphs.replayed == 2 * (len(decoder_layers(model)) - 1)
