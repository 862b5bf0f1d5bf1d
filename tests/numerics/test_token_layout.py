"""The layout of text and image tokens: which keys runs of text see, and how rows are taken and put back."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from striate.models.interventions.varlen_attention import varlen_attention_forward
from striate.models.visual_token_skipping.row_gather import gather_rows, put_rows
from striate.models.visual_token_skipping.token_layout import TokenLayout


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
    layout = TokenLayout.of(image, torch.device("cpu"), lengths)
    assert layout is not None
    runs = layout.runs
    assert runs is not None
    assert runs.keys is not None
    assert runs.varlen is not None
    ends = [0, *itertools.accumulate(lengths or [image.shape[1]] * len(rows))]
    total = image.numel()
    sample = torch.tensor([sum(place >= end for end in ends[1:]) for place in range(total)])
    seen = (sample[:, None] == sample) & (torch.arange(total)[:, None] >= torch.arange(total))
    query, key, value = torch.randn(3, 1, 2, total, 8, dtype=torch.double).unbind(0)
    scores = (query @ key.transpose(2, 3) / 8**0.5).masked_fill(~seen, -torch.inf)
    expected = (scores.softmax(-1) @ value)[:, :, runs.text[0]].transpose(1, 2)
    query, key, value = query[:, :, runs.text[0]], key[:, :, runs.keys[0]], value[:, :, runs.keys[0]]
    module: Any = None
    torch.testing.assert_close(varlen_attention_forward(module, query, key, value, None, **runs.varlen)[0], expected)


def test_the_grid_has_the_text_of_each_sample() -> None:
    layout = TokenLayout.of(batch_of(["tiittt", "tttttt"]), torch.device("cpu"))
    assert layout is not None
    assert layout.grid.text.tolist() == [[0, 3, 4, 5, -1, -1], [6, 7, 8, 9, 10, 11]]
    assert layout.grid.text_back.tolist() == [[0, -1, -1, 1, 2, 3, 6, 7, 8, 9, 10, 11]]
    assert layout.image[..., 0].sum(1).tolist() == [2, 0]
    assert TokenLayout.of(batch_of(["tt"]), torch.device("cpu")) is None


def test_many_runs_with_the_same_keys_go_by_a_mask() -> None:
    """Unless the row is packed: no mask keeps its samples apart."""
    image = batch_of(["tititititi"])
    whole, packed = (TokenLayout.of(image, torch.device("cpu"), lengths) for lengths in (None, [10]))
    assert whole is not None
    assert packed is not None
    assert whole.runs is None
    assert packed.runs is not None


def test_rows_move_and_come_back() -> None:
    """Values and gradients of rows taken, some twice or not at all, and of rows put back."""
    values = torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    new = torch.randn(3, 3, dtype=torch.double, requires_grad=True)
    rows, back = torch.tensor([4, 0, 4, -1]), torch.tensor([[1, -1, -1, -1, 0, -1], [-1, -1, -1, -1, 2, -1]])
    assert torch.equal(gather_rows(values, rows, back), torch.stack([values[4], values[0], values[4], 0 * values[0]]))
    places, inverse = torch.tensor([2, -1, 5]), torch.tensor([-1, -1, 0, -1, -1, 2])
    expected = values.detach().clone()
    expected[2], expected[5] = new[0].detach(), new[2].detach()
    assert torch.equal(put_rows(values, new, places, inverse), expected)
    assert torch.autograd.gradcheck(lambda one: gather_rows(one, rows, back), (values,))
    assert torch.autograd.gradcheck(lambda one, two: put_rows(one, two, places, inverse), (values, new))
