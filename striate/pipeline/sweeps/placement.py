"""Where runs of a sweep are done: so many at a time on each device of this machine, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

from striate.errors import StriateError

Work = Callable[..., Any]
Call = tuple[Any, ...]
"""Work, and its arguments."""
_CHECK_SECONDS = 1.0
# Read when PyTorch is imported: each process takes all cores otherwise, to compute and to compile.
_THREADS = ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")


class Placement(Protocol):
    """Places for runs; each call that is submitted takes one, until its future is done."""

    @property
    def free(self) -> int:
        """How many runs may begin."""

    def submit_all(self, calls: Sequence[Call]) -> list[Future[Any]]:
        """Begin the calls, at most as many as there are free places."""

    def close(self) -> None:
        """Begin nothing more, and wait for what runs."""


class OneByOne(ABC):
    """Places in which every call begins by itself."""

    @abstractmethod
    def submit(self, work: Work, *arguments: Any) -> Future[Any]:
        """Begin `work` in a free place."""

    def submit_all(self, calls: Sequence[Call]) -> list[Future[Any]]:
        """Begin the calls, at most as many as there are free places."""
        return [self.submit(*call) for call in calls]


class CountedPlaces:
    """So many places, of which those are taken whose runs are not done."""

    def __init__(self, places: int) -> None:
        """Take how many places there are."""
        self._places, self._running = places, list[Future[Any]]()

    @property
    def free(self) -> int:
        """How many runs may begin."""
        self._running = [future for future in self._running if not future.done()]
        return self._places - len(self._running)

    def take(self, future: Future[Any]) -> Future[Any]:
        """Return the future of a run, which takes a place until it is done."""
        self._running.append(future)
        return future


@dataclass
class _Place:
    """One place: a process that does one run after another, so that libraries are imported once.

    Attributes:
        device: what CUDA_VISIBLE_DEVICES is there; None leaves it as it is.
        pool: the process.
        future: of the run that it does.
    """

    device: str | None
    pool: ProcessPoolExecutor
    future: Future[Any] | None = None

    @property
    def is_free(self) -> bool:
        """Whether a run may begin here."""
        return self.future is None or self.future.done()


class LocalPlacement(OneByOne):
    """Places on the devices of this machine."""

    def __init__(self, devices: Sequence[str | None], per_device: int) -> None:
        """Make `per_device` places on each device; their processes start with their first run."""
        places = per_device * len(devices)
        self._cores = max(1, _cores() // places) if places > 1 else None
        # One on each device first, then a second one on each.
        self._places = [_Place(device, self._pool(device)) for _ in range(per_device) for device in devices]

    @property
    def free(self) -> int:
        """How many runs may begin."""
        return sum(place.is_free for place in self._places)

    def submit(self, work: Work, *arguments: Any) -> Future[Any]:
        """Begin `work` in a free place."""
        place = next(place for place in self._places if place.is_free)
        if place.future is not None and isinstance(place.future.exception(), BrokenProcessPool):
            # Its process was killed, for want of memory perhaps: others go on in a new one.
            place.pool = self._pool(place.device)
        place.future = place.pool.submit(work, *arguments)
        return place.future

    def close(self) -> None:
        """Begin nothing more, and wait for what runs."""
        for place in self._places:
            place.pool.shutdown(wait=True, cancel_futures=True)

    def _pool(self, device: str | None) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(
            1, mp_context=context, initializer=_begin, initargs=(device, self._cores, os.getpid())
        )


def first_ended(futures: Sequence[Future[Any]], seconds: float) -> set[Future[Any]]:
    """Return the futures that are done, after waiting for one of them up to `seconds`."""
    return set(wait(futures, timeout=seconds, return_when="FIRST_COMPLETED").done)


def told(error: BaseException) -> str:
    """Return the error of a run in words."""
    if isinstance(error, BrokenProcessPool):
        return "its process was ended from outside, as it is where memory runs out"
    if isinstance(error, StriateError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def devices_here() -> list[str | None]:
    """Return the GPUs of this machine as CUDA_VISIBLE_DEVICES names them; one None where there is none."""
    import torch

    if not torch.cuda.is_available():
        return [None]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(named.split(",")) if named else [str(index) for index in range(torch.cuda.device_count())]


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _begin(device: str | None, cores: int | None, parent: int) -> None:
    """Take the device and a share of the cores; end with the process that began this one.

    It holds a run folder that others wait for.
    """
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    for threads in _THREADS if cores is not None else ():
        os.environ.setdefault(threads, str(cores))

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_CHECK_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
