"""What a vision encoder and its projector are in llama.cpp's `mmproj` file: sizes, names, what is refused."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import gguf
import torch

from striate.errors import ModelError

TEXT_ONLY = "export the language model alone with --text-only; for the whole model try --to vllm or int8"
Tensors = Iterator[tuple[str, torch.Tensor]]
# Without a word on it, llama.cpp computes the quick GELU of CLIP.
_ACTIVATIONS = {
    "quick_gelu": None,
    "gelu": "add_vision_use_gelu",
    "gelu_pytorch_tanh": "add_vision_use_gelu",
    "gelu_new": "add_vision_use_gelu",
    "silu": "add_vision_use_silu",
}


class VisionLayout(ABC):
    """How one kind of encoder and projector lies in a file; made from the model, which it refuses if need be.

    Attributes:
        title: what the encoder is called in errors.
        projector: llama.cpp's name of the projector, by which it chooses its graph.
        prefix: what stands before the encoder's own names in gguf's map of tensor names.
        own: what llama.cpp writes before and after a picture's tokens.
        around: what the processor, though not its chat template, writes around those.
    """

    title: ClassVar[str]
    projector: ClassVar[gguf.VisionProjectorType | str]
    prefix: ClassVar[str]
    own: ClassVar[tuple[str, str]] = ("", "")
    around: ClassVar[tuple[str, str]] = ("", "")

    def __init__(self, core: Any, processor: Any) -> None:
        self.core, self.config, self.vision = core, core.config, core.config.vision_config
        self.images, self._processor = processor.image_processor, type(processor)
        self.check()
        act = getattr(self.vision, "hidden_act", None)
        self.refuse_unless(
            act in _ACTIVATIONS, f"its encoder's activation is {act!r}", "an activation of " + ", ".join(_ACTIVATIONS)
        )

    def check(self) -> None:  # noqa: B027
        """Raise for settings that llama.cpp does not compute as transformers does."""

    @abstractmethod
    def tensors(self) -> Tensors:
        """Yield encoder and projector, by names of gguf's map or, with `v.` or `mm.` first, by llama.cpp's own."""

    @abstractmethod
    def image_size(self) -> int:
        """Return the edge of the picture that the encoder sees, in pixels."""

    @property
    def depth(self) -> int:
        """How many blocks of the encoder the file has."""
        return int(self.vision.num_hidden_layers)

    @property
    def width(self) -> int:
        """Channels of the encoder."""
        return int(self.vision.hidden_size)

    @property
    def feed_forward(self) -> int:
        """Channels inside the encoder's MLPs."""
        return int(self.vision.intermediate_size)

    def facts(self, writer: gguf.GGUFWriter) -> None:  # noqa: B027
        """Write what the file says beyond the sizes that all have."""

    def notes(self) -> list[str]:
        """Return what llama.cpp does otherwise than transformers, though it computes the model: one line each."""
        return []

    def write_facts(self, writer: gguf.GGUFWriter, file_type: gguf.LlamaFileType) -> None:
        """Write what the file says of the encoder: kind, sizes, how pictures are normalised."""
        writer.add_type(gguf.GGUFType.MMPROJ)
        writer.add_file_type(file_type)
        writer.add_clip_has_vision_encoder(True)
        writer.add_clip_projector_type(str(getattr(self.projector, "value", self.projector)))
        writer.add_vision_projection_dim(self.config.get_text_config(decoder=True).hidden_size)
        writer.add_vision_embedding_length(self.width)
        writer.add_vision_feed_forward_length(self.feed_forward)
        writer.add_vision_block_count(self.depth)
        writer.add_vision_head_count(getattr(self.vision, "num_attention_heads", None) or self.vision.num_heads)
        writer.add_vision_attention_layernorm_eps(float(getattr(self.vision, "layer_norm_eps", 1e-6)))
        writer.add_vision_image_mean([float(value) for value in self.images.image_mean])
        writer.add_vision_image_std([float(value) for value in self.images.image_std])
        writer.add_vision_patch_size(side(self.vision.patch_size))
        writer.add_vision_image_size(self.image_size())
        if says := _ACTIVATIONS[self.vision.hidden_act]:
            getattr(writer, says)(True)
        self.facts(writer)

    def setting(self, name: str) -> Any:
        """Return how pictures are made: what the processor's class asks for, else its image processor's own setting."""
        asked = getattr(self._processor, "images_kwargs", None)
        if asked is None:
            older = getattr(getattr(self._processor, "valid_processor_kwargs", None), "_defaults", {})
            asked = older.get("images_kwargs", {})
        return asked.get(name, getattr(self.images, name, None))

    def encoder(self, module: Any, leave_out: tuple[str, ...] = ()) -> Tensors:
        """Yield the tensors of the encoder `module` under gguf's names, without those that begin with `leave_out`."""
        for name, tensor in module.named_parameters():
            if not name.startswith(leave_out):
                yield self.prefix + name, tensor

    def refuse_unless(self, fits: bool, given: str, allowed: str) -> None:
        """Raise with what was found and what llama.cpp computes, unless it `fits`.

        Raises:
            ModelError: it does not.
        """
        if not fits:
            raise ModelError(
                f"the vision part of this {self.config.model_type} is not written as GGUF: {given}", allowed, TEXT_ONLY
            )


def side(size: Any) -> int:
    """Return the edge of a square that a config gives as a number, a pair or a mapping.

    Raises:
        ModelError: it is no square.
    """
    names = ("longest_edge", "height", "width")
    named = size if isinstance(size, dict) else {name: getattr(size, name, None) for name in names}
    if given := [named[name] for name in names if named.get(name)]:
        size = given[:1] if named.get("longest_edge") else given
    edges = [int(edge) for edge in (size if isinstance(size, list | tuple) else [size])]
    if len(set(edges)) != 1:
        raise ModelError(f"pictures or patches of {' x '.join(map(str, edges))}", "squares", TEXT_ONLY)
    return edges[0]
