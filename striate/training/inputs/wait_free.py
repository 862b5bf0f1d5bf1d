"""Inputs that spare a step its waits for the accelerator: embeddings in place of pictures, padding known on the CPU.

Hugging Face's models look for image tokens and for padding on the accelerator, which makes the CPU wait for all work
before. Whether a model computes the same from embeddings is found out at the first batch with pictures.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from striate.data.packing import Batch
from striate.errors import first_line
from striate.models.interventions.eval_mode import evaluating
from striate.models.interventions.vision_feature_tap import PIXELS
from striate.models.structure.anatomy import find_anatomy, unwrap
from striate.training.batching.label_positions import ANSWERS
from striate.training.inputs.step_inputs import StepInput
from striate.training.numerical_agreement import hidden_states

_IDS, _EMBEDDED, _SDPA = "input_ids", "inputs_embeds", "sdpa"
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError)


class WaitFreeInputs(StepInput):
    """A step input: hands a model embeddings with the pictures' features in place, and tells what is padded.

    Attributes:
        refused: why pictures are left to the model, or empty.
    """

    def __init__(
        self,
        model: nn.Module,
        notify: Callable[[str], None] = lambda line: None,
        autocast: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        """Find where the model takes embeddings.

        Args:
            model: as it trains.
            notify: told in one line why pictures are left to the model.
            autocast: gives the context in which the model computes.
        """
        self._model, self._notify = model, notify
        self._autocast = autocast or nullcontext
        core: Any = unwrap(model)
        self._core, self._image_ids = core, find_anatomy(core).image_token_ids
        bases: list[Any] = [getattr(core, "model", None), core]
        self._base: Any = next((base for base in bases if hasattr(type(base), "get_image_features")), None)
        self._taken = _parameters(getattr(self._base, "get_image_features", None))
        # The shape of the batch in work, and whether it has no padding.
        self._batch: tuple[torch.Size, bool] | None = None
        self._compared = False
        self.refused = ""
        names = _parameters(getattr(type(self._base), "forward", None))
        if len(self._image_ids) != 1 or not {_IDS, _EMBEDDED, PIXELS} <= names:
            self._refuse("its forward pass takes no embeddings beside pictures")

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Let transformers make masks of what is known of the padding, for a whole training."""
        original = ALL_MASK_ATTENTION_FUNCTIONS[_SDPA]
        ALL_MASK_ATTENTION_FUNCTIONS[_SDPA] = partial(self._mask, original)
        try:
            yield
        finally:
            if original is type(ALL_MASK_ATTENTION_FUNCTIONS)._global_mapping[_SDPA]:
                del ALL_MASK_ATTENTION_FUNCTIONS[_SDPA]
            else:
                ALL_MASK_ATTENTION_FUNCTIONS[_SDPA] = original

    @contextmanager
    def serving(self, batch: Batch, on_cpu: Batch) -> Iterator[Batch]:
        """Yield the batch; in the block its padding is known, and the base model gets embeddings of its pictures."""
        if PIXELS in batch and not (self._compared or self.refused):
            self._compare(batch, on_cpu[_IDS])
        padding_BT = on_cpu.get("attention_mask")
        self._batch = None if padding_BT is None else (padding_BT.shape, bool(padding_BT.all()))
        try:
            with self.embedding(on_cpu[_IDS]) if PIXELS in batch else nullcontext():
                yield batch
        finally:
            self._batch = None

    def _mask(self, original: Callable[..., Any], **given: Any) -> Tensor | None:
        """Return transformers' mask for scaled dot-product attention: none where all tokens are seen causally.

        It decides that by looking at the mask on the accelerator; what it decides stays the same.
        """
        mask, window = given.get("attention_mask"), given.get("local_size")
        if self._batch is None or not isinstance(mask, Tensor) or mask.shape != self._batch[0]:
            return original(**given)
        (_, length), unpadded = self._batch
        whole_prompt = (given.get("q_length"), given.get("kv_length"), given.get("q_offset", 0)) == (length, length, 0)
        if not (whole_prompt and given.get("allow_is_causal_skip", True)):
            return original(**given)
        if unpadded and (window is None or length < window):
            return None
        return original(**{**given, "allow_is_causal_skip": False})

    @contextmanager
    def embedding(self, ids_BT: Tensor) -> Iterator[None]:
        """Let the base model get embeddings in the block: `ids_BT` are the batch's tokens, on the CPU."""
        if self.refused:
            yield
            return
        places = (ids_BT == self._image_ids[0]).flatten().nonzero().squeeze(1)
        places = places.to(self._core.get_input_embeddings().weight.device, non_blocking=True)

        def embed(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return (args, self._embedded(kwargs, places)) if not args else None

        handle = self._base.register_forward_pre_hook(embed, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _embedded(self, kwargs: dict[str, Any], places: Tensor) -> dict[str, Any]:
        """Return the base model's arguments with embeddings in place of tokens and pictures."""
        if kwargs.get(_IDS) is None or kwargs.get(PIXELS) is None:
            return kwargs
        given = {name: value for name, value in kwargs.items() if name in self._taken and value is not None}
        features = _joined(self._base.get_image_features(**given))
        embedded_BTD = self._core.get_input_embeddings()(kwargs[_IDS])
        if features is None or features.shape != (len(places), embedded_BTD.shape[-1]):
            raise ValueError("image tokens and image features do not match")
        rows = embedded_BTD.flatten(0, 1).index_copy(0, places, features.to(embedded_BTD))
        return {**kwargs, _IDS: None, PIXELS: None, _EMBEDDED: rows.view_as(embedded_BTD)}

    def _compare(self, batch: Batch, ids_BT: Tensor) -> None:
        """Set `refused` unless the model makes the same hidden states of the batch, to the bit, either way."""
        self._compared = True
        with evaluating(self._model), self._autocast(), torch.no_grad():
            expected = self._states(batch)
            try:
                with self.embedding(ids_BT):
                    states = self._states(batch)
            except torch.OutOfMemoryError:
                raise
            except _FAILURES as error:
                self._refuse(f"its forward pass fails on embeddings: {first_line(error)}")
                return
        if not torch.equal(states, expected):
            self._refuse("it does something else with embeddings than with pictures")

    def _states(self, batch: Mapping[str, Any]) -> Tensor:
        return hidden_states(self._model, {name: value for name, value in batch.items() if name != ANSWERS})

    def _refuse(self, reason: str) -> None:
        """Leave pictures to the model, and say why."""
        self.refused = reason
        self._notify(f"the model puts pictures among embeddings itself, and steps wait for that: {reason}")


def _parameters(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) if function else set()


def _joined(output: Any) -> Tensor | None:
    """Return the features of all pictures (N, D) that a model's `get_image_features` gives, or None if not so."""
    output = getattr(output, "pooler_output", output)
    parts = [output] if isinstance(output, Tensor) else list(output) if isinstance(output, list | tuple) else []
    if not parts or not all(isinstance(part, Tensor) for part in parts):
        return None
    return torch.cat([part.flatten(0, -2) for part in parts])
