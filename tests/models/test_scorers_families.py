from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from striate.models.anatomy import decoder_layers, find_anatomy
from striate.scorers import SCORERS
from striate.scorers.stream import LayerStream, TokenMasks
from striate.scorers.summary import summarise

# Features of the picture are added between these families' layers: a layer's output is not the next one's input.
ADDS_BETWEEN_LAYERS = {"qwen3_vl"}


def test_scorers_see_the_same_states_as_transformers_reports(family: tuple[Any, dict[str, Any]]) -> None:
    model, inputs = family
    anatomy = find_anatomy(model)
    ids = torch.tensor(anatomy.image_token_ids)
    masks = TokenMasks(torch.ones_like(inputs["input_ids"]).bool(), torch.isin(inputs["input_ids"], ids))
    with torch.no_grad(), LayerStream(decoder_layers(model), list(SCORERS)) as stream, stream.batch(masks):
        reported = model(**inputs, output_hidden_states=True).hidden_states
    found = {name: summarise(name, stream.results(name), seed=0) for name in SCORERS.names()}
    assert found["modality-block-influence"].tokens["image"] == int(masks.image.sum()) > 0
    for scores in found.values():
        assert len(scores.values) == anatomy.num_layers
        assert min(scores.values) > 0
    if anatomy.model_type in ADDS_BETWEEN_LAYERS:
        pytest.skip("the states between its layers are not one layer's output")
    states = torch.stack(reported).double().numpy()[:-1]
    x, y = states[:-1], states[1:]
    lengths = np.linalg.norm(x, axis=-1) * np.linalg.norm(y, axis=-1)
    distance = 1 - (x * y).sum(-1) / np.where(lengths > 0, lengths, 1)
    distance[(x == y).all(-1)] = 0
    # The last layer's output is reported only after the final norm, so it is left out here.
    np.testing.assert_allclose(found["block-influence"].values[:-1], distance.mean((1, 2)), atol=1e-5)
