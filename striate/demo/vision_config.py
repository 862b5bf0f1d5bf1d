"""Config of the built-in vision encoder, without torch: auto classes know it before any model is imported."""

from __future__ import annotations

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

# (kernel, stride, expansion, output channels, repeats) of each stage of Lite0
LITE0_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class EfficientNetLiteConfig(PreTrainedConfig):
    """Sizes of an EfficientNet-Lite vision encoder; `hidden_size` follows from the last two maps."""

    model_type = "efficientnet_lite"
    base_config_key = "vision_config"

    def __init__(
        self,
        image_size: int = 224,
        stem_channels: int = 32,
        stages: Any = LITE0_STAGES,
        norm_eps: float = 1e-3,
        initializer_range: float = 0.02,
        **kwargs: Any,
    ) -> None:
        """Keep the sizes; `image_size` in pixels is a multiple of 32."""
        self.image_size = image_size
        self.patch_size = 32
        self.num_channels = 3
        self.stem_channels = stem_channels
        self.stages = [list(stage) for stage in stages]
        self.norm_eps = norm_eps
        self.initializer_range = initializer_range
        fine, coarse = self.stages[-3][3], self.stages[-1][3]
        self.hidden_size = 4 * fine + coarse
        kwargs.pop("hidden_size", None)
        kwargs.pop("patch_size", None)
        kwargs.pop("num_channels", None)
        super().__init__(**kwargs)

    @property
    def num_image_tokens(self) -> int:
        """Image tokens of one picture: one for each 32 x 32 patch."""
        return (self.image_size // self.patch_size) ** 2
