"""Scorers of hidden states and attention on many families, against float64 formulas on what transformers reports."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scorer_formulas import SampleStates
from scorer_formulas import scores as formulas
from torch import nn

from striate.artifacts import LayerScores
from striate.errors import ModelError
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.structure.decoder_stack import find_decoder
from striate.scorers import SCORERS
from striate.scorers.statistics.score_summary import summarize
from striate.scorers.streaming.masks import TokenMasks, token_masks
from striate.scorers.streaming.stream import LayerStream

Family = tuple[Any, dict[str, Any]]
PLAIN = [scorer for scorer in SCORERS if scorer.source in ("hidden states", "attention")]
HIDDEN = [one for one in PLAIN if one.source == "hidden states"]
# Features of the picture are added between these families' layers: a layer's output is not the next one's input.
ADDS_BETWEEN_LAYERS = {"qwen3_vl"}
# Their cross-attention layers attend to the picture, not to the sequence.
CROSS_ATTENDS = {"mllama"}


def labelled(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs with the last two tokens of each row labelled as the answer."""
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    return {**inputs, "labels": labels}


def run(model: Any, inputs: dict[str, Any], scorers: list[Any], masks: TokenMasks | None = None) -> LayerStream:
    masks = masks or token_masks(labelled(inputs), find_anatomy(model))
    with torch.no_grad(), LayerStream(decoder_layers(model), scorers) as stream, stream.batch(masks):
        model(**inputs)
    return stream


def summaries(stream: LayerStream, scorers: list[Any]) -> dict[str, LayerScores]:
    return {one.name: summarize(one.name, stream.results(one.name), 0, one.shown) for one in scorers}


def reported(model: Any, inputs: dict[str, Any], attention: bool) -> list[SampleStates]:
    """Return what transformers itself reports of each row, in float64, the final norm left out."""
    masks = token_masks(labelled(inputs), find_anatomy(model))
    model = model.double()
    model.set_attn_implementation("eager")
    find_decoder(model).norm = nn.Identity()
    wide = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        output = model(**wide, output_hidden_states=True, output_attentions=attention)
    states = torch.stack(output.hidden_states).numpy()
    maps = torch.stack(output.attentions).numpy() if attention else None
    answer = masks.of("answer").numpy()
    return [
        SampleStates(
            states[:-1, row],
            states[1:, row],
            masks.image[row].numpy(),
            answer[row],
            None if maps is None else maps[:, row],
        )
        for row in range(len(answer))
    ]


def test_scores_match_formulas_in_float64_on_what_transformers_reports(family: Family) -> None:
    model, inputs = family
    kind = find_anatomy(model).model_type
    # One image token a picture is too few for scorers that compare tokens with each other.
    few = [one for one in HIDDEN if one.name not in ("linear-cka", "matrix-entropy")]
    scorers = few if kind in CROSS_ATTENDS else PLAIN
    found = summaries(run(model, inputs, scorers), scorers)
    assert all(len(one.values) == len(decoder_layers(model)) for one in found.values())
    if kind in CROSS_ATTENDS:
        with pytest.raises(ModelError, match=r"can't be watched: layer 1: it attends to \d+ keys"):
            run(model, inputs, PLAIN)
        assert found["modality-block-influence"].tokens["image"] > 0
        return
    if kind in ADDS_BETWEEN_LAYERS:
        assert all(min(one.values) > 0 for one in found.values())
        return
    expected = formulas(reported(model, inputs, attention=True))
    for name, one in found.items():
        parts = expected[name]
        np.testing.assert_allclose(one.values, parts.pop("score"), rtol=1e-4, err_msg=name)
        for part, values in one.parts.items():
            np.testing.assert_allclose(values, parts[part], rtol=1e-4, atol=1e-7, err_msg=f"{name} {part}")


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "idefics3", "internvl"])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_image_attention_is_the_same_under_every_implementation(
    name: str, implementation: str, family_builder: Any
) -> None:
    model, inputs = family_builder(name)
    scorer = [SCORERS.get("image-attention")]
    base = summaries(run(model, inputs, scorer), scorer)["image-attention"]
    model.set_attn_implementation(implementation)
    again = summaries(run(model, inputs, scorer), scorer)["image-attention"]
    np.testing.assert_allclose(base.values, again.values, rtol=1e-5)
    assert model.config.get_text_config()._attn_implementation == implementation
