"""Saves a pruned model, and keeps the folder only where the model reloads from it as it is in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from striate.artifacts import Region, SelfTest
from striate.data.collate import Collator
from striate.data.samples import PLACEHOLDER, Message, Sample
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.save import save_model
from striate.models.surgery.roundtrip_check import self_test

TEST_TEXT = "Please describe this image in detail."
TEST_LENGTH = 32768


def save_tested(
    model: Any,
    processor: Any,
    out: Path,
    *,
    region: Region,
    card: CardFacts,
    test_inputs: Mapping[str, Tensor] | None = None,
) -> SelfTest:
    """Return how the model saved to the folder `out`, loaded again, compares with the one in memory.

    A saved model that does not pass is removed.

    Args:
        model: plain, without adapters.
        processor: saved beside it.
        out: a new or empty folder.
        region: in the model's own layer numbers.
        card: what its model card tells.
        test_inputs: left-padded prompts to compare on; by default one question about a made-up picture.

    Raises:
        ArtifactError: the folder holds files already or can't be written.
        ModelError: the saved model does not load, or differs.
    """
    inputs = dict(test_inputs) if test_inputs is not None else _test_inputs(processor)
    save_model(model, processor, out, region=region, card=card)
    try:
        return self_test(model, out, inputs, processor)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise


def _test_inputs(processor: Any) -> dict[str, Tensor]:
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "gradient.png"
        Image.linear_gradient("L").convert("RGB").save(picture)
        sample = Sample("self-test", (Message("user", f"{PLACEHOLDER}\n{TEST_TEXT}"),), (picture,))
        return Collator(processor, TEST_LENGTH, train=False).encode_prompts([sample])
