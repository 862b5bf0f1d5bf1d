"""Scale: what layers behind a gap write is made as small as the state that they add to.

Without the layers of a gap the state x that leaves it is shorter than the whole model's x*, by alpha = |x*| / |x|, and
what later layers add weighs too much. Every later write (attention's and the MLP's last linear module) is divided by
alpha. Behind norms, which read only a state's direction, that is exactly the same as multiplying all that was written
before the gap, embeddings and picture features among it, by alpha; but no embedding changes, which an LM head may
share. alpha is the geometric mean over tokens, as a few of them have states many times longer than all others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from striate.artifacts import CompensatedGap
from striate.models.interventions.write_scale import check_direction_only, scale_parameters, writing_linears
from striate.pruning.compensation.gaps import Gap
from striate.pruning.compensation.states import CalibrationStates, GapStates
from striate.pruning.compensation.token_choice import Tokens, kind_weights

_TINY = 1e-30
# Places whose logits prove that only directions are read.
_PROVED = 64


class ScaleGaps:
    """Finds and scales what is written behind each gap."""

    def __init__(self, states: CalibrationStates) -> None:
        """Keep the model and its calibration set."""
        self._states = states
        self._writes: dict[int, dict[str, nn.Module]] = {}

    def look(self, gaps: Sequence[Gap], inputs: Mapping[str, Any], tokens: Tokens) -> None:
        """Find what is written behind the first gap.

        Raises:
            ModelError: something reads the state's length, or writes in another way; nothing was changed.
        """
        states, first = self._states, gaps[0].end
        later = [layer for layer in range(first + 1, states.anatomy.num_layers) if layer not in states.removed]
        self._writes = writing_linears(states.core, inputs, later)
        places_N = tokens.places[:_PROVED].to(inputs["input_ids"].device)
        modules = [module for parts in self._writes.values() for module in parts.values()]
        check_direction_only(states.core, states.anatomy, inputs, places_N, states.removed, first, modules)

    def weights(self) -> list[Tensor]:
        """Return every tensor that may change."""
        modules = [module for parts in self._writes.values() for module in parts.values()]
        return [parameter.data for parameter in scale_parameters(modules)]

    def change(self, gaps: Sequence[Gap]) -> Iterator[CompensatedGap]:
        """Scale what is written behind each gap, first to last, and yield what was done."""
        alpha = 1.0
        for gap, following in zip(gaps, [*gaps[1:], None], strict=True):
            end = following.end if following else self._states.anatomy.num_layers
            layers = [layer for layer in self._writes if gap.end < layer < end]
            if not layers:
                note = "there is no kept layer behind it, and the last norm reads no length"
                yield CompensatedGap(removed=gap.layers, layer=gap.before, note=note)
                continue
            found, before, after = self._measure(gap, alpha)
            better = after < before
            alpha = found if better else alpha
            self._divide(layers, alpha)
            yield CompensatedGap(
                removed=gap.layers,
                layer=gap.before,
                changed=self._names(layers) if alpha != 1 else (),
                scale=alpha,
                before=before,
                after=after if better else before,
                note="" if better else "no other scale has less error on held-out tokens",
            )

    def _measure(self, gap: Gap, former: float) -> tuple[float, float, float]:
        """Return alpha, and the mean square of log |x*| / |alpha x| on held-out tokens with `former` and with it.

        What was written before the gap may be divided by `former` already; alpha is that of the weights as they were.
        """
        logs, kinds, held = [], [], []

        def work(batch: GapStates) -> None:
            wanted_N, given_N = (state.norm(dim=-1).clamp_min(_TINY) for state in (batch.wanted, batch.given))
            logs.append((wanted_N.log() - given_N.log()).cpu().double())
            kinds.append(batch.tokens.kinds)
            held.append(batch.tokens.held_out)

        self._states.each(gap, work, f"prune: scale behind layer {gap.before}")
        logs_N, kinds_N, held_N = torch.cat(logs), torch.cat(kinds), torch.cat(held)
        fitting_N = kind_weights(kinds_N, self._states.counts[0]) * ~held_N
        judging_N = kind_weights(kinds_N, self._states.counts[1]) * held_N
        log_alpha = float((logs_N * fitting_N).sum())
        before, after = (
            float(((logs_N - shift).square() * judging_N).sum()) for shift in (math.log(former), log_alpha)
        )
        return math.exp(log_alpha), before, after

    def _divide(self, layers: Sequence[int], alpha: float) -> None:
        for layer in layers:
            for parameter in scale_parameters(list(self._writes[layer].values())):
                parameter.data.copy_(parameter.data.float() / alpha)

    def _names(self, layers: Sequence[int]) -> tuple[str, ...]:
        return tuple(
            f"{self._states.anatomy.layers_name}.{layer}.{name}.{kind}"
            for layer in layers
            for name, module in self._writes[layer].items()
            for kind, _ in module.named_parameters(recurse=False)
        )
