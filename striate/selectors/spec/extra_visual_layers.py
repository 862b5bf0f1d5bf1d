"""Layers outside the region that compute image tokens too (`train.image_also`)."""

from __future__ import annotations

from striate.artifacts import Region
from striate.errors import SpecError
from striate.selectors.no_layers import NONE
from striate.selectors.spec.grammar import Spec, parse_spec, resolve


def parse_image_also(spec: str) -> Spec:
    """Return the SPEC of `train.image_also`, read and checked as far as that goes without a model.

    Raises:
        SpecError: unknown strategy, an argument that it can't take, or one that needs scores.
    """
    read = parse_spec(spec)
    if read.needs_scores:
        raise SpecError(
            f"train.image_also {spec!r} needs scores, which training does not read",
            "a region that needs none, such as uniform:50% or bottom:8, or the path of a region.json",
            f"choose it first with `striate select --set select.region={spec}`, and give its region.json",
        )
    return read


def with_image_layers(region: Region, spec: str) -> Region:
    """Return `region` with those layers of `spec` that are outside it as its `image_layers`.

    Raises:
        SpecError: the SPEC can't be read, names no layer outside the region, or leaves no layer out.
        ArtifactError: the region file that it names can't be read.
    """
    read = parse_image_also(spec)
    also = resolve(spec, region.num_layers)
    more = tuple(layer for layer in also.layers if layer not in region)
    if read.selector != NONE.name and not more:
        raise SpecError(
            f"train.image_also {spec!r} has no effect: the region has its layers, and computes image tokens anyway",
            "layers outside the region",
            "leave train.image_also out, or name more layers",
        )
    if more and len(region) + len(more) == region.num_layers:
        raise SpecError(
            f"train.image_also {spec!r} and the region are all {region.num_layers} layers together",
            "layers that leave some out",
            "use train.image_tokens=all to compute image tokens in every layer",
        )
    return region.model_copy(update={"image_layers": more})
