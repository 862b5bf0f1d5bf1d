"""A model handed over in Python is looked at as one that is loaded: finite weights, and a processor of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import striate
from striate.artifacts import Region
from striate.config import EvaluateSection, MachineSection
from striate.data.reading import read_samples
from striate.errors import ModelError
from striate.stages.evaluate import evaluate
from striate.tasks.packs.reader import read_pack

if TYPE_CHECKING:
    from striate.models.io.load import Loaded


def analyzed(loaded: Loaded, pack: Path) -> None:
    striate.analyze(loaded.model, loaded.processor, read_samples(pack, 2))


def evaluated(loaded: Loaded, pack: Path) -> None:
    settings = EvaluateSection(max_new_tokens=1), MachineSection(device="cpu")
    evaluate(
        loaded.model,
        loaded.processor,
        [read_pack(pack, 2)],
        label="start",
        model_name="",
        config=settings[0],
        machine=settings[1],
    )


def pruned(loaded: Loaded, pack: Path) -> None:
    striate.prune(loaded.model, Region(layers=(0, 2), num_layers=4, spec="ids:0,2", selector="ids"), remove=0)


@pytest.mark.parametrize("call", [analyzed, evaluated, pruned])
@pytest.mark.parametrize("part", ["vision_tower", "language_model"])
def test_weights_that_are_no_numbers(
    tiny_llava: Loaded, saved_pack: Path, call: Callable[[Loaded, Path], None], part: str
) -> None:
    name, weight = next((n, w) for n, w in tiny_llava.model.named_parameters() if part in n and w.ndim == 2)
    with torch.no_grad():
        weight[-1, -1] = torch.nan
    with pytest.raises(ModelError, match="the weights in memory hold values that are infinite or no numbers") as error:
        call(tiny_llava, saved_pack)
    assert name in str(error.value)


@pytest.mark.parametrize("call", [analyzed, evaluated])
def test_a_processor_that_counts_image_tokens_otherwise(
    tiny_llava: Loaded, saved_pack: Path, call: Callable[[Loaded, Path], None]
) -> None:
    tiny_llava.processor.patch_size = 7
    with pytest.raises(ModelError, match="the processor and the model do not belong together: ") as error:
        call(tiny_llava, saved_pack)
    assert "copy processor_config.json" in error.value.next_step
