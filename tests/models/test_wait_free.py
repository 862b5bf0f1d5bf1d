"""What is known of a batch on the CPU: answers, padding, places of pictures; losses and gradients stay, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from striate.artifacts import Region
from striate.models.structure.anatomy import decoder_layers
from striate.models.trainable.apply import apply_region
from striate.training.batching.label_positions import ANSWERS, label_positions
from striate.training.inputs.wait_free import WaitFreeInputs
from striate.training.loss import answer_loss

Batch = dict[str, Any]


def opened(model: Any) -> Any:
    """Return the model with its first layer and its projector open."""
    apply_region(model, Region(layers=(0,), num_layers=len(decoder_layers(model)), spec="ids:0"), "full")
    return model.train()


def labelled(inputs: Batch) -> Batch:
    """Return the inputs with answers at the ends of rows, not as many in each."""
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -2:] = inputs["input_ids"][:, -2:]
    labels[0, -4:] = inputs["input_ids"][0, -4:]
    return {**inputs, "labels": labels}


def loss_and_gradients(model: Any, inputs: Batch) -> tuple[torch.Tensor, Batch]:
    model.zero_grad()
    loss = answer_loss(model, inputs)
    loss.backward()
    return loss.detach(), {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def test_answers() -> None:
    labels = torch.tensor([[-100, -100, 7, 8], [5, -100, -100, 9]])
    assert label_positions(labels).tolist() == [[0, 0, 1], [1, 2, 2], [7, 8, 9]]
    assert label_positions(labels, 2).tolist() == [[0, 0, 1, 0], [1, 2, 2, 0], [7, 8, 9, -100]]
    assert label_positions(labels[:, :2]).shape == (3, 0)


def test_answers_found_before_give_the_loss_of_labels(family_builder: Any) -> None:
    model, inputs = family_builder("llava")
    inputs = labelled(inputs)
    model = opened(model)
    loss, gradients = loss_and_gradients(model, inputs)
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    for multiple in (1, 16):
        found, others = loss_and_gradients(model, {**rest, ANSWERS: label_positions(inputs["labels"], multiple)})
        torch.testing.assert_close(found, loss, rtol=0 if multiple == 1 else 1e-6, atol=0)
        assert others.keys() == gradients.keys()
        for name, gradient in others.items():
            torch.testing.assert_close(gradient, gradients[name], rtol=0 if multiple == 1 else 1e-4, atol=1e-8)


class Asked(torch.overrides.TorchFunctionMode):
    """Counts the questions that an accelerator would be made to answer, and the CPU to wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        masked = name == "__getitem__" and _is_mask(args[1])
        if name in ("__bool__", "item", "tolist", "nonzero", "__int__", "__float__", "masked_scatter", "masked_select"):
            self.found.append(name)
        elif masked:
            self.found.append("mask as an index")
        return function(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(one, torch.Tensor) and one.dtype is torch.bool for one in parts)


@pytest.mark.parametrize("name", ["llava", "llava_next", "internvl", "idefics3", "gemma3", "qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize("padded", [False, True])
def test_a_step_asks_the_accelerator_nothing(name: str, padded: bool, family_builder: Any) -> None:
    """Loss and gradients as before, to the bit; in LLaVA's own form without a single question."""
    model, inputs = family_builder(name)
    model, inputs = opened(model), labelled(inputs)
    if padded:
        inputs["attention_mask"][1, -1:] = 0
        inputs["labels"][1, -1:] = -100
    with Asked() as before:
        loss, gradients = loss_and_gradients(model, inputs)
    waitless = WaitFreeInputs(model)
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    batch = {**rest, ANSWERS: label_positions(inputs["labels"])}
    # The first batch is compared.
    with waitless.serving(batch, batch):
        pass
    model.train()
    with waitless.installed(), waitless.serving(batch, batch) as ready, Asked() as asked:
        found, others = loss_and_gradients(model, ready)
    assert "sdpa" not in ALL_MASK_ATTENTION_FUNCTIONS._local_mapping
    assert torch.equal(found, loss)
    assert others.keys() == gradients.keys()
    assert all(torch.equal(gradient, gradients[name]) for name, gradient in others.items())
    assert len(asked.found) < len(before.found)
    if name in ("llava", "gemma3", "internvl"):
        assert not waitless.refused
        assert not asked.found
