"""Selectors from scores: what each promises, on any scores, and what a person can get wrong."""

from __future__ import annotations

import json
import math
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.artifacts import LayerScores, Region, Scores, read_document, write_document
from striate.config import AnalyzeSection
from striate.errors import SpecError, StriateError
from striate.pipeline.run_inputs import RunInputs
from striate.pipeline.stage_keys import StageKeys
from striate.selectors import SELECTORS
from striate.selectors.coverage import greedy
from striate.selectors.spec.grammar import parse_spec, resolve
from striate.selectors.spec.params import SpecParams
from striate.selectors.spec.required_scores import check_needs

value_lists = st.lists(st.floats(-5, 5, width=32), min_size=3, max_size=40)


def entry(scorer: str, values: list[float], spans: tuple[tuple[float, ...], ...] = ()) -> LayerScores:
    flat = tuple(values)
    return LayerScores(scorer=scorer, values=flat, low=flat, high=flat, samples=1, spans=spans)


def scores(tasks: dict[str, list[float]] | None = None, **values: list[float]) -> Scores:
    by_task = {task: (entry("a", row),) for task, row in (tasks or {}).items()}
    rows = [*values.values(), *(tasks or {}).values()]
    entries = tuple(entry(name, row) for name, row in values.items())
    return Scores(num_layers=len(rows[0]), samples=1, scorers=entries, tasks=by_task)


def chosen(spec: str, found: Scores) -> tuple[int, ...]:
    return resolve(spec, found.num_layers, found).layers


@given(value_lists, st.data())
def test_spaced_is_the_best_of_each_stripe(values: list[float], data: st.DataObject) -> None:
    total = len(values)
    count = data.draw(st.integers(1, total))
    layers = chosen(f"spaced:a:{count}", scores(a=values))
    ends = [*chosen(f"uniform:{count}", scores(a=values)), total]
    assert len(layers) == count
    for layer, (start, end) in zip(layers, pairwise(ends), strict=True):
        assert start <= layer < end
        assert values[layer] == max(values[start:end])
        assert layer == start + values[start:end].index(values[layer])


def test_spaced_with_every_layer_and_with_one() -> None:
    values = [0.0, 3.0, 1.0, 3.0]
    assert chosen("spaced:a:100%", scores(a=values)) == (0, 1, 2, 3)
    assert chosen("spaced:a:1", scores(a=values)) == (1,)


def covered(shares: list[list[float]], layers: tuple[int, ...]) -> float:
    return sum(math.sqrt(sum(share[layer] for layer in layers)) for share in shares)


@given(st.integers(3, 8), st.integers(1, 3), st.data())
def test_coverage_is_near_the_optimum_with_falling_gains(total: int, tasks: int, data: st.DataObject) -> None:
    row = st.lists(st.integers(0, 20), min_size=total, max_size=total).filter(lambda values: len(set(values)) > 1)
    rows = [data.draw(row) for _ in range(tasks)]
    count = data.draw(st.integers(1, total))
    shares = [[(value - min(values)) / sum(v - min(values) for v in values) for value in values] for values in rows]
    layers = chosen(f"coverage:a:{count}", scores({f"t{i}": [float(v) for v in row] for i, row in enumerate(rows)}))
    best = max(covered(shares, picked) for picked in combinations(range(total), count))
    assert covered(shares, layers) >= (1 - 1 / math.e) * best - 1e-9
    order = greedy(shares, total, count)
    assert tuple(sorted(order)) == layers
    values = [covered(shares, tuple(order[:size])) for size in range(count + 1)]
    gains = [after - before for before, after in pairwise(values)]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(gains))


def test_coverage_serves_a_task_that_top_layers_forget() -> None:
    tasks = {"ocr": [9.0, 8.0, 7.0, 0.0, 0.0, 0.0], "count": [0.0, 0.0, 0.0, 0.0, 0.0, 5.0]}
    found = scores(tasks, a=[9.0, 8.0, 7.0, 0.0, 0.0, 0.0])
    assert chosen("coverage:a:2", found) == (0, 5)
    assert chosen("scores:a:2", found) == (0, 1)
    assert chosen("coverage:a@ocr:2", found) == chosen("scores:a@ocr:2", found) == (0, 1)
    assert chosen("scores:a@count:1", found) == (5,)
    assert chosen("coverage:a@count, ocr:2", found) == (0, 5)


def test_coverage_of_a_task_without_preference() -> None:
    found = scores({"ocr": [1.0, 1.0, 1.0], "count": [0.0, 1.0, 3.0]})
    assert chosen("coverage:a:2", found) == (1, 2)
    assert chosen("coverage:a:2", scores({"ocr": [1.0, 1.0, 1.0]})) == (0, 1)


