"""Processes that read samples in a process that was spawned."""

from __future__ import annotations

import multiprocessing
import resource
from concurrent.futures import ProcessPoolExecutor

SAMPLES = 300


def _read_all(files: int) -> int:
    """Return how many of `SAMPLES` tensors a worker process handed over, where so many files may be open."""
    import torch
    from torch.utils.data import DataLoader

    from striate.training.batching.workers import worker_options

    resource.setrlimit(resource.RLIMIT_NOFILE, (files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    samples = [torch.full((4,), index) for index in range(SAMPLES)]
    return sum(len(batch) for batch in DataLoader(samples, batch_size=32, **worker_options(1)))  # type: ignore[arg-type]


def test_a_spawned_process_hands_no_sample_to_its_workers_by_a_file_each() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(_read_all, SAMPLES // 2).result(timeout=120) == SAMPLES


def test_without_workers_nothing_starts() -> None:
    from striate.training.batching.workers import worker_options

    assert worker_options(0) == {"num_workers": 0, "multiprocessing_context": None}
