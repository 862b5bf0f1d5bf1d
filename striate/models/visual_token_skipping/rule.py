"""Region-only visual compute: outside the region, image tokens keep their state and only lend keys and values.

They may take a constant step there, the same for all of them (`image_shift`).

`Region.image_layers` are layers outside the region that compute image tokens all the same. In any other decoder layer
outside the region, text tokens attend to image tokens as ever, but the image tokens themselves get no queries, no
attention output and no feed-forward: they leave the layer as they entered it. What is saved is all of their work but
two projections. The rule changes what the model computes, so it is a choice, never a default. How such a layer runs is
in `text_only_run`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from striate.artifacts import Region
from striate.errors import ModelError
from striate.models.structure.anatomy import decoder_layers, find_anatomy, unwrap
from striate.models.visual_token_skipping.shift import Shift, take_step
from striate.models.visual_token_skipping.text_only_forward import run_text_only, without_checkpointing
from striate.models.visual_token_skipping.token_indices import Places

_ATTENTION_KINDS = ("sdpa", "eager")
# Where a model keeps its rule.
_RULE = "_striate_image_skip"
Run = Callable[[Callable[..., Any], Mapping[str, Any], Tensor], Any]


class ImageSkip:
    """Region-only visual compute on a model: installed when made, gone after `remove`; also a context manager.

    It holds for training, for scoring and for generation: with a cache, the prompt is where image tokens are.
    """

    def __init__(self, model: nn.Module, region: Region, shift: Shift | None = None) -> None:
        """Install the rule on the decoder layers of `model` that are neither in `region` nor in its `image_layers`.

        Args:
            model: plain, or wrapped by PEFT.
            region: whose `passing` layers leave image tokens out.
            shift: the steps (D,) that image tokens take in some layers; none by default.

        Raises:
            ModelError: the region is of another depth, the model has no image tokens, or its attention takes masks
                that can't be cut by rows.
        """
        core = unwrap(model)
        self.region = region
        self._core = core
        self._anatomy = find_anatomy(core)
        self._layers = decoder_layers(core)
        self._check(core)
        self._places: Places | None = None
        self._told = False
        self._run: Run | None = None
        self.shift = dict(shift or {})
        self._handles = [core.register_forward_pre_hook(self._look, with_kwargs=True)]
        # Nothing reads image tokens behind the last layer.
        steps = [(layer, step) for layer, step in self.shift.items() if layer < len(self._layers) - 1]
        for layer, step in steps:
            # Before other hooks, which are to see what the next layer gets.
            hook = take_step(step, lambda: self._places)
            self._handles.append(self._layers[layer].register_forward_hook(hook, prepend=True))
        self._changed = [self._layers[index] for index in region.passing]
        for index in region.passing:
            self._layers[index].forward = self._forward_of(index)
        vars(core)[_RULE] = self

    def __enter__(self) -> ImageSkip:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take the rule away again; the model computes as it was made to."""
        for handle in self._handles:
            handle.remove()
        vars(self._core).pop(_RULE, None)
        for layer in self._changed:
            vars(layer).pop("forward", None)
        self._changed = []

    @property
    def places(self) -> Places | None:
        """Where the image tokens of the latest forward pass are; None where it has none."""
        return self._places

    def image_mask(self, ids: Tensor) -> Tensor:
        """Return which of the token ids are of image tokens."""
        return self._anatomy.image_mask(ids)

    @contextmanager
    def told(self, places: Places | None, run: Run | None = None) -> Iterator[None]:
        """Say for a while where image tokens are, so that no forward pass has to look: asking a device takes time.

        `run` then runs the layers that image tokens pass: it is given their forward method, other arguments and hidden
        states.
        """
        before = self._places, self._told, self._run
        self._places, self._told, self._run = places, True, run
        try:
            yield
        finally:
            self._places, self._told, self._run = before

    def _check(self, core: Any) -> None:
        """Raise if the rule can't hold for this model."""
        if _RULE in vars(core):
            raise ModelError(
                "this model computes image tokens in the layers of another region alone",
                "one such region a model",
                "remove the first rule, or load the model again",
            )
        if self.region.num_layers != len(self._layers):
            raise ModelError(
                f"the region is of a model with {self.region.num_layers} layers, and this one has {len(self._layers)}",
                "a region of the same model",
                "choose the region again with `striate select`",
            )
        if not self._anatomy.image_token_ids:
            raise ModelError(
                f"{self._anatomy.model_type} has no image tokens among its text tokens",
                "a model whose pictures become tokens of the decoder",
                "use train.image_tokens=all",
            )
        kind = core.config.get_text_config()._attn_implementation or "eager"
        if kind not in _ATTENTION_KINDS:
            raise ModelError(
                f"region-only visual compute does not work with attention {kind!r}",
                " or ".join(_ATTENTION_KINDS),
                "load the model with attn_implementation='sdpa'",
            )

    def _look(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note where the image tokens of the coming forward pass are, unless that was told."""
        if self._told:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ModelError(
                "region-only visual compute needs token ids, and only embeddings were given",
                "a forward pass with input_ids",
                "pass input_ids and pixel_values instead of inputs_embeds",
            )
        self._places = Places.of(self._anatomy.image_mask(ids))

    def _forward_of(self, index: int) -> Callable[..., Any]:
        """Return the forward method of layer `index`, which image tokens pass."""
        layer: Any = self._layers[index]
        plain = layer.forward
        whole = without_checkpointing(layer)
        signature = inspect.signature(whole)

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._places is None:
                return plain(*args, **kwargs)
            given = {**signature.bind(*args, **kwargs).arguments}
            given.update(given.pop("kwargs", {}))
            run = partial(run_text_only, whole, index, self._places, given)
            if self._run is not None:
                run = partial(self._run, whole, given)
            if whole is plain or not (layer.gradient_checkpointing and layer.training):
                return run(given.pop("hidden_states"))
            return layer._gradient_checkpointing_func(run, given.pop("hidden_states"))

        return forward


def rule_of(model: nn.Module) -> ImageSkip | None:
    """Return the rule that is installed on `model`, if there is one."""
    rule: ImageSkip | None = vars(unwrap(model)).get(_RULE)
    return rule
