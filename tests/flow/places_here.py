"""Places for the runs of a sweep in this very process, where a new one would import torch anew."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from striate.errors import StriateError
from striate.pipeline.sweeps.placement import OneByOne


class Here(OneByOne):
    """Places of this very process: a run is done before it is asked for."""

    free = 1

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except StriateError as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        """End nothing."""
