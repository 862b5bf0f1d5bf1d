"""Settings of model and data, and the names that stand for something built in."""

import re
import warnings
from typing import Literal

from pydantic import Field, field_validator

from striate.config.section import MOST, Section
from striate.errors import did_you_mean

BUILTIN = "builtin"
COLUMNS = ("image", "images", "question", "answer", "system", "messages", "conversations", "texts", "id", "task")
SHARE = re.compile(r"(\d{1,2}(?:\.\d{1,9})?)%")


class ModelSection(Section):
    """Which LVLM: a folder, a hub id, or `builtin` for the small LVLM that comes with striate."""

    path: str
    revision: str | None = None


with warnings.catch_warnings():
    # A deprecated method of pydantic's has the name of a key that people write.
    warnings.filterwarnings("ignore", 'Field name "validate"', UserWarning)

    class DataSection(Section):
        """Training and calibration data: files, folders, or data sets of the hub (`hf:owner/name`), see docs/data.md.

        `columns` says which of their columns, or fields, hold what: one of `image`, `images`, `question`, `answer`,
        `system`, `messages`, `conversations`, `texts`, `id` and `task` to the name that the data has for it. `question`
        is asked of every record that has none. `images` are folders besides the data's own that pictures may lie
        under. With `untagged: first` a sample's only picture stands before its first question where no `<image>` says
        where it belongs.

        `broken` says what training does at a sample that can't be used, as its picture is damaged or it does not fit
        into `train.max_length`: stop, with all steps kept, or learn without it, which train.json and train_log.jsonl
        record.
        `validate` is the share of the training data, such as 2%, that is held out by `seed`, or a file or folder like
        those of `train`: training measures the answer loss on it (docs/training-watched.md), and never learns from it.
        """

        train: tuple[str, ...] = Field(min_length=1)
        max_train_samples: int | None = Field(default=None, ge=1, le=MOST)
        calibration: tuple[str, ...] = ()
        columns: dict[str, str] = Field(default_factory=dict)
        question: str | None = None
        images: tuple[str, ...] = ()
        untagged: Literal["refuse", "first"] = "refuse"
        broken: Literal["refuse", "skip"] = "refuse"
        validate: str | None = None  # type: ignore[assignment]

        @property
        def validation_share(self) -> float | None:
            """The share of the training data that is held out, over 0 and below 1; None where a place or nothing is."""
            found = SHARE.fullmatch(self.validate or "")
            return float(found[1]) / 100 if found else None

        @field_validator("columns")
        @classmethod
        def _known(cls, value: dict[str, str]) -> dict[str, str]:
            for name, column in value.items():
                if name not in COLUMNS:
                    raise ValueError(f"{name!r} is none of {', '.join(COLUMNS)}. {did_you_mean(name, COLUMNS)}".strip())
                if not column.strip():
                    raise ValueError(f"{name!r} names no column of the data")
            return value

        @field_validator("question")
        @classmethod
        def _asked(cls, value: str | None) -> str | None:
            if value is not None and not value.strip():
                raise ValueError("a question with text in it, or none")
            return value

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
