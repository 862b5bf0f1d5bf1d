"""What healing minimises at answer positions: cross entropy, divergence from the teacher, distance of hidden states."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from striate.data.label_mask import IGNORED


def answer_terms(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, log_probs_NL: torch.Tensor, ids_NK: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the cross entropy and the divergence from the teacher, in nats, each summed over answer positions.

    With the teacher's distribution q over its K likeliest tokens and one bucket for the rest of the vocabulary, and the
    student's p over the same, KL(q || p) = sum_k q_k (log q_k - log p_k). Both terms come from one softmax: the rest's
    mass is a logarithm of a sum of exponentials over all but the K tokens, and the normaliser follows from it.

    Args:
        logits_NV: of the student, float32.
        labels_N: -100 where a position counts for nothing.
        log_probs_NL: of the teacher, L = K + 1, the rest last; made to sum to 1 again, as 16 bits round them.
        ids_NK: its likeliest tokens.
    """
    counts_N = labels_N != IGNORED
    top_NK = logits_NV.gather(1, ids_NK)
    teacher_NL = log_probs_NL.float().log_softmax(1)
    if ids_NK.shape[1] == logits_NV.shape[1]:
        # Nothing is left for the rest, whose logarithm has no gradient.
        student_NL, teacher_NL = top_NK, teacher_NL[:, :-1]
    else:
        rest_N1 = logits_NV.scatter(1, ids_NK, -torch.inf).logsumexp(1, keepdim=True)
        student_NL = torch.cat([top_NK, rest_N1], dim=1)
    whole_N = student_NL.logsumexp(1)
    label_N = logits_NV.gather(1, labels_N.clamp(min=0).unsqueeze(1)).squeeze(1)
    cross_N = whole_N - label_N
    gap_NL = teacher_NL - (student_NL - whole_N.unsqueeze(1))
    probable = teacher_NL > -torch.inf
    apart_N = (teacher_NL.exp() * gap_NL.masked_fill(~probable, 0)).sum(1)
    return cross_N.where(counts_N, 0).sum(), apart_N.where(counts_N, 0).sum()


def answer_cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return the cross entropy alone, in nats, summed over answer positions: as `training.loss.answer_loss` has it."""
    return cross_entropy(logits_NV, labels_N, reduction="sum", ignore_index=IGNORED)


def state_distance(states_ND: torch.Tensor, teacher_ND: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Return |h - t|^2 / |t|^2, summed over answer positions: h the student's last hidden states, t the teacher's.

    Both after the final norm, as Hugging Face's `hidden_states[-1]`. The distance of arXiv 2604.24380, relative to the
    teacher's length, so that a weight means the same for every model.
    """
    counts_N = labels_N != IGNORED
    teacher_ND = teacher_ND.float()
    apart_N = (states_ND.float() - teacher_ND).square().sum(1)
    return (apart_N / teacher_ND.square().sum(1).clamp(min=1e-12)).where(counts_N, 0).sum()
