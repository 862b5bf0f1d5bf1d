"""Pictures' features put among a batch's embeddings at places that are known: nothing waits for the accelerator.

Hugging Face's models look for image tokens on the accelerator: once to count them, and once more in the backward pass.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from striate.models.interventions.eval_mode import evaluating
from striate.models.interventions.vision_feature_tap import PIXELS
from striate.models.structure.anatomy import find_anatomy, unwrap
from striate.training.numerical_agreement import hidden_states

_IDS, _EMBEDDED = "input_ids", "inputs_embeds"


class PicturePlaces:
    """Hands the embeddings of a batch with pictures to one model, which then has nothing to look for.

    Attributes:
        refused: why the model's own way is used, or empty.
        checked: whether that has been found out.
    """

    def __init__(self, model: nn.Module, say: Callable[[str], None] = lambda line: None) -> None:
        """Find where the model takes embeddings; `say` is told in one line why not, if it doesn't."""
        self._say = say
        core: Any = unwrap(model)
        self._image_ids = find_anatomy(core).image_token_ids
        bases: list[Any] = [getattr(core, "model", None), core]
        self._base: Any = next((one for one in bases if hasattr(type(one), "get_image_features")), None)
        names = _parameters(getattr(type(self._base), "forward", None))
        fits = len(self._image_ids) == 1 and all(name in names for name in (_IDS, _EMBEDDED, PIXELS))
        self.refused = ""
        if not fits:
            self._refuse("its forward pass takes no embeddings beside pictures")
        self._taken = _parameters(getattr(self._base, "get_image_features", None))
        self.checked = bool(self.refused)
        self._core = core
        self._places: torch.Tensor | None = None

    def check(self, model: nn.Module, batch: Mapping[str, Any], ids: torch.Tensor) -> None:
        """Set `refused` unless the model makes the same hidden states of `batch`, to the bit, either way.

        Args:
            model: as it trains.
            batch: with pictures, on the device.
            ids: its tokens on the CPU.
        """
        self.checked = True
        with evaluating(model), torch.no_grad():
            expected = hidden_states(model, dict(batch))
            try:
                with self.placing(ids):
                    found = hidden_states(model, dict(batch))
            except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
                self._refuse(f"its forward pass fails on embeddings: {str(error).splitlines()[0]}")
                return
        if not torch.equal(found, expected):
            self._refuse("it does something else with embeddings than with pictures")

    @contextmanager
    def placing(self, ids: torch.Tensor) -> Iterator[None]:
        """Let the model get embeddings in place of a batch's tokens `ids`, which are on the CPU, and its pictures."""
        if self.refused:
            yield
            return
        device = self._core.get_input_embeddings().weight.device
        places = (ids == self._image_ids[0]).flatten().nonzero().squeeze(1)
        self._places = places.to(device, non_blocking=True)
        handle = self._base.register_forward_pre_hook(self._embed, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
            self._places = None

    def _refuse(self, reason: str) -> None:
        """Leave pictures to the model, and say why."""
        self.refused = reason
        self._say(f"the model puts pictures among embeddings itself, and steps wait for that: {reason}")

    def _embed(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the base model's arguments with embeddings in place of tokens and pictures."""
        ids, pixels = kwargs.get(_IDS), kwargs.get(PIXELS)
        if args or ids is None or pixels is None or self._places is None:
            return None
        given = {name: value for name, value in kwargs.items() if name in self._taken and value is not None}
        features = _joined(self._base.get_image_features(**given))
        embedded_BTD = self._core.get_input_embeddings()(ids)
        if features is None or features.shape != (len(self._places), embedded_BTD.shape[-1]):
            raise ValueError("image tokens and image features do not match")
        rows = embedded_BTD.flatten(0, 1).index_copy(0, self._places, features.to(embedded_BTD))
        return args, {**kwargs, _IDS: None, PIXELS: None, _EMBEDDED: rows.view_as(embedded_BTD)}


def _parameters(function: Any) -> set[str]:
    """Return the names of what a function takes."""
    return set(inspect.signature(function).parameters) if function else set()


def _joined(found: Any) -> torch.Tensor | None:
    """Return the features of all pictures (N, D) that a model's `get_image_features` gives, or None if not so."""
    found = getattr(found, "pooler_output", found)
    parts = [found] if isinstance(found, torch.Tensor) else list(found) if isinstance(found, list | tuple) else []
    if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
        return None
    return torch.cat([part.flatten(0, -2) for part in parts])
