"""Idefics3 and SmolVLM: a SigLIP over tiles of a picture, neighbouring tokens joined, one linear layer."""

from __future__ import annotations

import gguf

from striate.models.convert.gguf.layouts.vision_layout import Tensors, VisionLayout, side


class Idefics3Layout(VisionLayout):
    """A grid of tiles and the whole picture shrunk to one tile."""

    title = "SigLIP of Idefics3"
    projector = gguf.VisionProjectorType.IDEFICS3
    prefix = "model.vision_model."

    def check(self) -> None:
        """Raise for a processor that cuts no tiles, or tiles of another size than the encoder's pictures."""
        tile = side(self.setting("max_image_size"))
        self.refuse_unless(
            bool(self.setting("do_image_splitting")), "its processor cuts no tiles", "do_image_splitting true"
        )
        self.refuse_unless(
            tile == side(self.vision.image_size),
            f"tiles of {tile} px for an encoder of {side(self.vision.image_size)} px",
            "tiles as large as the encoder's pictures",
        )

    def tensors(self) -> Tensors:
        """Yield the encoder and the linear layer."""
        yield from self.encoder(self.core.model.vision_model)
        yield "mm.model.fc.weight", self.core.model.connector.modality_projection.proj.weight

    def image_size(self) -> int:
        """Return the edge of a tile."""
        return side(self.vision.image_size)

    def facts(self, writer: gguf.GGUFWriter) -> None:
        """Write how many tokens are joined, and to which edge pictures grow or shrink first."""
        writer.add_vision_projector_scale_factor(self.config.scale_factor)
        writer.add_vision_preproc_image_size(side(self.setting("size")))
