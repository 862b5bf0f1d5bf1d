"""Layers outside the region that compute image tokens: from any SPEC, and what can't be one, in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.artifacts import Region, write_document
from striate.errors import SpecError
from striate.selectors.spec.extra_visual_layers import parse_image_also, with_image_layers
from striate.selectors.spec.grammar import resolve

REGION = Region(layers=(1, 3), num_layers=6, spec="ids:1,3")


@given(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11), min_size=1))
def test_the_layers_outside_the_region_are_added(inside: set[int], also: set[int]) -> None:
    region = Region(layers=tuple(sorted(inside)), num_layers=12, spec="x")
    spec = f"ids:{','.join(map(str, sorted(also)))}"
    more = also - inside
    if not more or len(inside | also) == 12:
        with pytest.raises(SpecError, match=r"train\.image_also"):
            with_image_layers(region, spec)
        return
    found = with_image_layers(region, spec)
    assert found.layers == region.layers
    assert set(found.computing) == inside | also
    assert set(found.passing) == set(range(12)) - inside - also


def test_none_takes_back_what_a_region_file_had(tmp_path: Path) -> None:
    region = REGION.model_copy(update={"image_layers": (0,)})
    assert with_image_layers(region, "none").image_layers == ()
    write_document(tmp_path / "region.json", Region(layers=(2, 3), num_layers=6, spec="ids:2,3"))
    assert with_image_layers(REGION, str(tmp_path / "region.json")).image_layers == (2,)
    assert with_image_layers(resolve("none", 6), "uniform:50%").image_layers == (0, 2, 4)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("ids:3", "train.image_also 'ids:3' has no effect: the region has its layers"),
        ("bottom:0", "region 'bottom:0'"),
        ("all", "train.image_also 'all' and the region are all 6 layers together"),
        ("ids:9", "layer 9"),
        ("unifrom:2", "did you mean"),
    ],
)
def test_a_spec_that_can_not_be_one_says_why(spec: str, says: str) -> None:
    with pytest.raises(SpecError) as caught:
        with_image_layers(REGION, spec)
    assert says in str(caught.value)


def test_scores_are_not_read_in_training() -> None:
    with pytest.raises(SpecError) as caught:
        parse_image_also("scores:block-influence:25%")
    assert "train.image_also 'scores:block-influence:25%' needs scores, which training does not read" in str(
        caught.value
    )
    assert "striate select --set select.region=scores:block-influence:25%" in str(caught.value)
