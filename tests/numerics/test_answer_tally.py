"""The sums of validation, against a table of logits worked out by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from striate.training.batching.label_positions import ANSWERS, label_positions
from striate.training.loss import answer_tally


class Table(nn.Module):
    """A model whose likeliest next tokens are a table, each with the same probability."""

    def __init__(self, said_BT: Tensor, sureness: float) -> None:
        super().__init__()
        self.said_BT, self.sureness = said_BT, sureness

    def get_output_embeddings(self) -> None:
        return None

    def forward(self, input_ids: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.sureness * one_hot(self.said_BT, 10).float())


# Two answers, one of two tokens beside the start of the row; one; and a row without any.
LABELS = torch.tensor([[-100, 3, 4, -100, 5, 6, 2], [-100, -100, -100, -100, 7, 8, -100], [-100] * 7])
RIGHT = torch.tensor([[3, 4, 0, 5, 6, 2, 0], [0, 0, 0, 7, 8, 0, 0], [0] * 7])


@pytest.mark.parametrize(
    ("changed", "right"),
    [({}, 3), ({(0, 0): 9}, 2), ({(0, 4): 9, (0, 5): 9}, 2), ({(1, 4): 1, (0, 1): 1}, 1), ({(2, 3): 9}, 3)],
)
@pytest.mark.parametrize("multiple", [0, 1, 8])
def test_answers_are_right_as_a_whole(changed: dict[tuple[int, int], int], right: int, multiple: int) -> None:
    said = RIGHT.clone()
    for place, token in changed.items():
        said[place] = token
    given = {ANSWERS: label_positions(LABELS, multiple)} if multiple else {"labels": LABELS}
    total, tokens, matching, answers = answer_tally(Table(said, 3.0), {"input_ids": said, **given}).tolist()
    assert (tokens, matching, answers) == (7, right, 3)
    wrong = sum(int(LABELS[row, column + 1]) not in (-100, token) for (row, column), token in changed.items())
    whole = torch.tensor([3.0] + [0.0] * 9).logsumexp(0)
    assert total == pytest.approx(float(7 * whole - 3.0 * (7 - wrong)), rel=1e-5)


def test_no_answer_counts_nothing() -> None:
    said = torch.zeros(1, 4, dtype=torch.long)
    nothing = {ANSWERS: torch.zeros(3, 0, dtype=torch.long)}
    assert answer_tally(Table(said, 1.0), {"input_ids": said, **nothing}).tolist() == [0, 0, 0, 0]
