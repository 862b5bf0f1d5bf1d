"""Layers that compute image tokens: the region and those of any SPEC; what can't be one, in words; earlier files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.artifacts import Region, read_document, write_document
from striate.config import TrainSection
from striate.errors import SpecError
from striate.models.visual_token_skipping.visual_compute import VisualCompute, read_visual_compute
from striate.selectors.spec.required_scores import parse_unscored
from striate.training.approximations import visual_compute

REGION = Region(layers=(1, 3), num_layers=6, spec="ids:1,3")


def computing(region: Region, spec: str = "none") -> VisualCompute:
    found = visual_compute(region, TrainSection(image_tokens="region", image_also=spec))
    assert found is not None
    return found


@given(st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11), min_size=1))
def test_the_layers_outside_the_region_are_added(inside: set[int], also: set[int]) -> None:
    region = Region(layers=tuple(sorted(inside)), num_layers=12, spec="x")
    spec = f"ids:{','.join(map(str, sorted(also)))}"
    more = also - inside
    if not more or len(inside | also) == 12:
        with pytest.raises(SpecError, match=r"train\.image_also"):
            computing(region, spec)
        return
    found = computing(region, spec)
    assert set(found.layers) == inside | also
    assert set(found.skipped) == set(range(12)) - inside - also


def test_layers_of_a_region_file_and_beside_a_region_of_none(tmp_path: Path) -> None:
    write_document(tmp_path / "region.json", Region(layers=(2, 3), num_layers=6, spec="ids:2,3"))
    assert computing(REGION).layers == (1, 3)
    assert computing(REGION, str(tmp_path / "region.json")).layers == (1, 2, 3)
    assert computing(Region(layers=(), num_layers=6, spec="none"), "uniform:50%").layers == (0, 2, 4)
    assert visual_compute(REGION, TrainSection()) is None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, None),
        ({"image_tokens": "all", "image_layers": [], "image_shift": False}, None),
        ({"image_tokens": "region"}, ((1, 3), False)),
        ({"image_tokens": "region", "image_layers": [0], "image_shift": True}, ((0, 1, 3), True)),
    ],
)
def test_a_region_file_of_an_earlier_version_is_read(
    tmp_path: Path, rule: dict[str, object], expected: tuple[tuple[int, ...], bool] | None
) -> None:
    stored = {"version": 1, "layers": [1, 3], "num_layers": 6, "spec": "ids:1,3", **rule}
    (tmp_path / "region.json").write_text(json.dumps(stored))
    assert read_document(tmp_path / "region.json", Region) == REGION
    found = read_visual_compute(tmp_path)
    assert (found and (found.layers, found.shift)) == expected
    write_document(tmp_path / "visual_compute.json", VisualCompute(layers=(5,), num_layers=6))
    found = read_visual_compute(tmp_path)
    assert found is not None
    assert found.layers == (5,)


def test_layers_that_can_not_be_are_refused() -> None:
    with pytest.raises(SpecError, match=r"computed in layers \[2, 6\] of 6"):
        VisualCompute(layers=(2, 6), num_layers=6)


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
        computing(REGION, spec)
    assert says in str(caught.value)


def test_scores_are_not_read_in_training() -> None:
    with pytest.raises(SpecError) as caught:
        parse_unscored("train.image_also", "scores:block-influence:25%")
    assert "train.image_also 'scores:block-influence:25%' needs scores, which training does not read" in str(
        caught.value
    )
    assert "striate select --set select.region=scores:block-influence:25%" in str(caught.value)
