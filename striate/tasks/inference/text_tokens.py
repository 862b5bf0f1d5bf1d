"""Tokenize plain text, with the position from which tokens are scored."""

from dataclasses import dataclass
from typing import Any

from striate.errors import DataError, ModelError


@dataclass(frozen=True)
class ScoredText:
    """Token ids of a text; those from `start` on are scored."""

    tokens: tuple[int, ...]
    start: int

    @property
    def scored(self) -> int:
        """How many tokens are scored."""
        return len(self.tokens) - self.start


def encode(tokenizer: Any, text: str, scored_from: int) -> ScoredText:
    """Return the tokens of `text`, scored from the first one that reaches past character `scored_from`.

    A token that lies across that character is scored whole. Special tokens that the tokenizer puts before the text
    stay, those after it are dropped; those that are written in the text are text. The very first token is never
    scored, since nothing predicts it.

    Raises:
        ModelError: the tokenizer can't tell which characters a token covers.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} can't tell which characters a token covers",
            "a processor with a fast tokenizer (tokenizer.json)",
            "leave out the text packs, or convert the tokenizer with transformers",
        )
    encoded = tokenizer(text, return_offsets_mapping=True, split_special_tokens=True)
    ends = [end for _, end in encoded["offset_mapping"]]
    last = max((index for index, end in enumerate(ends) if end > 0), default=-1)
    start = next((index for index, end in enumerate(ends) if end > scored_from), last + 1)
    return ScoredText(tuple(encoded["input_ids"][: last + 1]), max(start, 1))


def context_limit(model: Any) -> int:
    """Return how many tokens the language model takes at most, or a very large number where its config has no limit."""
    return context_of(model.config)


def context_of(config: Any) -> int:
    """Return what `context_limit` does, from a model's config alone."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return int(limit) if limit else 2**31 - 1


def check_length(tokens: int, limit: int, owner: str) -> None:
    """Raise a DataError naming item `owner` if it needs more tokens than the model takes."""
    if tokens > limit:
        raise DataError(
            f"item {owner!r} needs {tokens} tokens, but the language model takes {limit}",
            f"items of at most {limit} tokens",
            "shorten or remove that item",
        )
