"""Compiled layers whose short samples attend by the operator: the losses and gradients of PyTorch's attention."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from striate.artifacts import Region
from striate.models.structure.anatomy import decoder_layers
from striate.models.trainable.apply import apply_region
from striate.training.compile import short_attention, short_choice
from striate.training.compile.cuda_graphs.recorded import RerunRecorder
from striate.training.compile.regional import fast_layers
from striate.training.compile.short_choice import short_active, short_samples
from striate.training.loss import answer_loss

logging.getLogger("torch.__trace").propagate = False


def test_short_samples_in_compiled_layers(family_builder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(short_choice, "_reason", lambda *_: "")
    monkeypatch.setattr(short_choice, "fits", lambda query, value, longest: longest <= 128)
    model, inputs = family_builder("llava")
    apply_region(model, Region(layers=(0,), num_layers=len(decoder_layers(model)), spec="ids:0"), "full")
    model.train()
    inputs = {**inputs, "labels": inputs["input_ids"].clone()}
    calls: list[int] = []
    said: list[str] = []
    run = short_attention._plain

    def counted(*args: Any) -> torch.Tensor:
        calls.append(1)
        return run(*args)

    # Inside the operator, where no compiler looks.
    monkeypatch.setattr(short_attention, "_plain", counted)
    found = []
    for short in (False, True):
        model.zero_grad()
        context = short_samples(4, 2, 16, 2, said.append) if short else contextlib.nullcontext()
        recorder = RerunRecorder() if short else None
        with context, fast_layers(model, compiled=True, backend="aot_eager", recorder=recorder) as layers:
            for _ in range(3):
                assert short_active() == short
                loss = answer_loss(model, inputs)
                model.zero_grad()
                loss.backward()
        named = model.named_parameters()
        found.append((loss.detach(), {name: one.grad.clone() for name, one in named if one.grad is not None}))
        assert all(function.checked and not function.refused for function in layers.functions.values())
    assert calls
    assert not short_active()
    assert "sdpa" not in ALL_ATTENTION_FUNCTIONS._local_mapping
    torch.testing.assert_close(found[1][0], found[0][0])
    for name, gradient in found[1][1].items():
        torch.testing.assert_close(gradient, found[0][1][name], rtol=1e-3, atol=1e-6, msg=name)
