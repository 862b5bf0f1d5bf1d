"""Tiny LVLMs in which it is known which decoder layers move image tokens, and which ones let text read them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import nn


class _Layer(nn.Module):
    """A decoder layer that knows where the image tokens of the running batch are."""

    def __init__(self, inner: nn.Module, where: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.inner = inner
        self._where = where

    def image(self) -> torch.Tensor:
        return self._where["image"][..., None]


class Still(_Layer):
    """A layer whose image tokens leave as they came; text tokens read them as ever."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return torch.where(self.image(), hidden_states, self.inner(hidden_states, *args, **kwargs))


class Blind(_Layer):
    """A layer whose image tokens leave as they came, and in which text tokens see zeros in their place."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        unseen = torch.where(self.image(), torch.zeros_like(hidden_states), hidden_states)
        return torch.where(self.image(), hidden_states, self.inner(unseen, *args, **kwargs))


def plant(model: Any, kind: type[_Layer], spared: Collection[int]) -> Any:
    """Return `model` after making every decoder layer but the `spared` ones of `kind`; in place."""
    where: dict[str, torch.Tensor] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        where["image"] = kwargs["input_ids"] == model.config.image_token_id

    model.register_forward_pre_hook(look, with_kwargs=True)
    layers = model.model.language_model.layers
    for index in range(len(layers)):
        if index not in spared:
            layers[index] = kind(layers[index], where)
    return model


def sharpen(loaded: Any) -> Any:
    """Return `loaded` after making its image tokens differ as much as they can between drawn pictures; in place."""
    from striate.data.picture_pairs import ATTRIBUTES, picture_pair

    model = loaded.model
    pictures = [picture for name in ATTRIBUTES for seed in range(4) for picture in picture_pair(name, seed).pictures]
    pixels = loaded.processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    projector = model.model.multi_modal_projector
    with torch.no_grad():
        seen = model.model.vision_tower(pixels).last_hidden_state[:, 1:].flatten(0, 1)
        projector.linear_1.weight.mul_(100 / seen.std(0))
        projector.linear_1.bias.copy_(-projector.linear_1.weight @ seen.mean(0))
        projector.linear_2.bias.zero_()
    return loaded


def teach(loaded: Any, attributes: Collection[str], count: int, steps: int = 35) -> Any:
    """Return `loaded` after teaching it the answers of the first `count` drawn pairs of each attribute; in place."""
    from tempfile import TemporaryDirectory

    from striate.data.collate import Collator
    from striate.training.loss import answer_loss

    with TemporaryDirectory() as folder:
        samples = [
            one for name in attributes for seed in range(count) for one in pair_samples(name, seed, Path(folder))
        ]
        batch = Collator(loaded.processor, 512, train=True)(samples)
    learning = [one for name, one in loaded.model.named_parameters() if "vision_tower" not in name]
    optimizer = torch.optim.AdamW(learning, lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        answer_loss(loaded.model, batch).backward()
        optimizer.step()
    loaded.model.requires_grad_(True).zero_grad()
    return loaded


def pair_samples(attribute: str, seed: int, folder: Path) -> list[Any]:
    """Return each picture of a drawn pair, written to `folder`, with its own answer."""
    from striate.data.picture_pairs import picture_pair
    from striate.data.samples import Message, Sample

    pair, samples = picture_pair(attribute, seed), []
    for place, (picture, answer) in enumerate(zip(pair.pictures, pair.answers, strict=True)):
        file = folder / f"{attribute}-{seed}-{place}.png"
        picture.save(file)
        turns = Message("user", f"<image>\n{pair.question}"), Message("assistant", answer)
        samples.append(Sample(file.stem, turns, (file,), attribute))
    return samples