@given(value_lists, st.data())
def test_combined_needs_no_common_scale(values: list[float], data: st.DataObject) -> None:
    total = len(values)
    count = data.draw(st.integers(1, total))
    other = data.draw(st.permutations([float(layer) for layer in range(total)]))
    layers = chosen(f"combined:a+b:{count}", scores(a=values, b=list(other)))
    assert len(set(layers)) == count
    assert layers == chosen(f"combined:b+a:{count}", scores(a=values, b=[math.exp(value / 4) for value in other]))
    ranked = sorted(range(total), key=lambda layer: (-values[layer], layer))
    assert chosen(f"combined:a+b:{count}", scores(a=values, b=values)) == tuple(sorted(ranked[:count]))


def test_combined_is_the_mean_rank() -> None:
    found = scores(a=[9.0, 1.0, 5.0, 5.0], b=[0.0, 3.0, 2.0, 1.0])
    # Ranks: a 1, 4, 2.5, 2.5; b 4, 1, 2, 3; means 2.5, 2.5, 2.25, 2.75.
    assert chosen("combined:a+b:1", found) == (2,)
    assert chosen("combined:a+b:2", found) == (0, 2)
    assert chosen("combined:a+b:3", found) == (0, 1, 2)


def spanned(single: list[float], double: list[float], triple: list[float]) -> Scores:
    spans = (tuple(single), tuple(double), tuple(triple))
    return Scores(num_layers=len(single), samples=1, scorers=(entry("angular-distance", single, spans),))


@st.composite
def span_scores(draw: st.DrawFn) -> Scores:
    total = draw(st.integers(3, 24))
    rows = [[draw(st.integers(0, 9)) / 10 for _ in range(total - length + 1)] for length in (1, 2, 3)]
    return spanned(*rows)


