"""What trains beside the decoder layers of a region: the projector, and layers of the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from striate.artifacts import Region
from striate.errors import TrainingError

Part = Literal["frozen", "lora", "full"]
PARTS = ("frozen", "lora", "full")


@dataclass(frozen=True)
class Beside:
    """What trains beside a region.

    Attributes:
        projector: `frozen`, `full`, or `lora`: adapters on its linear layers.
        vision: the same of the vision encoder's layers.
        vision_region: which of these, counted as `find_vision_stack` does; None for all.
    """

    projector: Part = "full"
    vision: Part = "frozen"
    vision_region: Region | None = None

    def __post_init__(self) -> None:
        """Refuse other words.

        Raises:
            TrainingError: one that is no part of `PARTS`.
        """
        values: dict[str, Any] = {"projector": self.projector, "vision": self.vision}
        for name, value in values.items():
            if value not in PARTS:
                raise TrainingError(f"{name}={value!r}", ", ".join(PARTS), f"for example {name}={PARTS[1]!r}")

    @property
    def before_decoder(self) -> bool:
        """Whether something trains that comes before the first decoder layer: gradients then cross all of them."""
        return (self.projector, self.vision) != ("frozen", "frozen")

    @property
    def words(self) -> str:
        """What `projector` and `vision` are, for errors."""
        return f"projector {self.projector}" + (f" and vision {self.vision}" if self.vision != "frozen" else "")
