"""What training changes about a model besides its weights: which modules are in training mode, and number formats."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from striate.models.structure.anatomy import decoder_layers, unwrap
from striate.models.structure.vision_stack import encoder_layers

HALF = (torch.bfloat16, torch.float16)


@contextmanager
def checkpointed(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Let the decoder layers recompute their activations in the backward pass, if `wanted`.

    The non-reentrant form: the other one drops gradients when a layer's input needs none.
    """
    core = unwrap(model)
    # transformers 5.2x renames the pair; the old names warn there.
    names = ("activation_checkpointing", "gradient_checkpointing")
    name = next(name for name in names if hasattr(core, f"{name}_enable"))
    if wanted:
        getattr(core, f"{name}_enable")(**{f"{name}_kwargs": {"use_reentrant": False}})
        # transformers asks for gradients of all embeddings, and a frozen vision encoder then keeps its activations.
        core.disable_input_require_grads()
    try:
        yield
    finally:
        if wanted:
            getattr(core, f"{name}_disable")()


class FrozenModules:
    """The modules that must not be in training mode: their dropout and batch statistics stay off."""

    def __init__(self, model: nn.Module, checkpointing: bool) -> None:
        """Find every module whose parameters are all frozen, with what lies below it.

        With gradient checkpointing the layers of the decoder, and of a vision encoder that trains, keep the training
        flag themselves, which it asks for.
        """
        self._evaluated: list[nn.Module] = []
        kept = {id(layer) for layer in decoder_layers(model)} if checkpointing else set()
        encoder = encoder_layers(model) if checkpointing else []
        if any(parameter.requires_grad for layer in encoder for parameter in layer.parameters()):
            kept |= {id(layer) for layer in encoder}
        self._collect(model, False, kept)

    def set_eval(self) -> None:
        """Take them out of training mode; to be called after `model.train()`."""
        for module in self._evaluated:
            # Most often it is out already, and asking is much cheaper than setting.
            if module.training:
                module.training = False

    def _collect(self, module: nn.Module, frozen: bool, kept: set[int]) -> None:
        """Add `module` and what lies below it; a module without parameters goes with its parent."""
        parameters = list(module.parameters())
        frozen = frozen or (bool(parameters) and not any(parameter.requires_grad for parameter in parameters))
        if frozen and id(module) not in kept:
            self._evaluated.append(module)
        for child in module.children():
            self._collect(child, frozen, kept)


class MasterWeights:
    """Float32 copies of half-precision weights while they train.

    A learning rate of 2e-5 moves a weight by less than bfloat16 can tell apart, so updates would be lost.

    Attributes:
        dtype: the model's half-precision type, if it has one.
        dtypes: the former number format of every tensor that has a copy, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        """Turn the trainable half-precision parameters of `model` into float32 and remember what they were."""
        self.dtype: torch.dtype | None = None
        self.dtypes: dict[str, torch.dtype] = {}
        self._changed: list[tuple[nn.Parameter, torch.dtype]] = []
        for name, parameter in model.named_parameters():
            if parameter.dtype in HALF:
                self.dtype = self.dtype or parameter.dtype
                if parameter.requires_grad:
                    self._changed.append((parameter, parameter.dtype))
                    self.dtypes[name] = parameter.dtype
                    parameter.data = parameter.data.float()

    def restore(self) -> None:
        """Give the parameters their former number format back."""
        for parameter, dtype in self._changed:
            parameter.data = parameter.data.to(dtype)