@given(span_scores(), st.data())
def test_interlace_gives_disjoint_neighbours(found: Scores, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, max(1, found.num_layers // 4)))
    region = resolve(f"interlace:{count}", found.num_layers, found)
    assert len(region) == len(region.removable) == count
    assert not set(region.layers) & set(region.removable)
    single = found.scorers[0].spans[0]
    for layer in region.removable:
        partners = {layer - 1, layer + 1} & set(region.layers)
        assert any(single[layer] <= single[partner] for partner in partners)


def test_interlace_by_hand() -> None:
    single = [0.5, 0.1, 0.4, 0.2, 0.2, 0.9, 0.3, 0.3]
    triple = [0.6, 0.2, 0.5, 0.4, 0.3, 0.7]
    found = spanned(single, [0.1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.2], triple)
    # 1-2-3 is the most redundant triplet, then 4-5-6; neither a third one nor a pair is free.
    region = resolve("interlace:2", 8, found)
    assert (region.layers, region.removable) == ((2, 5), (1, 4))
    with pytest.raises(SpecError, match="only 2 pairs fit into 8 layers") as caught:
        resolve("interlace:3", 8, found)
    assert "1 to 2 layers" in str(caught.value)
    assert resolve("interlace:angular-distance:2", 8, found).layers == region.layers


def test_interlace_falls_back_to_pairs() -> None:
    found = spanned([0.2, 0.2, 0.2, 0.1, 0.3], [0.9, 0.9, 0.9, 0.5], [0.1, 0.5, 0.5])
    region = resolve("interlace:2", 5, found)
    assert (region.layers, region.removable) == ((1, 4), (0, 3))


def test_a_region_keeps_what_may_go(tmp_path: Path) -> None:
    region = Region(layers=(1,), num_layers=4, spec="interlace:1", selector="interlace", removable=(0,))
    write_document(tmp_path / "region.json", region)
    assert read_document(tmp_path / "region.json", Region) == region
    with pytest.raises(SpecError, match="names layer 4"):
        Region(layers=(1,), num_layers=4, spec="x", removable=(4,))
    for removable in ((1,), (0, 0)):
        with pytest.raises(SpecError, match="may remove a layer twice, or one of its own"):
            Region(layers=(1,), num_layers=4, spec="x", removable=removable)


REFUSED = {
    "spaced:a": ["'a' does not name a scorer and a size", "SCORER:SIZE"],
    "spaced::8": ["does not name a scorer and a size"],
    "scores:a@:8": ["no task follows the @ of 'a@'", "leave out the @"],
    "scores:@ocr:8": ["does not name a scorer and a size"],
    "scores:a@chart:2": ["no scores of task 'chart' here", "ocr, count", "--by task"],
    "scores:b:2": ["no scores of 'b' here", "add 'b' to analyze.scorers"],
    "scores:a:9": ["9 layers asked of a model with 4 layers"],
    "coverage:a@ocr,,count:2": ["'ocr,,count' has an empty task or one twice"],
    "coverage:a@ocr,ocr:2": ["'ocr,ocr' has an empty task or one twice"],
    "coverage:b:2": ["no scores of 'b' here"],
    "combined:a:2": ["'a' names only one scorer", "use scores:"],
    "combined:a+a:2": ["'a+a' names only one scorer, or one twice"],
    "combined:a+:2": ["does not name a scorer and a size"],
    "combined:a+c@ocr:2": ["no scores of 'c' here"],
    "interlace:0": ["0 is no layer at all"],
    "interlace": ["nothing follows the name"],
    "interlace:a:1": ["the scorer 'a' has no distances over spans of 3 layers", "angular-distance"],
    "interlace:1": ["no scores of 'angular-distance' here"],
}


@pytest.mark.parametrize(("spec", "words"), REFUSED.items())
def test_what_a_person_gets_wrong_is_said_in_words(spec: str, words: list[str]) -> None:
    found = scores({"ocr": [1.0, 2.0, 3.0, 4.0], "count": [1.0, 0.0, 0.0, 0.0]}, a=[1.0, 2.0, 3.0, 4.0])
    with pytest.raises(StriateError) as caught:
        resolve(spec, 4, found)
    text = str(caught.value)
    assert f"region {spec!r}" in text
    assert "allowed:" in text
    assert "next:" in text
    for word in words:
        assert word in text


def test_coverage_needs_scores_by_task() -> None:
    with pytest.raises(SpecError, match="coverage needs scores by task, and there are none") as caught:
        resolve("coverage:a:2", 4, scores(a=[1.0, 2.0, 3.0, 4.0]))
    assert "--by task" in str(caught.value)


def test_interlace_needs_three_layers() -> None:
    with pytest.raises(SpecError, match="a model with 2 layers has no triplet"):
        resolve("interlace:1", 2, spanned([0.1, 0.2], [0.1], []))


NEEDY = ["scores:a:2", "spaced:a:2", "coverage:a:2", "combined:a+b:2", "interlace:a:2", "scores:a@ocr:2"]


@pytest.mark.parametrize("spec", NEEDY)
def test_without_scores(spec: str) -> None:
    with pytest.raises(SpecError, match="needs scores, and there are none") as caught:
        resolve(spec, 8)
    assert "run `striate analyze` with the scorer 'a' first" in str(caught.value)


def test_every_selector_says_whether_it_needs_scores() -> None:
    needy = {parse_spec(spec).selector for spec in NEEDY}
    for strategy in SELECTORS:
        assert issubclass(strategy.params, SpecParams)
        assert strategy.params.needs_scores is (strategy.name in needy)


class FakeRun:
    """A run folder whose analysis has been done."""

    def __init__(self, spec: str) -> None:
        from striate.config import parse_config

        self.config = parse_config({"model": {"path": "m"}, "data": {"train": ["d"]}, "select": {"region": spec}})

    def output(self, stage: str, name: str, inputs: Any) -> str:
        return f"hash of {name}"

    def note_fingerprint(self, name: str, value: str) -> None:
        pass


@pytest.mark.parametrize("spec", [*NEEDY, "uniform:2", "all", "random:2"])
def test_a_region_from_scores_follows_from_them(spec: str, tmp_path: Path) -> None:
    run: Any = FakeRun(spec)
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]
    (tmp_path / "train.json").write_text(json.dumps([{"conversations": turns}]))
    keys = StageKeys(run, RunInputs("m", (tmp_path,)), list)
    assert keys.select()["scores"] == ("hash of scores.json" if spec in NEEDY else "")


def test_a_run_must_make_the_scores_that_it_needs() -> None:
    section = AnalyzeSection(scorers=("block-influence", "fisher"))
    for spec in ("uniform:8", "scores:fisher:2", "combined:fisher+block-influence:2", "region.json"):
        check_needs(parse_spec(spec), section)
    with pytest.raises(SpecError, match=r"needs scores of 'fishr', and analyze\.scorers does not name it") as caught:
        check_needs(parse_spec("combined:block-influence+fishr:2"), section)
    assert "did you mean 'fisher'?" in str(caught.value)
    with pytest.raises(SpecError, match="needs scores of 'angular-distance'"):
        check_needs(parse_spec("interlace:2"), section)
    for spec in ("coverage:fisher:2", "scores:fisher@ocr:2"):
        with pytest.raises(SpecError, match=r"needs scores by task, and analyze\.by is 'all'") as caught:
            check_needs(parse_spec(spec), section)
        assert "--set analyze.by=task" in str(caught.value)
        check_needs(parse_spec(spec), section.model_copy(update={"by": "task"}))
