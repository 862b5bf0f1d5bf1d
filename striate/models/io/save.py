"""Saves an LVLM, its processor, region and model card to a folder: all of it or nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from safetensors import SafetensorError

from striate.artifacts import Region, write_document
from striate.models.interventions.model_rule import save_rule
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.card.card_metadata import CARD_FILE
from striate.models.io.card.model_card import card_text
from striate.models.io.quiet import quietly
from striate.models.io.weights.adapter_names import rename_for_peft
from striate.storage.atomic import new_folder, write_text
from striate.storage.fingerprints import RECORD_FILE
from striate.storage.manifest import write_manifest

REGION_FILE = "region.json"


def save_model(
    model: Any,
    processor: Any | None,
    path: Path | str,
    region: Region | None = None,
    card: CardFacts | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write `model`, its rule, `processor`, `region.json` and the model card to the folder `path`, whole or not at all.

    A plain model becomes an ordinary checkpoint, a PEFT model an adapter folder. `processor` None writes none:
    such a folder is only good for more work in memory, since nothing can ask the model without a processor.

    `record` is what the folder's training_record.json holds beside a digest of every other file.

    Raises:
        ArtifactError: `path` holds files already, can't be written, or the disk is full.
        ModelError: an adapter that PEFT would not read back.
    """
    with new_folder(Path(path)) as folder, quietly(True):
        try:
            model.save_pretrained(folder)
            if isinstance(model, PeftModel):
                rename_for_peft(model, folder)
        except SafetensorError as error:
            # The folder's own writer says it, under the name that was asked for.
            raise OSError(str(error)) from error
        if processor is not None:
            processor.save_pretrained(folder)
        if region is not None:
            write_document(folder / REGION_FILE, region)
        save_rule(model, folder)
        if card is not None:
            write_text(folder / CARD_FILE, card_text(card, Path(path).name, folder))
        if record is not None:
            write_manifest(folder / RECORD_FILE, record)
