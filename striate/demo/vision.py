"""The built-in LVLM's vision encoder: EfficientNet-Lite0 as a Hugging Face model with one feature map.

Tan and Le, "EfficientNet" (https://arxiv.org/abs/1905.11946), in the "lite" form: no squeeze-and-excitation, ReLU6.
The last maps at strides 16 and 32 are joined: each 2 x 2 patch of the finer map is folded into channels.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from striate.demo.vision_config import EfficientNetLiteConfig


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": output size = ceil(input size / stride), odd padding at the end."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Return the convolution of `input` (B, C, H, W)."""
        height, width = (self._padding(size, axis) for axis, size in enumerate(input.shape[-2:]))
        padded = functional.pad(input, (width // 2, width - width // 2, height // 2, height - height // 2))
        return functional.conv2d(padded, self.weight, None, self.stride, 0, 1, self.groups)

    def _padding(self, size: int, axis: int) -> int:
        stride, kernel = self.stride[axis], self.kernel_size[axis]
        return max((-(-size // stride) - 1) * stride + kernel - size, 0)


class FixedNorm(nn.Module):
    """Batch normalisation with the statistics of pretraining: the same in training and evaluation."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the maps, scaled and shifted by channel."""
        mean, variance = cast(torch.Tensor, self.running_mean), cast(torch.Tensor, self.running_var)
        return functional.batch_norm(maps_BCHW, mean, variance, self.weight, self.bias, False, 0.0, self.eps)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to the input where shapes allow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int, eps: float) -> None:
        super().__init__()
        inner = inputs * expansion
        self.residual = stride == 1 and inputs == outputs
        if expansion > 1:
            self.expand = SameConv2d(inputs, inner, 1, bias=False)
            self.expand_norm = FixedNorm(inner, eps)
        self.depthwise = SameConv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self.depthwise_norm = FixedNorm(inner, eps)
        self.project = SameConv2d(inner, outputs, 1, bias=False)
        self.project_norm = FixedNorm(outputs, eps)
        self.expands = expansion > 1

    def forward(self, maps_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the block's output maps."""
        inner = functional.relu6(self.expand_norm(self.expand(maps_BCHW))) if self.expands else maps_BCHW
        inner = functional.relu6(self.depthwise_norm(self.depthwise(inner)))
        output = self.project_norm(self.project(inner))
        return maps_BCHW + output if self.residual else output


class EfficientNetLiteModel(PreTrainedModel):
    """EfficientNet-Lite0 up to its last block; `hidden_states` holds one (B, tokens, channels) feature map."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "vision_encoder"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ("InvertedResidual",)
    # It has no attention: any implementation that the whole LVLM is asked for will do.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv2d(config.num_channels, config.stem_channels, 3, 2, bias=False)
        self.stem_norm = FixedNorm(config.stem_channels, config.norm_eps)
        self.blocks = nn.ModuleList()
        channels = config.stem_channels
        for kernel, stride, expansion, outputs, repeats in config.stages:
            for repeat in range(repeats):
                block = InvertedResidual(
                    channels, outputs, kernel, stride if repeat == 0 else 1, expansion, config.norm_eps
                )
                self.blocks.append(block)
                channels = outputs
        self.fine_block = sum(stage[4] for stage in config.stages[:-2]) - 1
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, SameConv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, FixedNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
            nn.init.zeros_(cast(torch.Tensor, module.running_mean))
            nn.init.ones_(cast(torch.Tensor, module.running_var))

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutput:
        """Return the features of `pixel_values` (B, 3, H, W) as (B, H/32 * W/32, hidden_size) tokens, row by row."""
        # Depthwise convolutions run twice as fast on a CPU with channels last.
        maps = pixel_values.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        maps = functional.relu6(self.stem_norm(self.stem(maps)))
        fine = maps
        for index, block in enumerate(self.blocks):
            maps = block(maps)
            if index == self.fine_block:
                fine = maps
        joined = torch.cat([maps, functional.pixel_unshuffle(fine, 2)], dim=1)
        tokens = cast(torch.FloatTensor, joined.flatten(2).transpose(1, 2).contiguous())
        return BaseModelOutput(last_hidden_state=tokens, hidden_states=(tokens,))


def convert_imagenet_weights(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the public package's ImageNet weights under this model's names; the classifier head is left out."""
    places = {"_conv_stem": "stem", "_bn0": "stem_norm"}
    inner = {"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"}
    converted = {}
    for name, tensor in original.items():
        parts = name.split(".")
        if parts[-1] == "num_batches_tracked" or parts[0] in ("_conv_head", "_bn1", "_fc"):
            continue
        if parts[0] in places:
            converted[f"{places[parts[0]]}.{parts[-1]}"] = tensor
            continue
        norms = {"_bn0": "expand_norm", "_bn1": "depthwise_norm", "_bn2": "project_norm"}
        converted[f"blocks.{parts[1]}.{(inner | norms)[parts[2]]}.{parts[-1]}"] = tensor
    return converted
