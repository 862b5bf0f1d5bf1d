"""Work that is recorded once and repeated on the same memory: CUDA graphs, and their stand-in for tests on a CPU."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

Outputs = Sequence[torch.Tensor | None]
Work = Callable[[], Outputs]


class Recording(Protocol):
    """One piece of recorded work."""

    outputs: Outputs

    def replay(self) -> None:
        """Do the work again on what its inputs hold now; its results go where they were before."""


class Recorder(Protocol):
    """Makes recordings that are replayed in the order in which they were made, or some of them left out."""

    def recording(self) -> contextlib.AbstractContextManager[None]:
        """Return a block in which work is tried out and recorded."""

    def record(self, work: Work) -> Recording:
        """Return the recording of `work`, whose memory later recordings may use where it is no longer referred to."""


class CudaRecorder:
    """Records CUDA graphs that share one pool of memory."""

    def __init__(self) -> None:
        """Make the pool, and the stream on which work is recorded."""
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Lead work to a stream of its own; gradients are computed in this thread."""
        here = torch.cuda.current_stream()
        torch.cuda.synchronize()
        # What is collected while work is recorded would free memory in the middle of it.
        gc.collect()
        torch.cuda.empty_cache()
        collects = gc.isenabled()
        gc.disable()
        self._stream.wait_stream(here)
        try:
            with torch.cuda.stream(self._stream), torch.autograd.set_multithreading_enabled(False):
                yield
        finally:
            here.wait_stream(self._stream)
            torch.cuda.synchronize()
            if collects:
                gc.enable()

    def record(self, work: Work) -> Recording:
        """Return a graph of the kernels that `work` launches; they run at its first replay, not now."""
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as those that pin the next batches' memory, go on meanwhile.
        graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        try:
            outputs = work()
        except BaseException:
            # The reason is the first error, not that of a recording broken off.
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
        return _Graph(graph, outputs)


class _Graph:
    """A CUDA graph and where it leaves its results."""

    def __init__(self, graph: torch.cuda.CUDAGraph, outputs: Outputs) -> None:
        """Keep both."""
        self.outputs: Outputs = [None if output is None else output.detach() for output in outputs]
        self.replay: Callable[[], None] = graph.replay


class RerunRecorder:
    """Runs work again in place of replaying it, and copies its results to where they were: the same bookkeeping."""

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Change nothing."""
        yield

    def record(self, work: Work) -> Recording:
        """Return work that is run again."""
        return _Rerun(work)


class _Rerun:
    """Work that is run again."""

    def __init__(self, work: Work) -> None:
        """Run it once; a graph leaves nothing of value where its results will be."""
        self._work = work
        self.outputs: Outputs = [None if output is None else output.detach().clone() for output in work()]
        for output in self.outputs:
            if output is not None and output.is_floating_point():
                output.fill_(torch.nan)

    def replay(self) -> None:
        """Run it, and copy its results."""
        for kept, new in zip(self.outputs, self._work(), strict=True):
            if kept is not None and new is not None:
                kept.copy_(new.detach())
