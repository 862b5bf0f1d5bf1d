"""Visual token skipping: outside chosen layers, image tokens keep their state and only lend keys and values.

They may take a constant step there, the same for all of them (`shift`). In a layer that image tokens skip, text tokens
attend to them as ever, but they get no queries, no attention output and no feed-forward: of all their work only two
projections remain. That changes what the model computes, so it is a choice, never a default. How such a layer runs is
in `skipped_layer`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from striate.artifacts import write_document
from striate.errors import ModelError
from striate.models.interventions.model_rule import ModelRule, rule_of, set_rule
from striate.models.structure.anatomy import decoder_layers, find_anatomy, unwrap
from striate.models.structure.decoder_stack import decoder_config
from striate.models.visual_token_skipping.shift import Shift, carried, read_shift, write_shift
from striate.models.visual_token_skipping.skipped_layer import CurrentBatch, install, uninstall
from striate.models.visual_token_skipping.text_attention import restore_attention, use_text_attention
from striate.models.visual_token_skipping.token_layout import TokenLayout
from striate.models.visual_token_skipping.visual_compute import (
    VISUAL_COMPUTE_FILE,
    VisualCompute,
    read_visual_compute,
)

_ATTENTION_KINDS = ("sdpa", "eager")
# Settings of a decoder that variable-length attention does not have.
_BEYOND_VARLEN = ("attention_dropout", "attn_logit_softcapping")


class VisualTokenSkipping(ModelRule):
    """Visual token skipping on a model: on when made, off after `remove`; also a context manager.

    It holds for training, for scoring and for generation: with a cache, the prompt is where image tokens are.

    Attributes:
        compute: which layers compute image tokens, and whether they take steps elsewhere.
        shift: the steps (D,), by layer.
    """

    def __init__(self, model: nn.Module, compute: VisualCompute, shift: Shift | None = None) -> None:
        """Put the rule on `model`, plain or wrapped by PEFT.

        Raises:
            ModelError: the rule is of another depth, the model has no image tokens, or its attention takes masks
                that can't be cut by rows.
        """
        self._core = unwrap(model)
        self._anatomy = find_anatomy(self._core)
        self._batch = CurrentBatch()
        self._told = False
        self.compute, self.shift = compute, dict(shift or {})
        self.reinstall()

    def __enter__(self) -> VisualTokenSkipping:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def reinstall(self, old_to_new: Mapping[int, int] | None = None) -> None:
        """Put the rule on; with `old_to_new` in the layer numbers of a model that lost layers."""
        if old_to_new is not None:
            kept = tuple(old_to_new[layer] for layer in self.compute.layers if layer in old_to_new)
            self.compute = self.compute.model_copy(update={"layers": kept, "num_layers": len(old_to_new)})
            self.shift = carried(self.shift, old_to_new)
        self._check()
        self.compute = self.compute.model_copy(update={"shift": bool(self.shift)})
        skipped, stack = self.compute.skipped, decoder_layers(self._core)
        config, device = decoder_config(self._core), next(self._core.parameters()).device
        varlen = not any(getattr(config, name, None) for name in _BEYOND_VARLEN)
        # Nothing reads image tokens behind the last layer; but skipped layers share a graph if all of them have steps.
        steps = {layer: step.to(device) for layer, step in self.shift.items() if layer < len(stack) - 1}
        if steps:
            steps = {layer: torch.zeros_like(next(iter(steps.values()))) for layer in skipped} | steps
        changed = sorted({*skipped, *steps})
        for layer in changed:
            install(stack[layer], self._batch, skipped=layer in skipped, step=steps.get(layer), varlen=varlen)
        self._changed = [stack[layer] for layer in changed]
        self._replaced = use_text_attention([stack[layer] for layer in skipped])
        self._look = self._core.register_forward_pre_hook(self._look_at, with_kwargs=True)
        set_rule(self._core, self)

    def remove(self) -> None:
        """Take the rule off; the model computes as it was made to."""
        set_rule(self._core, None)
        self._look.remove()
        restore_attention(self._replaced)
        for layer in self._changed:
            uninstall(layer)

    @property
    def whole(self) -> bool:
        """Whether all layers compute image tokens for now, without steps; set between passes, not within one."""
        return self._batch.whole

    @whole.setter
    def whole(self, whole: bool) -> None:
        self._batch.whole = whole

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let all layers compute image tokens in the block, without steps."""
        before, self.whole = self.whole, True
        try:
            yield
        finally:
            self.whole = before

    def save(self, folder: Path) -> None:
        """Write `visual_compute.json`, and the steps if there are some."""
        write_document(folder / VISUAL_COMPUTE_FILE, self.compute)
        if self.shift:
            write_shift(folder, self.shift)

    @contextmanager
    def reading(self, ids_BT: Tensor, device: torch.device, lengths: Sequence[int] | None = None) -> Iterator[None]:
        """Let the layers know the batch, over forward and backward pass, so that nothing asks the device for it.

        Args:
            ids_BT: the batch's token ids, on the CPU.
            device: where the layers run.
            lengths: tokens of each sample of a packed row (1, T); None where every row is a sample.
        """
        before = self._batch.layout, self._told
        self._batch.layout = self._layout(ids_BT, device, lengths)
        self._told = True
        try:
            yield
        finally:
            self._batch.layout, self._told = before

    def _look_at(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Find the image tokens of the coming forward pass, unless the batch is known."""
        if self._told:
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ModelError(
                "visual token skipping needs token ids, and only embeddings were given",
                "a forward pass with input_ids",
                "pass input_ids and pixel_values instead of inputs_embeds",
            )
        self._batch.layout = self._layout(ids.cpu(), ids.device)

    def _layout(self, ids_BT: Tensor, device: torch.device, lengths: Sequence[int] | None = None) -> TokenLayout | None:
        """Return where a batch's tokens are, or None where no layer is skipped."""
        return None if self.whole else TokenLayout.of(self._anatomy.image_mask(ids_BT), device, lengths)

    def _check(self) -> None:
        """Raise if the rule can't hold for this model."""
        core = self._core
        if rule_of(core) is not None:
            raise ModelError(
                "this model has a rule already that says which layers compute image tokens",
                "one such rule a model",
                "remove the first rule, or load the model again",
            )
        depth = len(decoder_layers(core))
        if self.compute.num_layers != depth:
            raise ModelError(
                f"the rule is of a model with {self.compute.num_layers} layers, and this one has {depth}",
                "a rule of the same model",
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
                f"visual token skipping does not work with attention {kind!r}",
                " or ".join(_ATTENTION_KINDS),
                "load the model with attn_implementation='sdpa'",
            )


def skipping_of(model: nn.Module) -> VisualTokenSkipping | None:
    """Return the visual token skipping that is on `model`, if it is."""
    rule = rule_of(model)
    return rule if isinstance(rule, VisualTokenSkipping) else None


def load_rule(model: nn.Module, folder: Path) -> None:
    """Put on `model` the rule that its checkpoint's `folder` holds; nothing where it holds none.

    Raises:
        ArtifactError: the file that holds it is damaged.
        ModelError: the rule can't hold for this model, or the steps of its image tokens can't be read.
    """
    compute = read_visual_compute(folder)
    if compute is not None:
        shift = read_shift(folder, compute, decoder_config(model).hidden_size) if compute.shift else None
        VisualTokenSkipping(model, compute, shift)
