"""Layers that compute image tokens: the region and those of any SPEC; what can't be one, in words; earlier files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.artifacts import LayerScores, Region, Scores, read_document, write_document
from striate.config import TrainSection
from striate.errors import SpecError, StriateError
from striate.models.visual_token_skipping.visual_compute import VisualCompute, read_visual_compute
from striate.training.image_layers import by_number, most_computing, visual_compute

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
    """A run hands it the layers by number; who trains without a run has no scores either."""
    with pytest.raises(SpecError) as caught:
        computing(REGION, "scores:block-influence:25%")
    assert "train.image_also 'scores:block-influence:25%' needs scores, which training does not read" in str(
        caught.value
    )
    assert "striate select --set select.region=scores:block-influence:25%" in str(caught.value)


BY_SCORES = "scores:block-influence:2"


def scores_of(values: tuple[float, ...]) -> Scores:
    entry = LayerScores(scorer="block-influence", values=values, low=values, high=values, samples=1)
    return Scores(num_layers=len(values), samples=1, scorers=(entry,))


def numbered(spec: str, values: tuple[float, ...], old_to_new: dict[int, int] | None = None) -> str:
    return by_number(
        TrainSection(image_tokens="region", image_also=spec), REGION, scores_of(values), old_to_new
    ).image_also


def test_layers_that_scores_choose_become_numbers_outside_the_region() -> None:
    values = (0.1, 9.0, 0.2, 0.0, 5.0, 4.0)
    assert numbered("bottom:2", values) == "bottom:2"
    # Of the three highest one trains anyway.
    assert numbered("scores:block-influence:3", values) == "ids:4,5"
    assert computing(REGION, "ids:4,5").layers == (1, 3, 4, 5)
    # Layers 0 and 4 are gone: what was 5 is 3.
    assert numbered("scores:block-influence:3", values, {1: 0, 2: 1, 3: 2, 5: 3}) == "ids:3"


@pytest.mark.parametrize(
    ("spec", "values", "left", "says"),
    [
        (BY_SCORES, (0, 2, 0, 2, 0, 0), None, f"train.image_also '{BY_SCORES}' has no effect: the region has"),
        ("scores:block-influence:100%", (0,) * 6, None, "and the region are all 6 layers together"),
        (BY_SCORES, (0, 0, 0, 0, 2, 2), {0: 0, 1: 1, 2: 2, 3: 3}, "chooses layers 4, 5 outside the region, and all of"),
        ("scores:token-swap:2", (0,) * 6, None, "token-swap"),
    ],
)
def test_layers_that_scores_choose_in_vain_are_refused_by_the_name_of_their_spec(
    spec: str, values: tuple[float, ...], left: dict[int, int] | None, says: str
) -> None:
    with pytest.raises(StriateError) as caught:
        numbered(spec, tuple(map(float, values)), left)
    assert says in str(caught.value)


@given(st.sets(st.integers(0, 11)), st.integers(0, 12))
def test_as_many_layers_are_forecast_as_scores_can_choose_at_most(inside: set[int], also: int) -> None:
    region = Region(layers=tuple(sorted(inside)), num_layers=12, spec="x")
    found = most_computing(region, TrainSection(image_tokens="region"), also)
    assert found is not None
    assert inside <= set(found.layers)
    assert len(found.layers) == min(12, len(inside) + also)
    assert most_computing(region, TrainSection(), also) is None
