"""Encodes one sample: token ids with image tokens expanded by the processor, and the tensors of its pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from striate.errors import DataError, StriateError, first_line


@dataclass(frozen=True)
class Encoded:
    """One sample: tensors aligned with its tokens (1, T, ...), and the picture tensors."""

    tokens: dict[str, torch.Tensor]
    pictures: dict[str, torch.Tensor]

    @property
    def length(self) -> int:
        """The number of tokens."""
        return self.tokens["input_ids"].shape[1]

    def owned(self) -> Encoded:
        """Return the sample with memory of its own: each tensor that a worker hands over keeps a file open."""
        return Encoded(
            *({name: value.clone() for name, value in tensors.items()} for tensors in (self.tokens, self.pictures))
        )


class SampleEncoder:
    """Encodes rendered text and pictures with one processor, whatever that processor makes of a placeholder."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.tokenizer = processor.tokenizer
        self.image_token_id = _image_token_id(processor)

    def encode(self, owner: str, text: str, images: list[Image.Image]) -> Encoded:
        """Return `text` with `images` as tensors of batch size 1; `owner` is the sample id for errors.

        Raises:
            DataError: the processor refuses the pair, for example for a stray image token in the text.
        """
        pictures = {"images": [images]} if images else {}
        try:
            output = self._processor(
                text=[text], return_tensors="pt", add_special_tokens=self.adds_special_tokens(text), **pictures
            )
        except (StriateError, MemoryError):
            raise
        except Exception as error:  # Its settings come from a file and can be anything.
            raise DataError(
                f"sample {owner!r}: {type(self._processor).__name__} refuses it: {first_line(error)}",
                "text without the model's own image tokens, and pictures that its processor can read",
                "fix or remove the sample",
            ) from error
        shape = tuple(output["input_ids"].shape)
        tensors = {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
        aligned = {name for name, value in tensors.items() if _follows_tokens(name, value, shape)}
        return Encoded(
            {name: tensors[name] for name in tensors if name in aligned},
            {name: tensors[name] for name in tensors if name not in aligned},
        )

    def adds_special_tokens(self, text: str) -> bool:
        """Return whether the tokenizer should add its own first token: not if the template wrote it."""
        first = self.tokenizer.bos_token
        return not (first and text.startswith(first))


def _image_token_id(processor: Any) -> int | None:
    """Return the id of the token that stands for one image token; None if the processor names none."""
    # Gemma 3's processor names the start-of-image token; its tokenizer names the token that is repeated.
    for owner in (processor.tokenizer, processor):
        value = getattr(owner, "image_token_id", None)
        if isinstance(value, int):
            return value
    token = getattr(processor, "image_token", None)
    return processor.tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else None


def _follows_tokens(name: str, value: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether the tensor has one entry a token."""
    return not name.startswith(("pixel", "image")) and tuple(value.shape[:2]) == shape
