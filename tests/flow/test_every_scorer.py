"""Every scorer's scores choose regions and rank layers for removal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from striate.artifacts import Scores
from striate.data.reading import read_samples
from striate.scorers import SCORERS
from striate.stages.analyze import analyze
from striate.stages.prune import prune
from striate.stages.select import select

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

# A random model tells no pair of pictures apart; that source has tests of its own.
NAMES = [name for name in SCORERS.names() if SCORERS.get(name).source != "picture pairs"]


def test_scores_of_every_scorer_choose_and_rank_layers(
    llava_builder: Callable[..., Loaded], saved_pack: Path, tmp_path: Path
) -> None:
    llava_builder(seed=1).model.save_pretrained(tmp_path / "base")
    samples = read_samples(saved_pack / "train.json", limit=5)
    loaded = llava_builder()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    scores = analyze(loaded.model, loaded.processor, samples, NAMES, by="task", base=tmp_path / "base")
    assert all(value.equal(before[name]) for name, value in loaded.model.state_dict().items())
    assert [entry.scorer for entry in scores.scorers] == NAMES
    assert Scores.model_validate_json(scores.model_dump_json()) == scores
    for name in NAMES:
        values = scores.of(name).values
        region = select(4, f"scores:{name}:25%", scores)
        assert values[region.layers[0]] == max(values), name
        _, record = prune(llava_builder().model, region, 1, scores, name)
        assert values[record.removed[0]] == min(values[layer] for layer in region.outside), name


def test_the_page_says_what_every_scorer_says() -> None:
    page = (Path(__file__).parents[2] / "docs" / "analysis.md").read_text(encoding="utf-8")
    for name in SCORERS.names():
        scorer = SCORERS.get(name)
        assert f"`{name}`" in page
        assert scorer.paper.rpartition("/")[2] in page
        assert scorer.limits, name
