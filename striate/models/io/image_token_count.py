"""The error of a processor that writes more or fewer image tokens than the model makes of a picture. No torch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from striate.errors import ModelError, first_line

# How transformers begins where the two do not agree.
_OTHER_COUNT = "Image features and image tokens do not match"


@contextmanager
def image_tokens_counted() -> Iterator[None]:
    """Context, or decorator, of what shows pictures to a model.

    Raises:
        ModelError: its processor counts image tokens otherwise than the model.
    """
    try:
        yield
    except ValueError as error:
        if other := other_count(error):
            raise other from error
        raise


def other_count(error: BaseException) -> ModelError | None:
    """Return the error of a processor that counts image tokens otherwise than the model; None if `error` is another."""
    if not str(error).startswith(_OTHER_COUNT):
        return None
    return ModelError(
        f"the processor and the model do not belong together: {first_line(error)}",
        "a processor that writes as many image tokens as the model makes of a picture",
        "copy processor_config.json and the image processor's files from the model that config.json is of",
    )
