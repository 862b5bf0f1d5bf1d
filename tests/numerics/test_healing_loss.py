"""The loss of healing against formulas written apart from it, in float64, and what a teacher's rows hold."""

from __future__ import annotations

import pytest
import torch

from striate.healing.healing_loss import answer_terms, state_distance
from striate.healing.teacher_pass import likeliest

N, V = 7, 23


def random_logits(seed: int, scale: float = 3.0) -> torch.Tensor:
    return torch.randn(N, V, generator=torch.Generator().manual_seed(seed)) * scale


LABELS = torch.tensor([3, -100, 0, 22, 5, -100, 9])


def exact_rows(logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A teacher's rows without the rounding to 16 bits, by sorting whole distributions."""
    probabilities = logits.double().softmax(1)
    ids = probabilities.argsort(dim=1, descending=True)[:, :k]
    top = probabilities.gather(1, ids)
    rest = (1 - top.sum(1, keepdim=True)).clamp(min=0)
    return torch.cat([top, rest], dim=1).log(), ids


@pytest.mark.parametrize("k", [1, 4, V - 1])
def test_divergence_is_that_of_two_distributions_over_k_tokens_and_the_rest(k: int) -> None:
    student, teacher = random_logits(0), random_logits(1)
    log_q, ids = exact_rows(teacher, k)
    cross, apart = answer_terms(student, LABELS, log_q.float(), ids)
    expected_cross = expected_apart = 0.0
    p_all = student.double().softmax(1)
    for n, label in enumerate(LABELS.tolist()):
        if label == -100:
            continue
        expected_cross -= float(p_all[n, label].log())
        p = [float(p_all[n, i]) for i in ids[n].tolist()]
        q = log_q[n].exp().tolist()
        for q_k, p_k in zip(q, [*p, 1 - sum(p)], strict=True):
            expected_apart += q_k * float(torch.tensor(q_k / p_k, dtype=torch.float64).log())
    assert float(cross) == pytest.approx(expected_cross, rel=1e-5)
    assert float(apart) == pytest.approx(expected_apart, rel=1e-4)


def test_all_tokens_give_the_whole_divergence() -> None:
    student, teacher = random_logits(0), random_logits(1)
    log_q, ids = exact_rows(teacher, V)
    log_q[:, -1] = -torch.inf
    _, apart = answer_terms(student, LABELS, log_q.float(), ids)
    counted = LABELS != -100
    whole = torch.nn.functional.kl_div(
        student[counted].double().log_softmax(1),
        teacher[counted].double().log_softmax(1),
        log_target=True,
        reduction="sum",
    )
    assert float(apart) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize("k", [4, V])
def test_a_student_that_is_the_teacher_has_nothing_to_learn_of_it(k: int) -> None:
    student = random_logits(2).requires_grad_()
    log_q, ids = exact_rows(student.detach(), k)
    _, apart = answer_terms(student, LABELS, log_q.float(), ids)
    apart.backward()
    assert float(apart.detach()) == pytest.approx(0, abs=1e-5)
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-6


@pytest.mark.parametrize("k", [4, V])
def test_gradients_are_those_of_the_formula(k: int) -> None:
    student, (log_q, ids) = random_logits(3).double().requires_grad_(), exact_rows(random_logits(1), k)

    def loss(logits: torch.Tensor) -> torch.Tensor:
        cross, apart = answer_terms(logits, LABELS, log_q, ids)
        return cross + 0.5 * apart

    assert torch.autograd.gradcheck(loss, (student,), atol=1e-4, rtol=1e-3)


def test_a_confident_student_still_learns_what_the_rest_holds() -> None:
    # All but one token together have a mass that float32 can't tell from 0 beside 1.
    student = torch.zeros(1, V)
    student[0, 0] = 40.0
    student.requires_grad_()
    log_q = torch.tensor([[0.5, 0.5]]).log()
    _, apart = answer_terms(student, torch.tensor([0]), log_q, torch.tensor([[0]]))
    apart.backward()
    rest = torch.tensor(40.0) - torch.tensor(float(V - 1)).log()
    assert float(apart.detach()) == pytest.approx(0.5 * float(rest) - float(torch.tensor(2.0).log()), rel=1e-4)
    assert student.grad is not None
    assert float(student.grad[0, 1:].sum()) == pytest.approx(-0.5, rel=1e-5)


def test_rows_of_a_teacher_are_its_likeliest_tokens_and_the_rest() -> None:
    logits = random_logits(4)
    log_q, ids = likeliest(logits, 5)
    exact, wanted = exact_rows(logits, 5)
    assert (log_q.dtype, ids.dtype) == (torch.float16, torch.int32)
    assert torch.equal(ids.long(), wanted)
    torch.testing.assert_close(log_q.double(), exact, atol=2e-3, rtol=1e-3)
    every, _ = likeliest(logits, 10 * V)
    assert every.shape == (N, V + 1)
    assert bool((every[:, -1] == -torch.inf).all())


def test_distance_of_states_is_relative_to_the_teachers() -> None:
    generator = torch.Generator().manual_seed(5)
    student, teacher = (torch.randn(N, 6, generator=generator) for _ in range(2))
    expected = sum(
        float((student[n] - teacher[n]).norm() ** 2 / teacher[n].norm() ** 2) for n in range(N) if LABELS[n] != -100
    )
    assert float(state_distance(student, teacher, LABELS)) == pytest.approx(expected, rel=1e-5)
    assert float(state_distance(10 * student, 10 * teacher, LABELS)) == pytest.approx(expected, rel=1e-5)
