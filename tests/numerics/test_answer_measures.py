from __future__ import annotations

import numpy as np
import pytest
import torch

from striate.scorers.streaming import answers
from striate.scorers.streaming.answers import Answers, answer_hits, answer_losses, divergence


def log_softmax(logits: torch.Tensor) -> np.ndarray:
    values = logits.double().numpy()
    return values - np.log(np.exp(values).sum(-1, keepdims=True))


@pytest.mark.parametrize("at_once", [1, 100, 1 << 25])
def test_losses_and_divergence_equal_numpy_in_chunks_of_any_size(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "_LOGITS_AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    plain, altered = (torch.randn(7, 33, generator=generator) * 3 for _ in range(2))
    targets = torch.randint(33, (7,), generator=generator)
    p, q = log_softmax(plain), log_softmax(altered)
    np.testing.assert_allclose(answer_losses(plain, targets), -p[np.arange(7), targets.numpy()], atol=1e-5)
    np.testing.assert_allclose(divergence(plain, altered), (np.exp(p) * (p - q)).sum(-1), atol=1e-5)
    np.testing.assert_allclose(answer_hits(plain, targets), p.argmax(-1) == targets.numpy())


def test_closed_forms() -> None:
    flat, sure = torch.zeros(1, 4), torch.tensor([[100.0, 0, 0, 0]])
    assert divergence(flat, flat).item() == 0
    assert divergence(sure, flat).item() == pytest.approx(np.log(4))
    assert answer_losses(flat, torch.tensor([2])).item() == pytest.approx(np.log(4))


def test_positions_predict_the_next_token() -> None:
    labels = torch.tensor([[-100, -100, 5, 6], [-100, 7, -100, -100], [-100, -100, -100, -100]])
    found = Answers.of(labels)
    assert found.rows.tolist() == [0, 0, 1]
    assert found.columns.tolist() == [1, 2, 0]
    assert found.targets.tolist() == [5, 6, 7]
    assert found.counts.tolist() == [2, 1, 0]
    assert found.per_sample(torch.tensor([1.0, 2.0, 4.0])).tolist() == [3, 4, 0]


def test_no_answers_make_empty_measures() -> None:
    nothing = torch.zeros(0, 9)
    assert answer_losses(nothing, torch.zeros(0, dtype=torch.long)).shape == (0,)
    assert divergence(nothing, nothing).shape == (0,)
