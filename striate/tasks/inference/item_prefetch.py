"""Prefetch prompts in a thread, in order, so that the accelerator does not wait for pictures."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def ahead(calls: Iterable[Callable[[], Result]], depth: int) -> Iterator[Result]:
    """Yield the result of each call, in order; up to `depth` calls are done before they are asked for.

    One thread makes the calls: a tokenizer must not be used by two at a time. An exception of a call comes up in its
    turn, and calls that have not begun are dropped when the iteration ends early.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead")
    waiting: deque[Future[Result]] = deque()
    try:
        for call in calls:
            waiting.append(pool.submit(call))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
