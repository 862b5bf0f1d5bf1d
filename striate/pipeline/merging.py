"""Merges a run's or a folder's model into one ordinary checkpoint, with a card of what made it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from striate.artifacts import Region, read_if_there
from striate.pipeline.model_origins import FOLDERS
from striate.pipeline.run_card import card_facts
from striate.pipeline.run_models import ModelPlace, config_of, model_of, revision_of
from striate.progress import Progress, Silent

if TYPE_CHECKING:
    from striate.models.convert.merge_checkpoint import MergedCheckpoint
    from striate.models.io.card.card_facts import CardFacts


def merge_model(
    source: str | Path,
    out: Path,
    *,
    label: str | None = None,
    base: str | None = None,
    dtype: str = "auto",
    revision: str | None = None,
    progress: Progress | None = None,
) -> tuple[ModelPlace, MergedCheckpoint]:
    """Return which model was merged, and what was written to `out`.

    Args:
        source: a run folder, a model's folder or a hub id.
        out: a new or empty folder.
        label: which of a run's models; None for the last one that it made.
        base: the adapter's base model, in place of the one that it names.
        dtype: as `merge_checkpoint`.
        revision: branch, tag or commit of a hub id.
        progress: told what is fetched, or built first.

    Raises:
        StriateError: see `model_of` and `merge_checkpoint`.
    """
    place = model_of(source, label, progress)
    from striate.models.convert.legacy.legacy_sources import folder_of
    from striate.models.convert.merge_checkpoint import merge_checkpoint
    from striate.models.io.hub_download import fetch_weights

    commit = revision_of(place, revision)
    fetch_weights(place.path, commit, progress or Silent())
    folder = folder_of(place.path, "model", commit)
    return place, merge_checkpoint(folder, out, base=base, dtype=dtype, card=facts_of(place, folder))


def facts_of(place: ModelPlace, folder: Path) -> CardFacts | None:
    """Return what is known of the model of `place` in `folder`; None of a whole one outside a run, whose card tells it.

    Raises:
        StriateError: an artifact of the run, or the adapter's config, can't be read.
    """
    from striate.models.io.adapter_folder import adapter_config, base_of, is_adapter
    from striate.models.io.card.card_facts import CardFacts
    from striate.models.io.card.card_metadata import has_figures, license_of
    from striate.models.io.save import REGION_FILE

    if place.run is not None and place.label in FOLDERS:
        config = config_of(place.run)
        facts = card_facts(place.run, place.label, config, config.model.path, has_figures(folder))
        return replace(facts, licence=license_of(str(folder)))
    if not is_adapter(folder):
        return None
    kind = str(adapter_config(folder).get("peft_type", "")).lower()
    region = read_if_there(folder / REGION_FILE, Region)
    return CardFacts(base=base_of(folder), method="", region=region, adapter=True, kind=kind)
