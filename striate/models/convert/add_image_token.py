"""Adds an image token to a tokenizer, and rows for it to the embeddings and the LM head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from striate.errors import ModelError
from striate.models.convert.chat_templates import IMAGE_TOKEN

_MULTIPLE = 64


@dataclass(frozen=True)
class Vocabulary:
    """The id of the image token, and how many rows the embeddings have before and after it came."""

    image_token_id: int
    rows_before: int
    rows: int

    def extended(self, matrix: torch.Tensor) -> torch.Tensor:
        """Return the matrix with the rows that it lacks, each the mean of those it has.

        The image token's own embedding is never read, as features take its place. Its logit is then the mean logit,
        which is never the largest: the model does not answer with it.
        """
        lacking = self.rows - matrix.shape[0]
        if lacking <= 0:
            return matrix
        mean = matrix.float().mean(dim=0, keepdim=True).to(matrix.dtype)
        return torch.cat([matrix, mean.expand(lacking, -1)])


def add_image_token(tokenizer: Any, rows: int, owner: str) -> Vocabulary:
    """Return the vocabulary after adding `<image>` to `tokenizer`; rows grow to a multiple of 64, if they must.

    Raises:
        ModelError: the tokenizer knows more tokens than there are rows.
    """
    if len(tokenizer) > rows:
        raise ModelError(
            f"the tokenizer of {owner} has {len(tokenizer)} tokens, and its embeddings {rows} rows",
            "tokenizer and weights of one model",
            "copy the tokenizer's files again",
        )
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    token = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    grown = rows if token < rows else -(-(token + 1) // _MULTIPLE) * _MULTIPLE
    return Vocabulary(token, rows, grown)


def pad_token(tokenizer: Any) -> None:
    """Give `tokenizer` a padding token: its own, else the unknown token, else the one that ends a text."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
