"""Rows of text and image tokens: which keys their runs see, and how rows are taken and put back."""

from __future__ import annotations

import itertools

import pytest
import torch

from striate.training.packing.traced_attention import attend
from striate.training.visual_token_skipping.row_gather import moved, put
from striate.training.visual_token_skipping.token_layout import ImageRows


def batch_of(rows: list[str]) -> torch.Tensor:
    """Return which tokens are image tokens: `i` in rows of letters."""
    return torch.tensor([[letter == "i" for letter in row] for row in rows])


@pytest.mark.parametrize(
    ("rows", "lengths"),
    [
        (["ttiitt", "ttiitt"], None),
        (["iitttt", "tttttt"], None),
        (["tiittt", "tttiit", "ittiti"], None),
        (["tiitttiitttitit"], [5, 6, 4]),
    ],
)
def test_runs_of_text_see_what_they_may(rows: list[str], lengths: list[int] | None) -> None:
    """The attention of all runs in one call, with random keys, is causal attention of the samples apart."""
    image = batch_of(rows)
    found = ImageRows.of(image, torch.device("cpu"), lengths)
    assert found is not None
    ends = [0, *itertools.accumulate(lengths or [image.shape[1]] * len(rows))]
    total = image.numel()
    sample = torch.tensor([sum(place >= end for end in ends[1:]) for place in range(total)])
    seen = (sample[:, None] == sample) & (torch.arange(total)[:, None] >= torch.arange(total))
    query, key, value = torch.randn(3, 1, 2, total, 8, dtype=torch.double).unbind(0)
    scores = (query @ key.transpose(2, 3) / 8**0.5).masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) @ value)[:, :, found.text].transpose(1, 2)
    how = {"key_ends": found.key_ends, "key_longest": found.key_longest}
    query, key, value = query[:, :, found.text], key[:, :, found.keys], value[:, :, found.keys]
    torch.testing.assert_close(attend(query, key, value, None, found.ends, found.longest, **how), expected)


def test_rows_move_and_come_back() -> None:
    """Values and gradients of rows taken, some twice or not at all, and of rows put back."""
    values = torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    new = torch.randn(3, 3, dtype=torch.double, requires_grad=True)
    rows, back = torch.tensor([4, 0, 4, -1]), torch.tensor([[1, -1, -1, -1, 0, -1], [-1, -1, -1, -1, 2, -1]])
    assert torch.equal(moved(values, rows, back), torch.stack([values[4], values[0], values[4], 0 * values[0]]))
    places, inverse = torch.tensor([2, -1, 5]), torch.tensor([-1, -1, 0, -1, -1, 2])
    expected = values.detach().clone()
    expected[2], expected[5] = new[0].detach(), new[2].detach()
    assert torch.equal(put(values, new, places, inverse), expected)
    assert torch.autograd.gradcheck(lambda one: moved(one, rows, back), (values,))
    assert torch.autograd.gradcheck(lambda one, two: put(one, two, places, inverse), (values, new))
