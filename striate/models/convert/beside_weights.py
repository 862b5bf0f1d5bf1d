"""What a written checkpoint has beside weights, config and processor: terms, how it generates, region, model card."""

from __future__ import annotations

import shutil
from pathlib import Path

from striate.artifacts import Region, read_if_there, write_document
from striate.models.io.card.card_code import quantisation_of
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.card.card_metadata import CARD_FILE
from striate.models.io.card.model_card import card_text
from striate.models.io.card.named_card import A_CARD, named_card
from striate.models.io.model_folder import model_file
from striate.models.io.save import REGION_FILE
from striate.storage.atomic import write_text
from striate.storage.read_files import read_text

# What comes along of the base: how it generates, and its terms.
_KEPT = ("generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*")


def write_beside(source: Path, base: Path, target: Path) -> None:
    """Copy what comes along to `target`: the region of the model in `source`, the rest from the model under it, `base`.

    Raises:
        ModelError: a file lies elsewhere.
        ArtifactError: the region can't be read, or `target` not be written.
    """
    for pattern in _KEPT:
        for file in sorted(base.glob(pattern)):
            if file.is_file() and not (target / file.name).exists():
                shutil.copyfile(model_file(base, file.name, "the model's file"), target / file.name)
    region = read_if_there(source / REGION_FILE, Region)
    if region is not None:
        write_document(target / REGION_FILE, region)


def write_card_beside(source: Path, target: Path, card: CardFacts | None, name: str) -> None:
    """Write to `target` what `card` tells of the checkpoint there, `name` as its folder; None copies what `source` has.

    Raises:
        ModelError: the card to copy can't be read.
        ArtifactError: `target` can't be written.
    """
    if card is not None:
        write_text(target / CARD_FILE, card_text(card, name, target))
    elif (source / CARD_FILE).is_file():
        text = named_card(read_text(model_file(source, CARD_FILE, "the model's file"), A_CARD), name)
        if (stored := quantisation_of(target)) and not quantisation_of(source):
            text = f"{text.rstrip()}\n\n{stored} What stands above tells of the model before that.\n"
        write_text(target / CARD_FILE, text)
