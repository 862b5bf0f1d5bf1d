"""Scores on a CUDA device: those of the CPU, in few waits, and within the memory of a forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from striate.data.reading import read_samples
from striate.models.structure.anatomy import decoder_layers
from striate.scorers import SCORERS
from striate.scorers.streaming.masks import TokenMasks
from striate.scorers.streaming.stream import LayerStream
from striate.scorers.streaming.view import lengths
from striate.stages.analyze import analyze

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

PLAIN = [scorer for scorer in SCORERS if scorer.source in ("hidden states", "attention")]
NAMES = [one.name for one in PLAIN]


def test_scores_are_those_of_the_cpu(tiny_llava: Loaded, pack_dir: Path) -> None:
    samples = read_samples(pack_dir / "train.json")
    there = analyze(tiny_llava.model, tiny_llava.processor, samples, NAMES, by="task")
    here = analyze(tiny_llava.model.to("cuda"), tiny_llava.processor, samples, NAMES, by="task")
    for one, other in zip(there.scorers, here.scorers, strict=True):
        np.testing.assert_allclose(one.values, other.values, rtol=1e-3, atol=1e-5, err_msg=one.scorer)
    rough = analyze(tiny_llava.model.bfloat16(), tiny_llava.processor, samples, NAMES)
    for one, other in zip(there.scorers, rough.scorers, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=0.05, err_msg=one.scorer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_lengths_of_wide_states_match_float64(dtype: torch.dtype) -> None:
    x = torch.randn(4, 300, 4096, device="cuda").to(dtype)
    y = (x + 0.05 * torch.randn_like(x)).to(dtype)
    found = lengths(x, y).deviation()
    a, b = x.double(), y.double()
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1)
    torch.testing.assert_close(1 - found.angle.cos(), 1 - cosine, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.relative_update, (b - a).norm(dim=-1) / a.norm(dim=-1), rtol=1e-5, atol=0)
    assert lengths(x, x.clone()).deviation().angle.abs().max() == 0


def test_layers_run_without_waiting_for_the_device(tiny_llava: Loaded) -> None:
    layers = decoder_layers(tiny_llava.model.to("cuda"))
    states = torch.randn(2, 12, 32, device="cuda")
    attended = torch.ones(2, 12, dtype=torch.bool)
    image = torch.arange(12).expand(2, 12) < 6
    rotary = tiny_llava.model.model.language_model.rotary_emb
    places = torch.arange(12, device="cuda")[None]
    hidden = [one for one in PLAIN if one.source == "hidden states"]
    with torch.no_grad(), LayerStream(layers, hidden) as stream:
        turned = rotary(states, places)
        with stream.batch(TokenMasks(attended, image)):
            for number, layer in enumerate(layers):
                # What the batch needs on the device goes there with the first layer.
                torch.cuda.set_sync_debug_mode("error" if number else "default")
                try:
                    states = layer(states, position_embeddings=turned, attention_mask=None)
                    states = states[0] if isinstance(states, tuple) else states
                finally:
                    torch.cuda.set_sync_debug_mode("default")
    assert stream.results("block-influence")["all"].sums.shape == (2, 4)
