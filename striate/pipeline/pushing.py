"""Publishes a run's or a folder's model on the hub, with a card of what made it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from striate.errors import ModelError
from striate.pipeline.run_models import ModelPlace, model_of
from striate.progress import Progress

if TYPE_CHECKING:
    from striate.models.io.hub_upload import Upload


def upload_of(
    source: str | Path,
    repository: str,
    *,
    label: str | None = None,
    licence: str | None = None,
    base_model: str | None = None,
    progress: Progress | None = None,
) -> tuple[ModelPlace, Upload]:
    """Return which model `repository` would hold, and its files; nothing is asked of the hub.

    Args:
        source: a run folder, or a model's or an adapter's folder.
        repository: owner/name.
        label: which of a run's models; None for the last one that it made.
        licence: as `prepare_upload`.
        base_model: as `prepare_upload`; None for the model that the run began with, where that is on the hub.
        progress: told where the built-in LVLM must be built first.

    Raises:
        StriateError: see `model_of` and `prepare_upload`.
    """
    place = model_of(source, label, progress)
    folder = Path(place.path)
    if not folder.is_dir():
        raise ModelError(f"{place.path} is a model of the hub", "a run folder or a model's folder", "give a folder")
    from striate.models.io.hub_upload import prepare_upload

    return place, prepare_upload(folder, repository, licence=licence, base_model=base_model)
