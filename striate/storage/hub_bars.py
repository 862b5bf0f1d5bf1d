"""The progress bars of Hugging Face's libraries: off where striate tells itself what is fetched or sent."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


def hub_bars_off() -> AbstractContextManager[None]:
    """Return a context in which `huggingface_hub` draws no bars."""
    import huggingface_hub.utils

    return bars_off(huggingface_hub.utils)


@contextmanager
def bars_off(library: Any) -> Iterator[None]:
    """Context in which a library draws no bars, by its module that turns them on and off."""
    if library.are_progress_bars_disabled():
        yield
        return
    library.disable_progress_bars()
    try:
        yield
    finally:
        library.enable_progress_bars()
