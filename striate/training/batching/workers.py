"""How processes that read samples start."""

from __future__ import annotations

import multiprocessing
from typing import Any


def worker_options(workers: int) -> dict[str, Any]:
    """Return the options of a DataLoader with so many worker processes: forked, where the platform can.

    A process that was spawned, as a sweep's are, would spawn its own; each tensor of the training set is then sent
    through a file of its own, and 20,000 samples are more files than a process may have open.
    """
    forks = workers > 0 and "fork" in multiprocessing.get_all_start_methods()
    return {"num_workers": workers, "multiprocessing_context": "fork" if forks else None}
