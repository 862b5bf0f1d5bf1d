"""A decoder layer as a pure function of its tensors, so that one compiled graph serves every layer of its kind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from types import FunctionType
from typing import Any

import torch
import torch._dynamo
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from striate.models.interventions.eval_mode import evaluating
from striate.training.compile.dropped import draw_keys
from striate.training.compile.gated import gate, gating
from striate.training.compile.layer_form import template_of
from striate.training.compile.lora_dropout import adapt
from striate.training.compile.merged import Group, Shared, merge, siblings
from striate.training.compile.rotary import POSITIONS, turned_before, turning

_ATEN = torch.ops.aten
_PRODUCTS = (_ATEN.mm.default, _ATEN.addmm.default, _ATEN.bmm.default, _ATEN.linear.default)


class LayerFunction:
    """One kind of decoder layer, compiled: call it with the tensors of any layer of that kind.

    Attributes:
        template: the layer's modules without its weights.
        adapters: how many LoRA modules draw dropout masks.
        refused: why the function must not be used, or empty; set by whoever finds out.
        checked: whether it has been compared with the layer itself.
        merged: whether linear layers that read the same tensor are one product.
        groups: those of them whose frozen weights are handed over as one tensor.
    """

    def __init__(
        self,
        layer: nn.Module,
        backend: str = "inductor",
        options: Mapping[str, Any] | None = None,
        lean: bool = False,
    ) -> None:
        """Take the form of `layer`; nothing is compiled before the first call.

        `lean` keeps the results of matrix products alone: attention itself runs again in the backward pass.
        """
        self._lean = lean
        self.template = template_of(layer)
        self._loras = adapt(self.template)
        names = {id(module): name for name, module in self.template.named_modules()}
        self._keys = [f"{names[id(lora)]}.keys" for lora in self._loras]
        self.adapters = len(self._loras)
        self.refused = ""
        self.checked = False
        self.merged = False
        self.groups: tuple[Group, ...] = ()
        self._turned: list[tuple[Shared, nn.Module]] = []
        self._settings: dict[str, Any] = {"backend": backend, "options": dict(options) if options else None}

    @cached_property
    def _compiled(self) -> Callable[..., Any]:
        """The function, compiled at its first call."""
        return torch.compile(_own_code(self._pure()), fullgraph=True, **self._settings)

    @property
    def drops(self) -> bool:
        """Whether a call draws random masks for LoRA."""
        return any(lora.training and lora.probability for lora in self._loras)

    def keys(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Return the random numbers of one call on `hidden` (B, T, D), or None where nothing is dropped."""
        return draw_keys(self.adapters, hidden.shape[:-1], hidden.device) if self.drops else None

    def __call__(
        self, tensors: Mapping[str, torch.Tensor], keys: torch.Tensor | None, args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the layer's output."""
        with _side_effects(self._lean and self.merged), self._unturned():
            return self._compiled(self._with_keys(tensors, keys), args, kwargs)

    def plain(
        self, tensors: Mapping[str, torch.Tensor], keys: torch.Tensor | None, args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        """Return the same without the compiler."""
        with self._unturned():
            return self._whole()(self._with_keys(tensors, keys), args, kwargs)

    def merge(self, tensors: Mapping[str, torch.Tensor], args: Any, kwargs: Mapping[str, Any]) -> None:
        """Let linear layers that are given the same tensor in a call be one product from now on."""
        before = copy.deepcopy((self.template, self._loras))
        with torch.no_grad(), evaluating(self.template):
            found = siblings(self.template, lambda: self.plain(tensors, None, args, kwargs))
        if found:
            self.merged, self._before = True, before
            products = merge(self.template, found, copies=not self._lean)
            self.groups = tuple(one.names for one in products if not one.trained)
            for one in products:
                if mlp := gating(self.template, one.names):
                    gate(mlp, one)
            pairs = ((one, turning(self.template, one.names, kwargs)) for one in products)
            self._turned = [(one, attention) for one, attention in pairs if attention is not None]

    def unmerge(self) -> None:
        """Undo `merge`."""
        self.template, self._loras = self._before
        self.groups, self.merged, self._turned = (), False, []
        vars(self).pop("_compiled", None)

    def inputs(self, kwargs: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call: a layer's own, and `more` that only the function is handed."""
        return {**kwargs, **more}

    def select(self, output: torch.Tensor, kwargs: Mapping[str, Any]) -> torch.Tensor:
        """Return the part of a whole layer's output that the function gives: all of it."""
        return output

    def _with_keys(self, tensors: Mapping[str, torch.Tensor], keys: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Return the tensors with each adapter's random numbers among them."""
        if keys is None:
            # Never read, but a functional call replaces every buffer.
            keys = next(iter(tensors.values())).new_empty((self.adapters, 1), dtype=torch.int32)
        return {**tensors, **dict(zip(self._keys, keys.unbind(0), strict=True))}

    def _bare(self) -> Callable[..., Any]:
        """Return the function of tensors; it refers to the template and to nothing else."""
        template = self.template

        def run(tensors: dict[str, torch.Tensor], args: Any, kwargs: Mapping[str, Any]) -> Any:
            return functional_call(template, tensors, args, dict(kwargs), strict=True)

        return run

    def _unturned(self) -> AbstractContextManager[None]:
        """Return a context in which attention does not rotate what its products give rotated."""
        return turned_before([attention for _, attention in self._turned]) if self._turned else nullcontext()

    def _whole(self) -> Callable[..., Any]:
        """Return the function of tensors whose products know the positions that they rotate to."""
        run, products = self._bare(), [product for product, _ in self._turned]
        if not products:
            return run

        def run_turned(tensors: dict[str, torch.Tensor], args: Any, kwargs: Mapping[str, Any]) -> Any:
            for product in products:
                product.positions = kwargs[POSITIONS]
            found = run(tensors, args, kwargs)
            for product in products:
                product.positions = (None, None)
            return found

        return run_turned

    def _pure(self) -> Callable[..., Any]:
        """Return the function to compile: where it is lean, one that keeps the results of products alone."""
        run = self._whole()

        def run_lean(tensors: dict[str, torch.Tensor], args: Any, kwargs: Mapping[str, Any]) -> Any:
            if not (args[0] if args else kwargs["hidden_states"]).requires_grad:
                # Nothing is kept there anyway.
                return run(tensors, args, kwargs)
            options: dict[str, Any] = {
                "use_reentrant": False,
                "preserve_rng_state": False,
                "context_fn": _products_only,
            }
            return checkpoint(run, tensors, args, kwargs, **options)

        return run_lean if self._lean else run


def _side_effects(wanted: bool) -> AbstractContextManager[None]:
    """Return a context in which the compiler follows what a recomputed function notes for itself and forgets again."""
    if not wanted:
        return nullcontext()
    return torch._dynamo.config.patch(skip_fwd_side_effects_in_bwd_under_checkpoint=True)


def _products_only() -> Any:
    """Return the contexts of a checkpoint that keeps the results of matrix products."""
    return create_selective_checkpoint_contexts(_keep_products)


def _keep_products(_: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Return whether the result of an operation is kept."""
    kept = operation in _PRODUCTS
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _own_code(function: Any) -> FunctionType:
    """Return `function` with a code object of its own: the compiler counts its graphs by code object."""
    copied = FunctionType(
        function.__code__.replace(), function.__globals__, function.__name__, None, function.__closure__
    )
    copied.__annotations__ = {}
    return copied
