"""How much each decoder layer looked at the pictures while it read one question and its answer."""

from __future__ import annotations

from typing import Any

import torch

from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.models.interventions.eval_mode import evaluating
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import decoder_layers, find_anatomy, unwrap
from striate.scorers.image_attention import IMAGE_ATTENTION
from striate.scorers.runners.one_pass import forward_options
from striate.scorers.streaming.masks import token_masks
from striate.scorers.streaming.stream import LayerStream
from striate.tasks.inference.text_tokens import context_limit


def attention_to_pictures(model: Any, processor: Any, sample: Sample) -> tuple[float, ...]:
    """Return the mean share of each layer's attention that falls on image tokens, 0 to 1, first layer first.

    It is the scorer `image-attention` on this one conversation, answers included: of the text tokens behind the first
    picture. Empty where no picture is shown.

    Raises:
        DataError: a conversation that does not fit.
        ModelError: attention that can't be watched, such as that of a model whose decoder never sees image tokens.
    """
    if not sample.images:
        return ()
    core, anatomy = unwrap(model), find_anatomy(model)
    # An answer without a word has nothing to be labelled.
    batch = Collator(processor, context_limit(core), train=bool(sample.answer))([sample])
    stream = LayerStream(decoder_layers(core), [IMAGE_ATTENTION])
    with torch.no_grad(), evaluating(core), stream, stream.batch(token_masks(batch, anatomy)):
        core(**on_device(core, batch), **forward_options(core))
    whole = stream.results(IMAGE_ATTENTION.name)["text"]
    return tuple(float(value) for value in (whole.sums / whole.counts)[0])
