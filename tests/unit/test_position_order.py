"""Layers that go by place alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.config.layer_settings import BY_PLACE
from striate.pruning.position_order import ORDERS, evenly_spaced, topmost


def test_top_and_spaced_of_twelve_layers() -> None:
    outside = (1, 2, 3, 5, 6, 7, 9, 10, 11, 13, 14, 15)
    assert topmost(outside, 3) == (13, 14, 15)
    assert evenly_spaced(outside, 3) == (3, 9, 14)
    assert evenly_spaced(outside, 0) == topmost(outside, 0) == ()


def test_the_config_knows_each_by_its_name() -> None:
    assert set(BY_PLACE) == set(ORDERS)


@pytest.mark.parametrize("name", BY_PLACE)
@given(layers=st.sets(st.integers(0, 100), min_size=1), data=st.data())
def test_as_many_different_ones_as_asked(name: str, layers: set[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(0, len(layers)))
    chosen = ORDERS[name](sorted(layers), count)
    assert len(set(chosen)) == count
    assert set(chosen) <= layers
