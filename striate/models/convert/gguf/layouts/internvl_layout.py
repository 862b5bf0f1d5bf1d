"""InternVL: its own ViT over tiles of a picture, neighbouring tokens joined, a norm, two linear layers with GELU."""

from __future__ import annotations

import gguf
import torch

from striate.models.convert.gguf.layouts.vision_layout import Tensors, VisionLayout, side


class InternVLLayout(VisionLayout):
    """Tiles, then the whole picture shrunk to one tile."""

    title = "ViT of InternVL"
    projector = gguf.VisionProjectorType.INTERNVL
    prefix = "model.vision_tower."
    own = ("<img>", "</img>")

    def check(self) -> None:
        """Raise for a ViT with norms that llama.cpp has in its largest one alone, or another hidden state."""
        self.refuse_unless(
            self.vision.norm_type == "layer_norm", f"its norms are {self.vision.norm_type!r}", "layer_norm"
        )
        layer = self.config.vision_feature_layer
        self.refuse_unless(layer == -1, f"it reads the hidden state {layer}", "the last one, vision_feature_layer -1")
        act = self.config.projector_hidden_act
        self.refuse_unless(act == "gelu", f"its projector's activation is {act!r}", "gelu")

    def tensors(self) -> Tensors:
        """Yield the encoder, with its class token after the patches, and the projector."""
        tower = self.core.model.vision_tower
        yield "v.class_embd", tower.embeddings.cls_token.reshape(-1)
        positions = tower.embeddings.position_embeddings[0]
        yield "v.position_embd.weight", torch.cat([positions[1:], positions[:1]])
        for name, tensor in self.encoder(tower, ("embeddings.cls_token", "embeddings.position_emb", "layernorm.")):
            # A scale of the layer's output; gguf's map knows it by a name that ends in .weight.
            yield f"{name}.weight" if ".lambda_" in name else name, tensor
        for name, tensor in tower.layernorm.named_parameters():
            yield f"v.post_ln.{name}", tensor
        projector = self.core.model.multi_modal_projector
        for number, part in ((0, projector.layer_norm), (1, projector.linear_1), (3, projector.linear_2)):
            for name, tensor in part.named_parameters():
                yield f"mm.model.mlp.{number}.{name}", tensor

    def image_size(self) -> int:
        """Return the edge of a tile."""
        return side(self.vision.image_size)

    def facts(self, writer: gguf.GGUFWriter) -> None:
        """Write how many tokens are joined, and how many tiles a picture becomes."""
        writer.add_vision_projector_scale_factor(round(1 / self.config.downsample_ratio))
        tiles = self.setting("crop_to_patches")
        writer.add_vision_preproc_min_tiles(self.setting("min_patches") if tiles else 1)
        writer.add_vision_preproc_max_tiles(self.setting("max_patches") if tiles else 1)
