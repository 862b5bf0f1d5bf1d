"""The modes of `mode_quality.py`: what each changes against exact training, and the settings that they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

LORA = {"r": 64, "alpha": 128, "dropout": 0.05}
SETTINGS: dict[str, Any] = {
    "lr": 5e-4,
    "projector_lr": 1e-4,
    "batch_size": 64,
    "max_length": 1024,
    "packing": True,
    "lora": LORA,
}
ALIGNING: dict[str, Any] = {**SETTINGS, "method": "full", "projector_lr": 1e-3}
# With uniform:25% of 30 layers these are half of them.
BETWEEN = "ids:5,9,13,17,20,24,28"
EXACT = "exact"


@dataclass(frozen=True)
class Mode:
    """What a mode changes: the region, and settings of `train`; those of aligning the projector before, if it does."""

    says: str
    region: str = "uniform:25%"
    train: dict[str, Any] = field(default_factory=dict)
    align: dict[str, Any] | None = None


def _region_only(says: str, region: str = "uniform:25%", **train: Any) -> Mode:
    """Return a mode with image tokens computed in the region alone."""
    return Mode(says, region, {"image_tokens": "region", "image_shift": False, "image_check": None, **train})


MODES = {
    EXACT: Mode("uniform:25%, as it is"),
    "all": Mode("all layers train", region="all"),
    "fp8": Mode("frozen matrices in 8-bit floats", train={"frozen": "fp8"}),
    "region": _region_only("image tokens in the region alone"),
    "training": _region_only("the same while training, whole layers afterwards", image_tokens="region while training"),
    "first-4": _region_only("the region and the first 4 layers", image_also="bottom:4"),
    "first-8": _region_only("the region and the first 8 layers", image_also="bottom:8"),
    "half": _region_only("a region of half the layers, image tokens in it alone", region="uniform:50%"),
    "half-shift": _region_only("the same with a constant step", region="uniform:50%", image_shift=True),
    "projector": _region_only("image tokens in the region alone, projector at 1e-3", projector_lr=1e-3),
    "shift": _region_only("image tokens in the region alone, a constant step elsewhere", image_shift=True),
    "shift-8": _region_only("the same, and the first 8 layers compute them", image_shift=True, image_also="bottom:8"),
    "shift-whole": _region_only("a constant step, and one step in ten whole", image_shift=True, image_whole_every=10),
    "also-half": _region_only("the same, and one layer more in every gap", image_shift=True, image_also=BETWEEN),
    "aligned-exact": Mode("exact, the projector aligned again before", align={}),
    "aligned-shift": Mode(
        "a constant step elsewhere, the projector aligned again with all layers before",
        train={"image_tokens": "region", "image_check": None},
        align={},
    ),
    "aligned-same": Mode(
        "the same, the projector aligned again with image tokens in the same layers",
        train={"image_tokens": "region", "image_check": None},
        align={"image_tokens": "region", "image_also": "uniform:25%", "image_check": None},
    ),
    "longer": _region_only("image tokens in the region alone, twice the epochs", epochs=2),
    "fast": _region_only("region alone, frozen matrices in 8-bit floats", frozen="fp8"),
    "fast-shift": _region_only("the same with a constant step", frozen="fp8", image_shift=True),
}
