"""Settings of model and data, and the names that stand for something built in."""

import re
import warnings
from typing import Literal

from pydantic import Field, field_validator

from striate.config.section import MOST, Section

BUILTIN = "builtin"
SHARE = re.compile(r"(\d{1,2}(?:\.\d{1,9})?)%")


class ModelSection(Section):
    """Which LVLM: a folder, a hub id, or `builtin` for the small LVLM that comes with striate."""

    path: str
    revision: str | None = None


with warnings.catch_warnings():
    # A deprecated method of pydantic's has the name of a key that people write.
    warnings.filterwarnings("ignore", 'Field name "validate"', UserWarning)

    class DataSection(Section):
        """Training and calibration data: files or folders in LLaVA or chat-messages format.

        `broken` says what training does at a sample that can't be used, as its picture is damaged or it does not fit
        into `train.max_length`: stop, with all steps kept, or learn without it, which train.json and train_log.jsonl
        record.
        `validate` is the share of the training data, such as 2%, that is held out by `seed`, or a file or folder like
        those of `train`: training measures the answer loss on it (docs/training-watched.md), and never learns from it.
        """

        train: tuple[str, ...] = Field(min_length=1)
        max_train_samples: int | None = Field(default=None, ge=1, le=MOST)
        calibration: tuple[str, ...] = ()
        broken: Literal["refuse", "skip"] = "refuse"
        validate: str | None = None  # type: ignore[assignment]

        @property
        def validation_share(self) -> float | None:
            """The share of the training data that is held out, over 0 and below 1; None where a place or nothing is."""
            found = SHARE.fullmatch(self.validate or "")
            return float(found[1]) / 100 if found else None

        @field_validator("validate")
        @classmethod
        def _share(cls, value: str | None) -> str | None:
            if value is not None and (not value.strip() or value.endswith("%")):
                found = SHARE.fullmatch(value)
                if not found or not float(found[1]):
                    raise ValueError(f"{value!r} is no share of the training data: over 0% and below 100%, such as 2%")
            return value


def is_builtin(name: str) -> bool:
    """Return whether `name` stands for something that comes with striate: `builtin`, `builtin:easy-vqa`, ..."""
    return name.partition(":")[0] == BUILTIN


def looks_like_hub_id(path: str) -> bool:
    """Return whether `path`, which is no folder, may be a hub id: owner/name. Anything else needs no network."""
    return path.count("/") == 1 and not path.startswith(("/", ".", "~"))
