"""What healing takes of the settings of training, and what it leaves out."""

from __future__ import annotations

from typing import Any

import pytest

from striate.config import HealSection, TrainSection

# As far from the defaults as one config goes.
TRAIN = TrainSection.model_validate(
    {
        "method": "lora",
        "lora": {"r": 4},
        "projector": "lora",
        "vision": "lora",
        "vision_lr": 1e-5,
        "vision_layers": "top:1",
        "resample": {"active": 1},
        "lr": 0.3,
        "optimizer": "adamw-8bit",
        "batch_size": 16,
        "epochs": 3,
        "max_steps": 9,
        "max_length": 99,
        "packing": True,
        "image_tokens": "region",
        "image_also": "top:1",
        "image_whole_every": 10,
        "frozen": "int8",
        "validate_every": 5,
        "keep": "best",
        "metric_for_best_model": "text_loss",
        "early_stopping_patience": 2,
        "early_stopping_threshold": 0.1,
    }
)
LEFT_OUT = {
    "vision",
    "vision_lr",
    "vision_layers",
    "resample",
    "epochs",
    "max_steps",
    "image_tokens",
    "image_also",
    "image_whole_every",
    "frozen",
    "validate_every",
    "keep",
    "metric_for_best_model",
    "early_stopping_patience",
    "early_stopping_threshold",
}


def changed(train: TrainSection = TRAIN, **settings: Any) -> set[str]:
    healing = HealSection.model_validate({"lr": None, **settings}).training(train)
    # What it gives is a config that could have been written.
    assert TrainSection.model_validate(healing.model_dump()) == healing
    return {name for name in TrainSection.model_fields if getattr(healing, name) != getattr(train, name)}


def test_modes_of_training_alone_are_left_out() -> None:
    assert changed(share=0.5) == LEFT_OUT
    one = HealSection(share=0.5).training(TRAIN)
    assert (one.epochs, one.max_steps) == (1.0, None)
    assert HealSection(steps=7).training(TRAIN).max_steps == 7
    assert changed(steps=7, lr=0.1) == {*LEFT_OUT, "lr"}


def test_full_weights_take_a_projector_in_full() -> None:
    assert changed(steps=7, method="full") == {*LEFT_OUT, "method", "projector"}


@pytest.mark.parametrize(("method", "healing"), [("qlora", "lora"), ("lora", "lora"), ("full", "full")])
def test_the_method_is_that_of_training_on_whole_weights(method: str, healing: str) -> None:
    train = TrainSection.model_validate({"method": method})
    assert HealSection(steps=1).training(train).method == healing


@pytest.mark.parametrize(("given", "share"), [("5%", 0.05), (0.05, 0.05), ("100 %", 1.0), ("2.5%", 0.025)])
def test_a_share_is_a_percentage_or_a_fraction(given: object, share: float) -> None:
    section = HealSection.model_validate({"share": given})
    assert section.share == pytest.approx(share)
    assert section.on
    assert not HealSection().on


def test_shares_are_numbers_or_percentages() -> None:
    section = HealSection.model_validate({"share": "5%", "text": "50%"})
    assert (section.share, section.text) == (0.05, 0.5)
    for text in ("half%", "%", "101%"):
        with pytest.raises(ValueError, match="text"):
            HealSection.model_validate({"share": 0.1, "text": text})
