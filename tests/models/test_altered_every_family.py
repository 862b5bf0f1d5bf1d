"""Altered layers on every model type that builds: right, or refused with the reason."""

from __future__ import annotations

import numpy as np
import pytest
from altered_kit import ALTERED, BLIND, batches_of, expected, last_tokens
from family_inputs import NotBuiltError
from family_zoo import build, model_types

from striate.errors import ModelError
from striate.models.structure.anatomy import find_anatomy
from striate.scorers.runners.altered import run_altered

# Several streams of hidden states, or image tokens that the ids do not show.
REFUSED = {"gemma3n": "hidden states of shape", "glm5_next": "hidden states of shape", "git": "hidden states of shape"}
REFUSED |= {"hy_v4_vl": "hidden states of shape", "inkling2_loop": "did not run exactly once, in order"}
UNUSABLE = {"shieldgemma2": "it is a classifier", "pi0": "it answers with movements"}


@pytest.mark.families
@pytest.mark.parametrize("model_type", model_types())
def test_equals_whole_passes_or_says_why_not(model_type: str) -> None:
    try:
        model, inputs = build(model_type)
    except (NotBuiltError, RuntimeError) as error:
        pytest.skip(str(error)[:80])
    if model_type in UNUSABLE:
        with pytest.raises(ModelError, match=UNUSABLE[model_type]):
            find_anatomy(model)
        return
    anatomy = find_anatomy(model)
    if anatomy.encoder_decoder:
        pytest.skip("an encoder-decoder, which analyze refuses")
    labels = last_tokens(inputs)
    scorers = ALTERED if anatomy.image_token_ids and not anatomy.cross_attends else BLIND
    if model_type in REFUSED:
        with pytest.raises(ModelError, match=REFUSED[model_type]):
            run_altered(model, anatomy, batches_of(inputs, labels), scorers, lambda count: None)
        return
    found = run_altered(model, anatomy, batches_of(inputs, labels), scorers, lambda count: None)
    wanted = expected(model, inputs, labels)
    for scorer in scorers:
        np.testing.assert_allclose(found[scorer.name][scorer.skips].sums, wanted[scorer.name], atol=1e-4)
