"""Where a batch's answers are: found while its labels are on the CPU, so that nothing waits for the accelerator."""

from __future__ import annotations

import torch

from striate.data.label_mask import IGNORED

ANSWERS = "answers"


def label_positions(labels_BT: torch.Tensor, multiple: int = 1) -> torch.Tensor:
    """Return (3, N): sample, place, and the answer token that the position at this place must predict.

    Args:
        labels_BT: -100 where there is no answer.
        multiple: of N; what is added to reach it has label -100 and counts for nothing. Fewer different N let more
            work be compiled or recorded once.
    """
    rows_N, columns_N = (labels_BT[:, 1:] != IGNORED).nonzero(as_tuple=True)
    found = torch.stack([rows_N, columns_N, labels_BT[rows_N, columns_N + 1]])
    rest = -found.shape[1] % multiple
    filled = torch.tensor([[0], [0], [IGNORED]], device=found.device).expand(3, rest)
    return torch.cat([found, filled], dim=1) if rest else found
