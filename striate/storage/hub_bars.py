"""The progress bars of the hub's own library: off where striate tells itself what is fetched or sent."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hub_bars_off() -> Iterator[None]:
    """Context in which `huggingface_hub` draws no bars."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
