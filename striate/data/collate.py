"""Collates samples into batches: padding, labels, and a length limit that never cuts through image tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import pad

from striate.data.chat_template.rendering import Renderer
from striate.data.chat_template.special_text import SpecialText
from striate.data.encoding import Encoded, SampleEncoder
from striate.data.label_mask import IGNORED, LabelMask
from striate.data.packing import filled_row, join_row
from striate.data.pictures import ORDINARY, PictureLimits, open_image
from striate.data.samples import PLACEHOLDER, Sample
from striate.data.sources.stored_pictures import Picture
from striate.errors import DataError, TooLongError

Batch = dict[str, torch.Tensor]


class Collator:
    """Turns samples into one batch for a model, with the model's own processor.

    Each sample is encoded on its own, so that neither the batch size nor its neighbours change its tokens. Samples
    with one picture, several or none may share a batch.
    """

    def __init__(
        self,
        processor: Any,
        max_length: int,
        train: bool,
        limits: PictureLimits = ORDINARY,
        skips_broken: bool = False,
        shorten: str = "raise train.max_length, make the picture smaller, or remove the sample",
    ) -> None:
        """Keep the settings.

        Args:
            processor: the model's processor, with a tokenizer and a chat template.
            max_length: the most tokens a sample may have, image tokens included.
            train: whether calling the collator gives training batches with labels, or prompts.
            limits: the largest picture that is decoded.
            skips_broken: whether `broken_samples` leaves out what can't be encoded.
            shorten: what to do about a sample that is too long, for errors.

        Raises:
            ModelError: the processor has no chat template.
        """
        self.max_length = max_length
        self.train = train
        self.skips_broken = skips_broken
        self._shorten = shorten
        self._limits = limits
        self._renderer = Renderer(processor)
        self._encoder = SampleEncoder(processor)
        self._special = SpecialText(processor)
        tokenizer = processor.tokenizer
        padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        self._fill = {"input_ids": padding or 0, "labels": IGNORED}

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Return a training batch (see `encode_conversations`), or prompts if `train` is off."""
        return self.encode_conversations(samples) if self.train else self.encode_prompts(samples)

    def encode_conversations(self, samples: Sequence[Sample]) -> Batch:
        """Return whole conversations, padded on the right, with labels.

        `input_ids`, `attention_mask` and `labels` are (B, T); labels hold the answers and their end-of-turn tokens
        and -100 elsewhere. Picture tensors are as the processor makes them. Text past `max_length` is cut.

        Raises:
            DataError: a picture or the question of a sample does not fit into `max_length`, or can't be read.
        """
        return self.join(self.encode_each(samples))

    def encode_each(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return each conversation on its own, with labels, its text cut at `max_length`.

        Raises:
            DataError: as `encode_conversations`.
        """
        return [self._conversation(*item) for item in self._with_images(samples)]

    def encode(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return what `__call__` joins: conversations, or prompts if `train` is off; raises as those."""
        return self.encode_each(samples) if self.train else self.prompts(samples)

    def text_length(self, sample: Sample) -> int:
        """Return the tokens of a conversation, or prompt, with one for each picture, whatever its pictures hold.

        Raises:
            DataError: the chat template refuses it.
        """
        marked = self._special.marked(sample)
        text = self._renderer.conversation(marked).text if self.train else self._renderer.prompt(marked)
        return self._tokens(text)

    def opening_length(self, sample: Sample) -> int | None:
        """Return the tokens before the first answer of a conversation, with one for each picture.

        None for a prompt, and where pictures stand behind that answer.

        Raises:
            DataError: the chat template refuses it.
        """
        if not self.train:
            return None
        conversation = self._renderer.conversation(self._special.marked(sample))
        first = conversation.answers[0]
        return self._tokens(conversation.text[: first.start]) if first.images == len(sample.images) else None

    def _tokens(self, text: str) -> int:
        return len(self._encoder.tokenizer(text, add_special_tokens=self._encoder.adds_special_tokens(text)).input_ids)

    def join(self, items: Sequence[Encoded]) -> Batch:
        """Return conversations as one batch, padded on the right."""
        return self._join(items, left=False)

    def pack(self, items: Sequence[Encoded], multiple: int = 1) -> Batch:
        """Return conversations as one row without padding, with the `segments` that `data.packing` describes.

        Their pictures are encoded together by the vision encoder. The row's tokens are filled up to a multiple.
        """
        return {**filled_row(join_row(items), multiple), **_pictures(items)}

    def encode_prompts(self, samples: Sequence[Sample]) -> Batch:
        """Return what comes before the last answers, padded on the left, ready for `model.generate`.

        Raises:
            DataError: a prompt does not fit into `max_length`, or a picture can't be read.
        """
        return self.join_prompts(self.prompts(samples))

    def prompts(self, samples: Sequence[Sample]) -> list[Encoded]:
        """Return what comes before the last answers, each prompt on its own; a picture's file is opened once.

        Raises:
            DataError: a prompt does not fit into `max_length`, or a picture can't be read.
        """
        return [self._prompt(*item) for item in self._with_images(samples)]

    def join_prompts(self, prompts: list[Encoded]) -> Batch:
        """Return prompts as one batch, padded on the left, ready for `model.generate`."""
        return self._join(prompts, left=True)

    def image_mask(self, batch: Batch) -> torch.Tensor:
        """Return a bool tensor (B, T): which positions of the batch are image tokens."""
        token = self._encoder.image_token_id
        return batch["input_ids"] == (-1 if token is None else token)

    def _conversation(self, sample: Sample, images: list[Image.Image]) -> Encoded:
        conversation = self._renderer.conversation(self._special.marked(sample))
        encoder = self._special.encoder(conversation.text) or self._encoder
        encoded = self._pictured(sample, encoder.encode(sample.id, conversation.text, images))
        labels = LabelMask(encoder).labels(sample.id, conversation, images, encoded)
        labelled = Encoded({**encoded.tokens, "labels": labels}, encoded.pictures)
        encoded = self._special.restored(sample.id, conversation.text, labelled)
        tokens = encoded.tokens
        if encoded.length > self.max_length:
            end = int(self.image_mask(tokens)[0].nonzero().max()) + 1 if images else 0
            tokens = {name: value[:, : self.max_length] for name, value in tokens.items()}
            if end > self.max_length or not (tokens["labels"] != IGNORED).any():
                raise self._too_long(sample, encoded)
        return Encoded(tokens, encoded.pictures)

    def _prompt(self, sample: Sample, images: list[Image.Image]) -> Encoded:
        """Return one prompt; a cut one would ask something else, so none is cut."""
        text = self._renderer.prompt(self._special.marked(sample))
        encoder = self._special.encoder(text) or self._encoder
        encoded = self._pictured(sample, encoder.encode(sample.id, text, images))
        encoded = self._special.restored(sample.id, text, encoded)
        if encoded.length > self.max_length:
            raise self._too_long(sample, encoded)
        return encoded

    def _pictured(self, sample: Sample, encoded: Encoded) -> Encoded:
        """Return `encoded`, the tokens of `sample`; raise where the chat template left its pictures out."""
        if sample.images and self._encoder.image_token_id is not None and not self.image_mask(encoded.tokens).any():
            raise DataError(
                f"sample {sample.id!r}: the model's chat template leaves its pictures out",
                "a chat template that writes an image token for every picture",
                "put the chat template of a vision-language model beside the model's processor",
            )
        return encoded

    def _too_long(self, sample: Sample, encoded: Encoded) -> TooLongError:
        pictured = int(self.image_mask(encoded.tokens).sum())
        return TooLongError(
            f"sample {sample.id!r} does not fit: {encoded.length} tokens, {pictured} of them image tokens",
            f"pictures, question and the start of the answer within max_length {self.max_length}"
            if self.train
            else f"pictures and question within {self.max_length} tokens",
            self._shorten,
        )

    def _with_images(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, list[Image.Image]]]:
        """Yield each sample with its pictures, each file opened once a batch."""
        opened: dict[Picture, Image.Image] = {}
        for sample in samples:
            _check_placeholders(sample)
            for path in sample.images:
                if path not in opened:
                    opened[path] = open_image(path, sample.id, self._limits)
            yield sample, [opened[path] for path in sample.images]

    def _join(self, items: Sequence[Encoded], left: bool) -> Batch:
        length = max(item.length for item in items)
        batch = {}
        for name in _names(item.tokens for item in items):
            rows = [_token_row(item, name, length, self._fill.get(name, 0), left) for item in items]
            batch[name] = torch.cat(rows)
        return {**batch, **_pictures(items)}


