"""Base of all artifacts: strict, versioned documents, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from striate.errors import ArtifactError
from striate.storage.atomic import write_text
from striate.storage.read_files import Form, json_lines, read_bytes


class Document(BaseModel):
    """Base of all artifacts: unknown keys are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    drawing: ClassVar[Callable[[Document], str | None] | None] = None
    """Draws a document for notebooks: given from outside, as what draws stands above what is drawn."""

    def _repr_html_(self) -> str | None:
        """Return what a notebook shows: the report's drawing of it, or None where there is none."""
        draw = Document.drawing
        return draw(self) if draw else None


DocumentT = TypeVar("DocumentT", bound=Document)


def write_document(path: Path, document: Document) -> None:
    """Write `document` as indented JSON to `path`, whole or not at all."""
    write_text(path, document.model_dump_json(indent=2) + "\n")


def read_document(path: Path, kind: type[DocumentT]) -> DocumentT:
    """Return the `kind` stored at `path`.

    Raises:
        ArtifactError: missing, not JSON, or not of this kind.
    """
    content = read_bytes(
        path, Form(ArtifactError, f"a file that holds a {kind.__name__}", "run the stage that writes it first")
    )
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the document"
        raise ArtifactError(
            f"{path} is not a {kind.__name__}: {place}: {first['msg']}",
            f"a file that striate wrote as {kind.__name__}",
            "delete it and run its stage again",
        ) from error


def read_if_there(path: Path, kind: type[DocumentT]) -> DocumentT | None:
    """Return the `kind` stored at `path`, or None where there is no such file; raises as `read_document`."""
    return read_document(path, kind) if path.exists() else None


def write_lines(path: Path, documents: Sequence[Document]) -> None:
    """Write `documents` as JSON lines, whole or not at all."""
    write_text(path, "".join(document.model_dump_json() + "\n" for document in documents))


def read_lines(path: Path, kind: type[DocumentT]) -> list[DocumentT]:
    """Return the JSON lines of `path`, each as a `kind`.

    Raises:
        ArtifactError: missing, not JSON lines, or a line that is not of this kind.
    """
    form = Form(ArtifactError, f"JSON lines, each a {kind.__name__}", "run the stage that writes it again")
    rows: list[DocumentT] = []
    for number, value in json_lines(path, form):
        try:
            rows.append(kind.model_validate(value))
        except ValidationError as error:
            raise form.refuse(f"{path}:{number} is not a {kind.__name__}") from error
    return rows
