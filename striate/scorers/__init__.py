"""Layer-importance measures, higher = keep: one a file, and the runners of their sources; both listed here."""

from collections.abc import Sequence

from striate.progress import Progress
from striate.registry import Registry
from striate.scorers.angular_distance import ANGULAR_DISTANCE
from striate.scorers.base import LayerScorer
from striate.scorers.block_influence import BLOCK_INFLUENCE
from striate.scorers.image_attention import IMAGE_ATTENTION
from striate.scorers.knock_out import KNOCK_OUT, KNOCK_OUT_ACCURACY
from striate.scorers.layer_contribution import LAYER_CONTRIBUTION_IMAGE, LAYER_CONTRIBUTION_TEXT
from striate.scorers.linear_cka import LINEAR_CKA
from striate.scorers.matrix_entropy import MATRIX_ENTROPY
from striate.scorers.modality_block_influence import MODALITY_BLOCK_INFLUENCE
from striate.scorers.relative_magnitude import RELATIVE_MAGNITUDE
from striate.scorers.runners.altered import ALTERED_LAYERS
from striate.scorers.runners.gradients import FISHER, GRADIENT_NORM, GRADIENTS
from striate.scorers.runners.one_pass import ONE_PASS
from striate.scorers.runners.pairs import PICTURE_PAIRS
from striate.scorers.runners.runner import Calibration, Runner
from striate.scorers.runners.weights import WEIGHTS
from striate.scorers.spectrum import SPECTRUM_SNR
from striate.scorers.statistics.measurement import Measurement
from striate.scorers.token_swap import TOKEN_SWAP, TOKEN_SWAP_FLIPS, TOKEN_SWAP_ONWARD
from striate.scorers.weight_change import ANGULAR_CHANGE, PARAMETER_CHANGE

SCORERS: Registry[LayerScorer] = Registry(
    "scorer",
    [
        BLOCK_INFLUENCE,
        MODALITY_BLOCK_INFLUENCE,
        ANGULAR_DISTANCE,
        RELATIVE_MAGNITUDE,
        LINEAR_CKA,
        MATRIX_ENTROPY,
        IMAGE_ATTENTION,
        LAYER_CONTRIBUTION_IMAGE,
        LAYER_CONTRIBUTION_TEXT,
        KNOCK_OUT,
        KNOCK_OUT_ACCURACY,
        TOKEN_SWAP,
        TOKEN_SWAP_FLIPS,
        TOKEN_SWAP_ONWARD,
        GRADIENT_NORM,
        FISHER,
        SPECTRUM_SNR,
        PARAMETER_CHANGE,
        ANGULAR_CHANGE,
    ],
)

RUNNERS = (ONE_PASS, ALTERED_LAYERS, GRADIENTS, WEIGHTS, PICTURE_PAIRS)
"""In the order in which they run."""


def runner_of(scorer: LayerScorer) -> Runner:
    """Return the runner that serves the scorer's source."""
    return next(runner for runner in RUNNERS if scorer.source in runner.sources)


def measure(calibration: Calibration, scorers: Sequence[LayerScorer], progress: Progress) -> list[Measurement]:
    """Return what every scorer's runner measured, in the order of `scorers`; those of one runner share its work."""
    measured: dict[str, Measurement] = {}
    for runner in RUNNERS:
        served = [scorer for scorer in scorers if runner_of(scorer) is runner]
        if served:
            measured |= {entry.scorer.name: entry for entry in runner.measure(calibration, served, progress)}
    return [measured[scorer.name] for scorer in scorers]