def _check_placeholders(sample: Sample) -> None:
    """Raise unless the sample has one placeholder for every picture: samples may be made by hand."""
    count = sum(message.images for message in sample.messages)
    if count != len(sample.images):
        raise DataError(
            f"sample {sample.id!r} has {count} {PLACEHOLDER} placeholders and {len(sample.images)} pictures",
            "one placeholder for every picture, in order",
            f"add {PLACEHOLDER} to the question, or name the pictures",
        )


def _pictures(items: Sequence[Encoded]) -> Batch:
    return {
        name: _cat_padded([item.pictures[name] for item in items if name in item.pictures])
        for name in _names(item.pictures for item in items)
    }


def _names(rows: Iterator[Batch]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _token_row(item: Encoded, name: str, length: int, fill: int, left: bool) -> torch.Tensor:
    """Return the item's tensor `name` (1, T, ...) padded to `length` tokens; zeros where it has none."""
    value = item.tokens.get(name)
    if value is None:
        value = torch.zeros_like(item.tokens["input_ids"])
    missing = length - value.shape[1]
    sides = (missing, 0) if left else (0, missing)
    return pad(value, (0, 0) * (value.ndim - 2) + sides, value=fill) if missing else value


def _cat_padded(values: list[torch.Tensor]) -> torch.Tensor:
    """Return picture tensors joined along the first dimension, the others zero-padded at their ends to the largest."""
    sizes = [max(value.shape[axis] for value in values) for axis in range(1, values[0].ndim)]
    padded = []
    for value in values:
        missing = [size - have for size, have in zip(sizes, value.shape[1:], strict=True)]
        padded.append(pad(value, [amount for gap in reversed(missing) for amount in (0, gap)]))
    return torch.cat(padded)
