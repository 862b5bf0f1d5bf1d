"""Which samples heal: how many, how many of them without a picture, and the same ones for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from striate.config import HealSection
from striate.data.samples import Message, Sample
from striate.healing.sample_mix import healing_samples


def sample(name: str, pictured: bool) -> Sample:
    images = (Path(f"{name}.png"),) if pictured else ()
    return Sample(
        name, (Message("user", f"{'<image>' if pictured else ''}{name}?"), Message("assistant", name)), images
    )


def pool(pictured: int, text: int) -> list[Sample]:
    return [sample(f"p{i}", True) for i in range(pictured)] + [sample(f"t{i}", False) for i in range(text)]


@pytest.mark.parametrize(
    ("pictured", "text", "more", "section", "expected"),
    [
        (80, 20, 0, {"share": 0.2}, (15, 5)),
        (80, 20, 0, {"share": "20%", "text": 0}, (20, 0)),
        # As much text as there is; pictures fill up.
        (97, 3, 0, {"share": 0.2}, (17, 3)),
        (97, 3, 9, {"share": 0.2}, (15, 5)),
        # Steps of 4: whatever is there, and no larger share of text than is asked for.
        (80, 20, 0, {"steps": 5}, (15, 5)),
        (9, 91, 0, {"steps": 50}, (9, 3)),
        (0, 100, 0, {"share": 0.1}, (0, 10)),
        (50, 50, 0, {"share": 0.1, "text": 1}, (0, 10)),
        (3, 0, 0, {"share": 0.001}, (1, 0)),
        # So few that rounding leaves no place for a picture.
        (80, 20, 0, {"steps": 1, "text": 0.9}, (0, 4)),
        (8, 2, 0, {"share": 0.1, "text": 0.5}, (0, 1)),
    ],
)
def test_as_many_of_each_kind_as_asked_for(
    pictured: int, text: int, more: int, section: dict[str, object], expected: tuple[int, int]
) -> None:
    extra = [sample(f"m{i}", False) for i in range(more)] + [sample("with a picture", True)]
    chosen = healing_samples(pool(pictured, text), HealSection.model_validate(section), 4, 0, extra)
    kinds = [bool(one.images) for one in chosen]
    assert (kinds.count(True), kinds.count(False)) == expected
    assert kinds == sorted(kinds, reverse=True)
    assert len({one.id for one in chosen}) == len(chosen)
    assert "with a picture" not in {one.id for one in chosen}


def test_the_seed_alone_draws_them() -> None:
    section = HealSection(share=0.2)
    first, again, other = (healing_samples(pool(80, 20), section, 4, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
