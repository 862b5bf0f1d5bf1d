"""What leaves each gap in the whole model, recorded once, and in the cut model, pass by pass."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from striate.models.interventions.layer_replay import LayerCall
from striate.models.interventions.partial_pass import calls_until, layers_skipped
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import Anatomy
from striate.progress import Progress
from striate.pruning.compensation.gaps import Gap
from striate.pruning.compensation.token_choice import KINDS, Tokens, choose_tokens
from striate.scorers.streaming.batches import Batches

Look = Callable[[Mapping[str, Any], Tokens], None]
Work = Callable[["GapStates"], None]


@dataclass(frozen=True)
class GapStates:
    """Chosen tokens of one batch at the end of a gap.

    Attributes:
        tokens: which tokens, on the CPU.
        wanted: what leaves the gap in the whole model, float32, shape (N, D).
        given: what leaves it in the cut model, float32, shape (N, D).
    """

    tokens: Tokens
    wanted: Tensor
    given: Tensor


@dataclass
class CalibrationStates:
    """A model, its calibration set, and what the whole model made of it.

    Attributes:
        core: the model in eval mode, without wrappers.
        anatomy: its parts.
        batches: the calibration set.
        removed: layers that are to go.
        progress: where to say how far it is.
        counts: tokens by (fitted to, held out) and kind, shape (2, 3).
    """

    core: Any
    anatomy: Anatomy
    batches: Batches[Any, dict[str, Tensor]]
    removed: Collection[int]
    progress: Progress
    counts: Tensor = field(default_factory=lambda: torch.zeros(2, len(KINDS), dtype=torch.long))
    _wanted: dict[int, list[Tensor]] = field(default_factory=dict)

    def record(self, gaps: Sequence[Gap], look: Look) -> None:
        """Keep what leaves every gap in the whole model, on the CPU in its dtype, and count tokens by kind.

        Args:
            gaps: those whose end is wanted.
            look: given the first batch's inputs and tokens, before anything else.
        """
        ends = [gap.end for gap in gaps]
        self._wanted = {end: [] for end in ends}

        def work(batch: dict[str, Tensor], tokens: Tokens) -> None:
            inputs = on_device(self.core, batch)
            if not self._wanted[ends[0]]:
                look(inputs, tokens)
            states = calls_until(self.core, inputs, ends, lambda call: _chosen(call, tokens).cpu())
            rows, width = batch["input_ids"].shape
            sizes = torch.bincount(tokens.places // width, minlength=rows).tolist()
            for end, chosen_ND in states.items():
                self._wanted[end] += chosen_ND.split(sizes)
            for number, held in enumerate((~tokens.held_out, tokens.held_out)):
                self.counts[number] += torch.bincount(tokens.kinds[held], minlength=len(KINDS))

        self._each("prune: states of the whole model", work)

    def each(self, gap: Gap, work: Work, label: str) -> None:
        """Call `work` with what leaves `gap` in the model without the removed layers, batch by batch."""

        def visit(batch: dict[str, Tensor], tokens: Tokens) -> None:
            first, rows = self._first, len(batch["input_ids"])
            with layers_skipped(self.core, self.removed):
                taken = calls_until(
                    self.core, on_device(self.core, batch), [gap.end], lambda call: _chosen(call, tokens).float()
                )
            given_ND = taken[gap.end]
            wanted_ND = torch.cat(self._wanted[gap.end][first : first + rows]).to(given_ND.device).float()
            work(GapStates(tokens, wanted_ND, given_ND))

        self._each(label, visit)

    def _each(self, label: str, work: Callable[[dict[str, Tensor], Tokens], None]) -> None:
        self._first = 0

        def numbered(batch: dict[str, Tensor]) -> bool:
            work(batch, choose_tokens(batch, self.anatomy, self._first, len(self.batches.samples)))
            self._first += len(batch["input_ids"])
            return True

        with self.progress.track(label, len(self.batches.samples)) as advance:
            self.batches.each(numbered, advance)


def _chosen(call: LayerCall, tokens: Tokens) -> Tensor:
    """Return what leaves a layer at the chosen tokens, shape (N, D)."""
    return call.x_out.flatten(0, 1)[tokens.places.to(call.x_out.device)]
