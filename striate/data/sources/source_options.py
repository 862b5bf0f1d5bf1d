"""How the records of training data are read: which columns mean what, and where pictures may lie. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from striate.config import DataSection
from striate.errors import ConfigError
from striate.printable import shown
from striate.storage.read_files import user_path


@dataclass(frozen=True)
class SourceOptions:
    """The settings of `data` by which records become samples.

    Attributes:
        columns: striate's name of a field to the name that records have for it; records with none of these names are
            read as they are.
        question: what is asked where a record has no question.
        images: folders besides the data's own that pictures may lie under.
        untagged: whether a sample's only picture, of which no question says where it belongs, stands before the first.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    question: str | None = None
    images: tuple[Path, ...] = ()
    untagged: Literal["refuse", "first"] = "refuse"

    @classmethod
    def of(cls, section: DataSection) -> SourceOptions:
        """Return the options of a run.

        Raises:
            ConfigError: a folder of `data.images` is none.
        """
        images = tuple(user_path(folder) for folder in section.images)
        for folder in images:
            if not folder.is_dir():
                raise ConfigError(
                    f"data.images names {shown(str(folder))}, which is no folder",
                    "folders that pictures may lie under",
                    "check the path",
                )
        return cls(section.columns, section.question, images, section.untagged)

    def noted(self) -> dict[str, Any]:
        """Return what changes the samples that are read, where it is not the default; empty by default.

        Where pictures may lie is not in it: which ones were found is in the data's own fingerprint.
        """
        values = {"columns": dict(self.columns), "question": self.question, "untagged": self.untagged}
        return {name: value for name, value in values.items() if value != getattr(PLAIN, name)}


PLAIN = SourceOptions()
