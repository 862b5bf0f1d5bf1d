"""Which positions belong to which sample, under padding on either side and in packed rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from striate.scorers.streaming.groups import MOST_TOKENS, TokenGroups
from striate.scorers.streaming.masks import TokenMasks, packed_samples


def rows(*values: list[int]) -> torch.Tensor:
    return torch.tensor(values)


@pytest.mark.parametrize(
    ("positions", "attended", "expected"),
    [
        ([[0, 1, 2, 3]], [[1, 1, 1, 1]], None),
        ([[0, 1, 0, 0], [0, 1, 2, 3]], [[1, 1, 0, 0], [1, 1, 1, 1]], None),
        ([[1, 1, 0, 1], [0, 1, 2, 3]], [[0, 0, 1, 1], [1, 1, 1, 1]], None),
        ([[0, 1, 0, 1]], [[1, 1, 1, 1]], [[0, 0, 1, 1]]),
        ([[0, 1, 0, 1, 0], [0, 0, 0, 1, 2]], [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]], [[0, 0, 1, 1, 1], [2, 3, 4, 4, 4]]),
        ([[1, 1, 0, 1, 0]], [[0, 0, 1, 1, 1]], [[0, 0, 0, 0, 1]]),
    ],
)
def test_positions_that_start_anew_start_a_sample(
    positions: list[list[int]], attended: list[list[int]], expected: list[list[int]] | None
) -> None:
    found = packed_samples(rows(*positions), rows(*attended).bool())
    assert (None if found is None else found.tolist()) == expected


def test_last_tokens_and_tokens_after_a_picture_are_those_of_each_sample() -> None:
    image = rows([0, 1, 0, 0, 0, 0, 1, 0]).bool()
    masks = TokenMasks(rows([1, 1, 1, 1, 1, 1, 1, 0]).bool(), image, sample=rows([0, 0, 0, 1, 1, 2, 2, 2]))
    assert masks.num_samples == 3
    assert masks.last.int().tolist() == [[0, 0, 1, 0, 1, 0, 1, 0]]
    assert masks.after_image.int().tolist() == [[0, 1, 1, 0, 0, 0, 1, 0]]
    groups = TokenGroups(masks)
    assert groups.last_index.tolist() == [2, 4, 6]
    assert {kind: groups.counts(kind).tolist() for kind in ("all", "image", "text", "last")} == {
        "all": [3, 2, 2],
        "image": [1, 0, 1],
        "text": [2, 2, 1],
        "last": [1, 1, 1],
    }


@given(st.integers(0, 1000), st.integers(1, 4), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_sums_by_sample_add_up_to_the_whole_however_rows_are_cut(seed: int, B: int, T: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    attended = torch.rand(B, T, generator=generator) < 0.8
    attended[:, 0] = True
    image = (torch.rand(B, T, generator=generator) < 0.4) & attended
    cuts = torch.rand(B, T, generator=generator) < 0.3
    cuts[:, 0] = True
    sample = cuts.flatten().cumsum(0).view(B, T) - 1
    values = torch.randn(1, B, T, generator=generator, dtype=torch.float64)
    whole, parts = TokenGroups(TokenMasks(attended, image)), TokenGroups(TokenMasks(attended, image, sample=sample))
    for kind in ("all", "image", "text"):
        one, other = (groups.totals(values, (kind,))[0, 0].sum() for groups in (whole, parts))
        assert one.item() == pytest.approx(other.item(), abs=1e-9)
        assert int(whole.counts(kind).sum()) == int(parts.counts(kind).sum())


@pytest.mark.parametrize("tokens", [1, MOST_TOKENS, MOST_TOKENS + 1, 576])
def test_chosen_tokens_are_few_distinct_and_evenly_spaced(tokens: int) -> None:
    image = torch.ones(1, tokens).bool()
    groups = TokenGroups(TokenMasks(image, image))
    chosen = groups.index[0][groups.chosen[0]]
    assert len(chosen) == min(tokens, MOST_TOKENS) == len(set(chosen.tolist()))
    gaps = chosen.diff()
    assert len(gaps) == 0 or int(gaps.max() - gaps.min()) <= 1
