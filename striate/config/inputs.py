"""Settings of model and data, and the names that stand for something built in."""

from typing import Literal

from pydantic import Field

from striate.config.section import MOST, Section

BUILTIN = "builtin"


class ModelSection(Section):
    """Which LVLM: a folder, a hub id, or `builtin` for the small LVLM that comes with striate."""

    path: str
    revision: str | None = None


class DataSection(Section):
    """Training and calibration data: files or folders in LLaVA or chat-messages format.

    `broken` says what training does at a sample that can't be used, as its picture is damaged or it does not fit into
    `train.max_length`: stop, with all steps kept, or learn without it, which train.json and train_log.jsonl record.
    """

    train: tuple[str, ...] = Field(min_length=1)
    max_train_samples: int | None = Field(default=None, ge=1, le=MOST)
    calibration: tuple[str, ...] = ()
    broken: Literal["refuse", "skip"] = "refuse"


def is_builtin(name: str) -> bool:
    """Return whether `name` stands for something that comes with striate: `builtin`, `builtin:easy-vqa`, ..."""
    return name.partition(":")[0] == BUILTIN


def looks_like_hub_id(path: str) -> bool:
    """Return whether `path`, which is no folder, may be a hub id: owner/name. Anything else needs no network."""
    return path.count("/") == 1 and not path.startswith(("/", ".", "~"))
