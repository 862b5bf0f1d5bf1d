"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: pictures in their own proportions, four neighbouring tokens joined, two layers."""

from __future__ import annotations

import gguf

from striate.models.convert.gguf.layouts.vision_layout import Tensors, VisionLayout, side

_WINDOW = 112
_MERGED = 2


class Qwen2VLLayout(VisionLayout):
    """A ViT with rotary positions; queries, keys and values apart."""

    title = "ViT of Qwen2-VL"
    projector = gguf.VisionProjectorType.QWEN2VL
    prefix = "visual."
    own = ("<|vision_start|>", "<|vision_end|>")

    def check(self) -> None:
        """Raise for other numbers of joined tokens and frames than llama.cpp's graph has."""
        merged, frames = self.vision.spatial_merge_size, self.vision.temporal_patch_size
        self.refuse_unless(merged == _MERGED, f"it joins {merged} x {merged} tokens", "spatial_merge_size 2")
        self.refuse_unless(frames == _MERGED, f"its patches span {frames} frames", "temporal_patch_size 2")

    @property
    def depth(self) -> int:
        """How many blocks the encoder has."""
        return int(self.vision.depth)

    @property
    def width(self) -> int:
        """Channels of the encoder."""
        return int(self.vision.embed_dim)

    @property
    def feed_forward(self) -> int:
        """Channels inside the encoder's MLPs."""
        return int(self.vision.embed_dim * self.vision.mlp_ratio)

    def tensors(self) -> Tensors:
        """Yield the encoder, its patches' two frames apart, and the projector."""
        visual = self.core.model.visual
        patches = visual.patch_embed.proj
        for frame, name in enumerate(("v.patch_embd.weight", "v.patch_embd.weight.1")):
            yield name, patches.weight[:, :, frame]
        if patches.bias is not None:
            yield "v.patch_embd.bias", patches.bias
        yield from self.blocks(visual)
        yield from self.merger(visual.merger)

    def blocks(self, visual: object) -> Tensors:
        """Yield the blocks of the encoder."""
        for name, tensor in self.encoder(visual, ("patch_embed.", "merger.")):
            if ".attn.qkv." not in name:
                yield name, tensor
                continue
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                yield name.replace(".attn.qkv.", f".attn.{letter}."), part

    def merger(self, merger: object) -> Tensors:
        """Yield the projector."""
        yield from _named(merger, {"ln_q.weight": "v.post_ln.weight", "ln_q.bias": "v.post_ln.bias", "mlp.": "mm."})

    def image_size(self) -> int:
        """Return the edge of a picture of middle size: pictures keep their own."""
        return 20 * _MERGED * side(self.vision.patch_size)

    def facts(self, writer: gguf.GGUFWriter) -> None:
        """Write how many tokens are joined."""
        writer.add_vision_spatial_merge_size(self.vision.spatial_merge_size)

    def notes(self) -> list[str]:
        """Return how llama.cpp bounds the size of pictures."""
        return [
            "llama.cpp makes 8 to 4,096 image tokens of a picture, whatever the processor says, and pads where"
            " transformers stretches; --image-min-tokens and --image-max-tokens set the bounds"
        ]


class Qwen25VLLayout(Qwen2VLLayout):
    """As Qwen2-VL, with attention in windows but for every n-th block."""

    title = "ViT of Qwen2.5-VL"
    projector = gguf.VisionProjectorType.QWEN25VL

    def check(self) -> None:
        """Raise for windows of another size, and for blocks of whole attention that do not come at every n-th place."""
        super().check()
        window = self.vision.window_size
        self.refuse_unless(window == _WINDOW, f"its windows have {window} px", f"window_size {_WINDOW}")
        whole, step = list(self.vision.fullatt_block_indexes), self._step
        expected = list(range(step - 1, self.depth, step))
        self.refuse_unless(whole == expected, f"blocks {whole} see all patches", "every n-th block, such as 7, 15, 23")

    @property
    def _step(self) -> int:
        return int(min(self.vision.fullatt_block_indexes, default=self.depth)) + 1

    @property
    def width(self) -> int:
        """Channels of the encoder."""
        return int(self.vision.hidden_size)

    @property
    def feed_forward(self) -> int:
        """Channels inside the encoder's MLPs."""
        return int(self.vision.intermediate_size)

    def facts(self, writer: gguf.GGUFWriter) -> None:
        """Write how many tokens are joined, and which blocks see all patches."""
        super().facts(writer)
        writer.add_vision_n_wa_pattern(self._step)


class Qwen3VLLayout(Qwen2VLLayout):
    """Learnt positions besides the rotary ones; features of some blocks go to the language model's first layers."""

    title = "ViT of Qwen3-VL"
    projector = gguf.VisionProjectorType.QWEN3VL

    @property
    def width(self) -> int:
        """Channels of the encoder."""
        return int(self.vision.hidden_size)

    @property
    def feed_forward(self) -> int:
        """Channels inside the encoder's MLPs."""
        return int(self.vision.intermediate_size)

    def blocks(self, visual: object) -> Tensors:
        """Yield the blocks, and what makes features of some of them, numbered by block."""
        yield from self.encoder(visual, ("patch_embed.", "merger.", "deepstack_merger_list."))
        for index, merger in zip(self.vision.deepstack_visual_indexes, visual.deepstack_merger_list, strict=True):  # type: ignore[attr-defined]
            for name, tensor in merger.named_parameters():
                yield f"v.deepstack.{index}.{name.removeprefix('linear_')}", tensor

    def merger(self, merger: object) -> Tensors:
        """Yield the projector."""
        yield from _named(merger, {"norm.": "v.post_ln.", "linear_fc1.": "mm.0.", "linear_fc2.": "mm.2."})

    def facts(self, writer: gguf.GGUFWriter) -> None:
        """Write how many tokens are joined, and of which blocks features are taken."""
        super().facts(writer)
        taken = set(self.vision.deepstack_visual_indexes)
        writer.add_vision_is_deepstack_layers([index in taken for index in range(self.depth)])


def _named(module: object, names: dict[str, str]) -> Tensors:
    """Yield the module's tensors with the beginnings of their names changed as `names` says."""
    for name, tensor in module.named_parameters():  # type: ignore[attr-defined]
        start = next(start for start in names if name.startswith(start))
        yield names[start] + name.removeprefix(start), tensor
