"""Gradient norm and Fisher information by decoder layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from striate.models.interventions.selected_logits import answer_logits
from striate.models.io.placing import on_device
from striate.models.io.weights.layer_weights import layer_parameters
from striate.models.structure.anatomy import Anatomy
from striate.progress import Advance
from striate.scorers.base import LayerScorer
from striate.scorers.runners.runner import Calibration, Runner
from striate.scorers.statistics.measurement import Measurement
from striate.scorers.statistics.sums import PartSums
from striate.scorers.streaming.answers import Answers, answer_losses
from striate.scorers.streaming.batches import Batches


def gradient_norm(squares_BL: Tensor) -> Tensor:
    """Return each sample's gradient norm by layer from its square, shape (B, L).

    The score of layer i is the mean over samples s of `|dL_s / dW_i|`, the Euclidean norm over all of the layer's
    parameters; L_s is the mean cross entropy of the sample's answer tokens, in nats. Paper: surgical fine-tuning
    (arXiv 2210.11466) chooses layers by it in its Auto-RGN, which divides by the weights' norm besides.
    """
    return squares_BL.sqrt()


def fisher(squares_BL: Tensor) -> Tensor:
    """Return each sample's share of the empirical Fisher information by layer, shape (B, L).

    The score of layer i is `mean over samples s of sum over parameters w of (dL_s / dw)^2`: the trace of the diagonal
    empirical Fisher information, as in elastic weight consolidation (arXiv 1612.00796), of the answers' mean loss.
    """
    return squares_BL


GRADIENT_NORM = LayerScorer(
    name="gradient-norm",
    title="Gradient norm",
    summary="the mean over samples of the norm of the answer loss's gradient in the layer's weights",
    function=gradient_norm,
    paper="https://arxiv.org/abs/2210.11466",
    source="gradients",
    limits="it says where weights pull now, not where training ends; it follows the scale of weights and norms",
)

FISHER = LayerScorer(
    name="fisher",
    title="Fisher information",
    summary="the mean over samples of the squared gradients of the answer loss, summed over the layer's weights",
    function=fisher,
    paper="https://arxiv.org/abs/1612.00796",
    source="gradients",
    limits="empirical: with the data's answers, not the model's own; a few samples with large losses can rule it",
)


def run_gradients(
    core: Any,
    anatomy: Anatomy,
    batches: Batches[Any, dict[str, Tensor]],
    scorers: Sequence[LayerScorer],
    advance: Advance,
) -> dict[str, dict[str, PartSums]]:
    """Return the sums of each scorer whose source is `gradients`, by name and part, samples in their order.

    One forward and backward pass a sample, whatever the batch size, since per-sample norms are asked for. A gradient is
    squared and freed as soon as it is whole, so memory beyond the pass is that of the largest parameter. Frozen and
    adapted models work: it is the plain weights of the layers whose gradients are taken, adapters being in place. The
    model's own `requires_grad` and `.grad` are put back, and no hook stays, whatever happens.

    Raises:
        ModelError: quantised weights.
    """
    parameters = layer_parameters(core, anatomy)
    single = Batches(batches.samples, batches.collate, 1)
    with torch.enable_grad(), _Squares(core, parameters) as squares:
        rows = single.each(lambda batch: squares.of(core, batch), advance)
    squares_NL = torch.stack([row for row, _ in rows])
    counts = np.array([count for _, count in rows], dtype=np.float64)
    return {
        scorer.name: {"answer": PartSums(scorer.function(squares_NL).numpy().astype(np.float64), counts)}
        for scorer in scorers
    }


def _measure(calibration: Calibration, scorers: Sequence[LayerScorer], advance: Advance) -> list[Measurement]:
    sums = run_gradients(calibration.core, calibration.anatomy, calibration.batches, scorers, advance)
    return [Measurement(scorer, sums[scorer.name]) for scorer in scorers]


GRADIENTS = Runner(("gradients",), _measure, "analyze: gradients")


class _Squares:
    """A context in which exactly the layers' parameters take gradients, each squared and freed when it is whole."""

    def __init__(self, core: nn.Module, layers: Sequence[Mapping[str, nn.Parameter]]) -> None:
        self._core = core
        self._layers = layers
        self._sums: list[Tensor] = []
        self._former: list[tuple[nn.Parameter, bool, Tensor | None]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> _Squares:
        self._former = [(parameter, parameter.requires_grad, parameter.grad) for parameter in self._core.parameters()]
        try:
            self._open()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter, required, gradient in self._former:
            parameter.grad = None
            parameter.requires_grad_(required)
            parameter.grad = gradient

    def of(self, core: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, float]:
        """Return one sample's squared gradient norm by layer (L,), and 1, or 0 if it has no answer."""
        answers = Answers.of(batch["labels"]).to(core.get_input_embeddings().weight.device)  # type: ignore[operator]
        self._sums = [torch.zeros((), device=answers.rows.device) for _ in self._layers]
        if not len(answers.rows):
            return torch.stack(self._sums).cpu(), 0.0
        logits_NV = answer_logits(core, on_device(core, batch), answers.rows, answers.columns)
        answer_losses(logits_NV, answers.targets).mean().backward()
        return torch.stack(self._sums).cpu(), 1.0

    def _open(self) -> None:
        for parameter, _, _ in self._former:
            parameter.grad = None
            parameter.requires_grad_(False)
        for layer, parameters in enumerate(self._layers):
            for parameter in parameters.values():
                parameter.requires_grad_(True)
                self._handles.append(parameter.register_post_accumulate_grad_hook(partial(self._take, layer)))

    def _take(self, layer: int, parameter: Tensor) -> None:
        if parameter.grad is not None:
            norm = torch.linalg.vector_norm(parameter.grad, dtype=torch.float32)
            self._sums[layer] = self._sums[layer] + norm.square()
            parameter.grad = None
