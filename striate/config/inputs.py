"""Settings of model and data, and the names that stand for something built in."""

import re
import warnings
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from striate.config.section import MOST, Section
from striate.errors import did_you_mean

BUILTIN = "builtin"
COLUMNS = ("image", "images", "question", "answer", "system", "messages", "conversations", "texts", "id", "task")
MOST_TIMES = 1000
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
        `mix` says of places that `train` names how often an epoch shows their samples: a number of times, such as 2
        or 0.25, or the share that they make of all, such as 30%; others are shown once. `text` is the share of samples
        without pictures in an epoch.
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
        mix: dict[str, float | str] = Field(default_factory=dict)
        text: str | None = None

        @property
        def validation_share(self) -> float | None:
            """The share of the training data that is held out, over 0 and below 1; None where a place or nothing is."""
            return share_of(self.validate) if SHARE.fullmatch(self.validate or "") else None

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

        @field_validator("text")
        @classmethod
        def _text_share(cls, value: str | None) -> str | None:
            if value is not None and not share_of(value):
                raise ValueError(f"{value!r} is no share of the samples: over 0% and below 100%, such as 10%")
            return value

        @model_validator(mode="after")
        def _mixed(self) -> Self:
            for name, value in self.mix.items():
                if name not in self.train:
                    raise ValueError(f"mix: {name!r} is none of train. {did_you_mean(name, self.train)}".strip())
                right = share_of(value) > 0 if isinstance(value, str) else 0 < value <= MOST_TIMES
                if not right:
                    wanted = f"a number of times, over 0 and at most {MOST_TIMES}, or a share such as 30%"
                    raise ValueError(f"mix: {name!r} is {value!r}: {wanted}")
            total = sum(share_of(value) for value in self.mix.values() if isinstance(value, str))
            others = any(not isinstance(self.mix.get(name), str) for name in self.train)
            if total and (total >= 1 - 1e-9 if others else abs(total - 1) > 1e-9):
                kind = "below 100%, as other places have no share" if others else "100%, as every place has one"
                raise ValueError(f"mix: its shares are {100 * total:g}% together: {kind}")
            twice = next((name for name in self.mix if self.train.count(name) > 1), None)
            if twice:
                raise ValueError(f"mix: train names {twice!r} twice: name it once, and say here how often it is shown")
            return self

        @field_validator("validate", mode="before")
        @classmethod
        def _with_percent(cls, value: Any) -> Any:
            if isinstance(value, int | float):
                raise ValueError(f"{value!r} is neither a share of the training data, such as 2%, nor a file or folder")
            return value

        @field_validator("validate")
        @classmethod
        def _share(cls, value: str | None) -> str | None:
            if value is not None and (not value.strip() or value.endswith("%")):
                found = SHARE.fullmatch(value)
                if not found or not float(found[1]):
                    raise ValueError(f"{value!r} is no share of the training data: over 0% and below 100%, such as 2%")
            return value


def share_of(text: str | None) -> float:
    """Return the share that a text such as 2% stands for, from 0 to below 1; 0 where it stands for none."""
    found = SHARE.fullmatch(text or "")
    return float(found[1]) / 100 if found else 0.0


def is_builtin(name: str) -> bool:
    """Return whether `name` stands for something that comes with striate: `builtin`, `builtin:easy-vqa`, ..."""
    return name.partition(":")[0] == BUILTIN


def looks_like_hub_id(path: str) -> bool:
    """Return whether `path`, which is no folder, may be a hub id: owner/name. Anything else needs no network."""
    return path.count("/") == 1 and not path.startswith(("/", ".", "~"))
