"""LLaVA: CLIP or SigLIP, one hidden state of it, two linear layers with GELU."""

from __future__ import annotations

import gguf
import torch

from striate.models.convert.gguf.layouts.vision_layout import Tensors, VisionLayout, side

_ENCODERS = ("clip_vision_model", "siglip_vision_model")
_FEATURE_LAYER = "clip.vision.feature_layer"


class LlavaLayout(VisionLayout):
    """LLaVA's own form; the blocks behind the hidden state that is read are left out."""

    title = "CLIP or SigLIP"
    projector = "mlp"
    prefix = "vision_tower.vision_model."

    def check(self) -> None:
        """Raise for another encoder, several hidden states, another choice of tokens, another projector."""
        kind, layer = self.vision.model_type, self.config.vision_feature_layer
        self.refuse_unless(
            kind in _ENCODERS, f"llama.cpp has no graph for the encoder {kind!r}", " or ".join(_ENCODERS)
        )
        self.refuse_unless(
            isinstance(layer, int), f"it reads the hidden states {layer}", "one hidden state as vision_feature_layer"
        )
        strategy = self.config.vision_feature_select_strategy
        takes = "default" if self.has_class_token else "full"
        self.refuse_unless(
            strategy == takes, f"it takes the tokens {strategy!r} of {kind}", f"{takes!r}: one token a patch"
        )
        act = self.config.projector_hidden_act
        self.refuse_unless(act == "gelu", f"its projector's activation is {act!r}", "gelu")
        self.refuse_unless(self.depth > 0, "it reads the embeddings of patches, before any layer", "a later layer")

    @property
    def has_class_token(self) -> bool:
        """Whether the encoder puts a token of its own before those of the patches."""
        return bool(self.vision.model_type == "clip_vision_model")

    @property
    def depth(self) -> int:
        """How many blocks come before the hidden state that is read."""
        layer, blocks = self.config.vision_feature_layer, self.vision.num_hidden_layers
        return int(layer if layer >= 0 else blocks + 1 + layer)

    def tensors(self) -> Tensors:
        """Yield the encoder up to the hidden state that is read, and the projector."""
        behind = tuple(f"encoder.layers.{index}." for index in range(self.depth, self.vision.num_hidden_layers))
        tower = self.core.model.vision_tower
        for name, tensor in self.encoder(getattr(tower, "vision_model", tower), (*behind, "post_layernorm.", "head.")):
            yield ("v.class_embd", tensor) if name.endswith("class_embedding") else (name, tensor)
        projector = self.core.model.multi_modal_projector
        for number, linear in ((0, projector.linear_1), (2, projector.linear_2)):
            yield f"mm.{number}.weight", linear.weight
            # llama.cpp always adds one.
            yield f"mm.{number}.bias", torch.zeros(linear.out_features) if linear.bias is None else linear.bias

    def image_size(self) -> int:
        """Return the edge of the encoder's pictures."""
        return side(self.vision.image_size)

    def facts(self, writer: gguf.GGUFWriter) -> None:
        """Write which hidden state is read."""
        writer.add_array(_FEATURE_LAYER, [self.depth])

    def notes(self) -> list[str]:
        """Return that pictures are padded, and that CLIP's tokens are shifted."""
        notes = [
            "llama.cpp pads pictures to a square in its own way, which changes answers a little: square pictures give"
            " the same answers"
        ]
        if self.has_class_token:
            notes.append(
                "llama.cpp releases since 2025 put CLIP's class token last, so that image tokens are shifted by one and"
                " the first is lost (reported as 25814): answers differ from transformers'; SigLIP has no such token"
            )
        return notes
