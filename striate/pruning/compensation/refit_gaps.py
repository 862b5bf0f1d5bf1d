"""Refit of a whole model: gap by gap, each on the model as already compensated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from striate.artifacts import CompensatedGap
from striate.errors import ModelError
from striate.models.interventions.partial_pass import calls_until
from striate.models.interventions.residual_write import ResidualWrite, find_write
from striate.models.structure.decoder_stack import decoder_layers
from striate.models.visual_token_skipping.rule import skipping_of
from striate.pruning.compensation.gaps import Gap
from striate.pruning.compensation.refit import HeldOut, RefitSums, best_refit, wide_device
from striate.pruning.compensation.states import CalibrationStates, GapStates
from striate.pruning.compensation.token_choice import Tokens, kind_weights

_TINY = 1e-30


class RefitGaps:
    """Finds and changes the weights before each gap."""

    def __init__(self, states: CalibrationStates) -> None:
        """Keep the model and its calibration set."""
        self._states = states
        self._writes: dict[int, ResidualWrite] = {}

    def look(self, gaps: Sequence[Gap], inputs: Mapping[str, Any], tokens: Tokens) -> None:
        """Find the weight to change in the layer before each gap.

        Raises:
            ModelError: a layer has none, with the reason; nothing was changed.
        """
        core = self._states.core
        for before in (gap.before for gap in gaps if gap.before is not None):
            _check_sees_pictures(core, before)
            call = calls_until(core, inputs, [before], lambda call: call)[before]
            places_N = tokens.places.to(call.x_out.device)
            write = find_write(decoder_layers(core)[before], call, places_N, f"decoder layer {before}")
            _check_own(core, write, before)
            self._writes[before] = write

    def weights(self) -> list[Tensor]:
        """Return every weight that may change."""
        return [write.module.weight.data for write in self._writes.values()]

    def change(self, gaps: Sequence[Gap]) -> Iterator[CompensatedGap]:
        """Refit the weight before each gap, first to last, and yield what was done."""
        for gap in gaps:
            yield self._change(gap)

    def _change(self, gap: Gap) -> CompensatedGap:
        assert gap.before is not None
        write = self._writes[gap.before]
        weight_DF = write.weight
        sums = RefitSums(weight_DF.shape[1], weight_DF.shape[0], wide_device(weight_DF.device))
        held_out = self._gather(gap, write, sums)
        refit = best_refit(weight_DF, sums, held_out, write.gain)
        if not refit.before < float("inf"):
            raise ModelError(
                f"what leaves layer {gap.end} for calibration samples is not a number",
                "a model whose states are finite",
                "check the tuned model's weights, or compute in another machine.dtype",
            )
        name = f"{self._states.anatomy.layers_name}.{gap.before}.{write.name}.weight"
        if refit.weight is not None:
            weight_DF.copy_(refit.weight)
        return CompensatedGap(
            removed=gap.layers,
            layer=gap.before,
            changed=(name,) if refit.weight is not None else (),
            ridge=refit.ridge,
            before=refit.before,
            after=refit.after,
            note="" if refit.weight is not None else "no refit has less error on held-out tokens",
        )

    def _gather(self, gap: Gap, write: ResidualWrite, sums: RefitSums) -> HeldOut:
        """Add all tokens that are fitted to to `sums`; return the others."""
        seen: dict[str, Tensor] = {}
        held_out: list[HeldOut] = []
        counts = self._states.counts

        def watch(module: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen["inputs"] = args[0].flatten(0, -2)
            seen["outputs"] = output.flatten(0, -2)

        def work(batch: GapStates) -> None:
            device, tokens = seen["inputs"].device, batch.tokens
            places_N = tokens.places.to(device)
            inputs_NF, written_ND = seen["inputs"][places_N], seen["outputs"][places_N].float() * write.gain
            lacking_ND = (batch.wanted - batch.given).to(device)
            sizes_N = (written_ND + lacking_ND).square().sum(-1).clamp_min(_TINY).cpu().double()
            held_N, fitted_N = tokens.held_out.to(device), ~tokens.held_out.to(device)
            judging_N = (kind_weights(tokens.kinds, counts[1]) / sizes_N)[tokens.held_out]
            fitting_N = (kind_weights(tokens.kinds, counts[0]) / sizes_N)[~tokens.held_out]
            held_out.append(HeldOut(inputs_NF[held_N].cpu(), lacking_ND[held_N].cpu(), judging_N))
            sums.add(inputs_NF[fitted_N], lacking_ND[fitted_N], fitting_N)

        handle = write.module.register_forward_hook(watch)
        try:
            self._states.each(gap, work, f"prune: refit of layer {gap.before}")
        finally:
            handle.remove()
        return HeldOut.joined(held_out)


def _check_sees_pictures(core: torch.nn.Module, layer: int) -> None:
    """Raise where image tokens skip the layer: its MLP can't stand in for what they lack."""
    rule = skipping_of(core)
    if rule is not None and layer in rule.compute.skipped:
        raise ModelError(
            f"decoder layer {layer} can't be compensated for the layers behind it: image tokens skip it",
            f"gaps behind layers that compute image tokens: {', '.join(map(str, rule.compute.layers))}",
            "set prune.compensate to none, and heal instead",
        )


def _check_own(core: torch.nn.Module, write: ResidualWrite, layer: int) -> None:
    """Raise where the weight is used in another place too: changing it there was not asked for."""
    names = [name for name, tensor in core.named_parameters(remove_duplicate=False) if tensor is write.module.weight]
    if len(names) > 1:
        raise ModelError(
            f"decoder layer {layer} can't be compensated for the layers behind it: {names[0]} is also {names[1]}",
            "a weight that one layer uses alone",
            "set prune.compensate to none, and heal instead",
        )
