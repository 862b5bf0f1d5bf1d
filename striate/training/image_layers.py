"""Which layers compute image tokens by a run's settings (`train.image_tokens`, `train.image_also`), without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from striate.artifacts import Region, Scores
from striate.config import TrainSection
from striate.errors import SpecError
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.selectors.no_layers import NONE
from striate.selectors.spec.grammar import parse_spec, resolve
from striate.selectors.spec.required_scores import IMAGE_ALSO, parse_unscored

NAME = f"train.{IMAGE_ALSO}"


def visual_compute(region: Region, config: TrainSection) -> VisualCompute | None:
    """Return the layers that compute image tokens by `image_tokens` and `image_also`; None where all do.

    Raises:
        SpecError: `image_also` can't be read, needs scores, names no layer outside the region, or leaves no layer out.
        ArtifactError: the region file that it names can't be read.
    """
    if config.image_tokens == "all":
        return None
    spec, depth = parse_unscored(NAME, config.image_also), region.num_layers
    named = resolve(spec, depth).layers
    if spec.selector != NONE.name:
        check_beside(spec.text, named, region)
    return VisualCompute(layers=tuple(sorted({*region.layers, *named})), num_layers=depth)


def layers_beside(region: Region, config: TrainSection) -> dict[str, list[int]]:
    """Return what layers outside the region do by `config`, by name: those that compute image tokens, if there are any.

    A training that goes on from a checkpoint must have the same.
    """
    compute = visual_compute(region, config)
    also = [layer for layer in compute.layers if layer not in region] if compute else []
    return {"image_layers": also} if also else {}


def needs_scores(config: TrainSection) -> bool:
    """Return whether layers that compute image tokens follow from scores."""
    return parse_spec(config.image_also).needs_scores


def by_number(
    config: TrainSection, region: Region, scores: Scores, old_to_new: Mapping[int, int] | None = None
) -> TrainSection:
    """Return the settings with `image_also` as `ids:`, where it follows from scores.

    Args:
        config: the settings.
        region: that trains, in the layer numbers of the scores.
        scores: of the whole model.
        old_to_new: new numbers of the layers that are left, where the model that is tuned lost some.

    Raises:
        SpecError: the SPEC does not fit the scores, names no layer outside the region, or leaves no layer out; or of
            the layers that it chooses outside the region none is left.
        ArtifactError: a scorer that it names was not run.
    """
    if not needs_scores(config):
        return config
    spec = config.image_also
    also = [layer for layer in resolve(spec, scores.num_layers, scores).layers if layer not in region]
    check_beside(spec, also, region)
    kept = also if old_to_new is None else [old_to_new[layer] for layer in also if layer in old_to_new]
    if not kept:
        told = ", ".join(map(str, also))
        raise SpecError(
            f"{NAME} {spec!r} chooses layers {told} outside the region, and all of them are removed before training",
            "layers of which some are left",
            "name more layers, remove fewer, or use prune.when=after",
        )
    return config.model_copy(update={IMAGE_ALSO: f"ids:{','.join(map(str, kept))}"})


def most_computing(region: Region, config: TrainSection, also: int) -> VisualCompute | None:
    """Return as many layers as compute image tokens at most, where `also` are named beside the region; None for all.

    For forecasts, before scores choose which they are.
    """
    if config.image_tokens == "all":
        return None
    return VisualCompute(layers=tuple(sorted((*region.layers, *region.outside[:also]))), num_layers=region.num_layers)


def check_beside(spec: str, named: Sequence[int], region: Region) -> None:
    """Return if the layers that the SPEC of `image_also` names change something beside the region, and leave some out.

    Raises:
        SpecError: they don't.
    """
    outside, depth = set(region.outside), region.num_layers
    if not outside.intersection(named):
        raise SpecError(
            f"{NAME} {spec!r} has no effect: the region has its layers, and computes image tokens anyway",
            "layers outside the region",
            f"leave {NAME} out, or name more layers",
        )
    if outside.issubset(named):
        raise SpecError(
            f"{NAME} {spec!r} and the region are all {depth} layers together",
            "layers that leave some out",
            "use train.image_tokens=all to compute image tokens in every layer",
        )
