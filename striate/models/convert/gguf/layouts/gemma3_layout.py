"""Gemma 3: SigLIP, its tokens averaged over squares, a norm, one linear layer."""

from __future__ import annotations

import gguf

from striate.models.convert.gguf.layouts.vision_layout import Tensors, VisionLayout, side


class Gemma3Layout(VisionLayout):
    """The whole picture as one square."""

    title = "SigLIP of Gemma 3"
    projector = gguf.VisionProjectorType.GEMMA3
    prefix = "vision_tower.vision_model."
    own = ("<start_of_image>", "<end_of_image>")
    around = ("\n\n", "\n\n")

    def check(self) -> None:
        """Raise for a processor that takes crops besides the whole picture."""
        self.refuse_unless(
            not self.setting("do_pan_and_scan"), "its processor takes crops of pictures", "do_pan_and_scan false"
        )

    def tensors(self) -> Tensors:
        """Yield the encoder and the projector, whose norm gets the 1 that Gemma adds."""
        yield from self.encoder(self.core.model.vision_tower, ("head.",))
        projector = self.core.model.multi_modal_projector
        yield "mm.input_projection.weight", projector.mm_input_projection_weight
        yield "mm.soft_emb_norm.weight", projector.mm_soft_emb_norm.weight.float() + 1

    def image_size(self) -> int:
        """Return the edge of the encoder's pictures."""
        return side(self.vision.image_size)

    def facts(self, writer: gguf.GGUFWriter) -> None:
        """Write over how many patches, on each side, tokens are averaged."""
        patches = self.image_size() // side(self.vision.patch_size)
        writer.add_vision_projector_scale_factor(patches // round(self.config.mm_tokens_per_image**0.5))

    def notes(self) -> list[str]:
        """Return that pictures are padded, and that no crops are taken."""
        return ["llama.cpp pads pictures to a square, where transformers stretches them: give it square pictures"]
