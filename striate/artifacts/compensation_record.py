"""What compensation changed so that kept layers stand in for removed ones (within `prune.json`)."""

from typing import Literal

from striate.artifacts.base import Document

CompensationMethod = Literal["refit", "scale"]


class CompensatedGap(Document):
    """One run of removed layers, and what was done about it. Layers are those of the model before pruning.

    Attributes:
        removed: the layers that went.
        layer: the kept layer before them; None where they begin with layer 0.
        changed: parameters whose values changed.
        ridge: of a refit, as a share of the mean squared input of the weight.
        scale: by how much the state was too short; writes behind the gap are divided by it.
        before: error on held-out tokens of the pruned model without the change; 0 is none.
        after: the same with it.
        note: why nothing was changed, if so.
    """

    removed: tuple[int, ...]
    layer: int | None
    changed: tuple[str, ...] = ()
    ridge: float | None = None
    scale: float | None = None
    before: float | None = None
    after: float | None = None
    note: str = ""

    @property
    def relative(self) -> float | None:
        """The share of the error that is left."""
        return self.after / self.before if self.before and self.after is not None else None

    @property
    def told(self) -> str:
        """What was done, in a few words; empty where nothing changed."""
        if not self.changed or self.before is None or self.after is None:
            return ""
        done = f"layer {self.layer} for" if self.scale is None else f"divided by {self.scale:.3g} behind"
        error = f"held-out error {self.before:.3g} → {self.after:.3g}"
        return f"{done} {', '.join(map(str, self.removed))} ({error})"


class Compensation(Document):
    """All gaps of a pruned model, first to last.

    Attributes:
        method: `refit` or `scale`.
        samples: calibration samples.
        tokens: how many tokens of each kind it was fitted to.
        held_out: how many of each kind it was judged by.
        gaps: each run of removed layers.
        seconds: what it took.
    """

    method: CompensationMethod
    samples: int
    tokens: dict[str, int]
    held_out: dict[str, int]
    gaps: tuple[CompensatedGap, ...]
    seconds: float = 0.0

    @property
    def told(self) -> str:
        """One sentence: the method, how many samples it read, and each gap that changed something."""
        gaps = "; ".join(gap.told for gap in self.gaps if gap.told) or "no layer changed"
        return f"Compensated by {self.method} on {self.samples} samples: {gaps}."
