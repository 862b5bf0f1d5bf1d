"""Check that a model is causal on plain text: likelihoods of text mean nothing otherwise."""

from typing import Any

import torch

from striate.errors import ModelError
from striate.models.structure.anatomy import unwrap

PROBE = "The quick brown fox jumps over the lazy dog."
TOLERANCE = 0.05


def check_causal(model: Any, tokenizer: Any) -> None:
    """Return if the logits after the first tokens of a text don't change with the tokens that follow.

    Prefix language models (PaliGemma, Beyer et al. 2024, arXiv 2407.07726, section 3.2) look ahead within their
    prompt, so one pass over a text would score tokens that the model has already seen. The tolerance, 5% of the
    logits' range, leaves room for half precision.

    Raises:
        ModelError: the logits change.
    """
    core = unwrap(model)
    ids = torch.tensor([tokenizer(PROBE)["input_ids"]], device=core.device)
    first = ids.shape[1] // 2
    alone_V = model(input_ids=ids[:, :first]).logits[0, -1].float()
    followed_V = model(input_ids=ids).logits[0, first - 1].float()
    if (alone_V - followed_V).abs().max() > TOLERANCE * (alone_V.max() - alone_V.min()):
        raise ModelError(
            f"{type(core).__name__} looks ahead in plain text, so it has no likelihood of a text to measure",
            "a language model that reads from left to right",
            "leave out the packs with choice_logprob, last_word and perplexity rows",
        )
