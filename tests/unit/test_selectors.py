from __future__ import annotations

import math
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.artifacts import LayerScores, Region, Scores, write_document
from striate.errors import ArtifactError, StriateError
from striate.selectors import SELECTORS
from striate.selectors.paper import PAPER_LISTS
from striate.selectors.spec.grammar import parse_spec, resolve
from striate.selectors.spec.params import SpecParams
from striate.selectors.spec.size import read_size
from striate.stages.select import select

DOCS = Path(__file__).parents[2] / "docs" / "regions.md"
layers_and_count = st.integers(1, 130).flatmap(lambda total: st.tuples(st.just(total), st.integers(1, total)))


def entry_of(values: list[float], scorer: str = "block-influence") -> LayerScores:
    return LayerScores(scorer=scorer, values=tuple(values), low=tuple(values), high=tuple(values), samples=1)


def scores_of(values: list[float], scorer: str = "block-influence") -> Scores:
    return Scores(num_layers=len(values), samples=1, scorers=(entry_of(values, scorer),))


def layers(spec: str, num_layers: int, scores: Scores | None = None) -> tuple[int, ...]:
    return resolve(spec, num_layers, scores).layers


@given(layers_and_count, st.sampled_from(["uniform", "bottom", "top", "middle", "hybrid", "random"]))
def test_a_count_gives_that_many_layers_sorted_and_in_range(sizes: tuple[int, int], name: str) -> None:
    total, count = sizes
    chosen = layers(f"{name}:{count}", total)
    assert len(chosen) == count
    assert list(chosen) == sorted(set(chosen))
    assert 0 <= chosen[0] <= chosen[-1] < total


@given(st.integers(1, 200), st.integers(1, 10_000))
def test_a_share_gives_the_nearest_count_and_never_none(total: int, share: int) -> None:
    text = f"{share / 100:.2f}%"
    expected = max(1, math.floor(Fraction(share, 10_000) * total + Fraction(1, 2)))
    assert read_size(text).of(total) == expected == len(resolve(f"bottom:{text}", total))


def test_a_share_is_exact_where_floats_are_not() -> None:
    assert math.floor(0.29 * 50 + 0.5) == 14
    assert read_size("29%").of(50) == read_size("0.29").of(50) == 15


def test_a_point_makes_a_ratio() -> None:
    assert layers("top:1", 6) == (5,)
    assert layers("top:1.0", 6) == layers("top:100%", 6) == tuple(range(6))


@given(layers_and_count)
def test_uniform_is_the_formula_and_its_gaps_differ_by_at_most_one(sizes: tuple[int, int]) -> None:
    total, count = sizes
    chosen = layers(f"uniform:{count}", total)
    assert chosen == tuple(math.floor(Fraction(i * total, count)) for i in range(count))
    gaps = {b - a for a, b in zip(chosen, [*chosen[1:], total], strict=True)}
    assert max(gaps) - min(gaps) <= 1


@given(layers_and_count, st.integers(0, 140))
def test_an_offset_moves_every_layer_or_is_refused(sizes: tuple[int, int], offset: int) -> None:
    total, count = sizes
    plain = layers(f"uniform:{count}", total)
    if plain[-1] + offset < total:
        assert layers(f"uniform:{count}+{offset}", total) == tuple(layer + offset for layer in plain)
    else:
        with pytest.raises(StriateError, match="moves the last stripe"):
            layers(f"uniform:{count}+{offset}", total)


@given(layers_and_count, st.integers(0, 2**40))
def test_random_is_deterministic_and_nested(sizes: tuple[int, int], seed: int) -> None:
    total, count = sizes
    chosen = layers(f"random:{count}@seed{seed}", total)
    assert chosen == layers(f"random:{count}@seed{seed}", total)
    assert set(chosen) <= set(layers(f"random:{total}@seed{seed}", total))
    if count > 1:
        assert set(layers(f"random:{count - 1}@seed{seed}", total)) < set(chosen)


def test_random_draws_every_layer_about_equally_often() -> None:
    counts = [0] * 16
    for seed in range(800):
        for layer in layers(f"random:4@seed{seed}", 16):
            counts[layer] += 1
    assert min(counts) > 150
    assert max(counts) < 250
    assert layers("random:4", 16) == layers("random:4@seed0", 16)


@given(layers_and_count)
def test_blocks_are_where_their_names_say(sizes: tuple[int, int]) -> None:
    total, count = sizes
    assert layers(f"bottom:{count}", total) == tuple(range(count))
    assert layers(f"top:{count}", total) == tuple(range(total - count, total))
    middle = layers(f"middle:{count}", total)
    assert middle == tuple(range(middle[0], middle[0] + count))
    assert (total - 1 - middle[-1]) - middle[0] in (0, 1)
    hybrid = layers(f"hybrid:{count}", total)
    assert hybrid == tuple(range((count + 1) // 2)) + tuple(range(total - count // 2, total))


@given(layers_and_count, st.integers(0, 140))
def test_a_window_begins_at_its_layer_or_is_refused(sizes: tuple[int, int], start: int) -> None:
    total, count = sizes
    if start + count <= total:
        assert layers(f"window:{count}@{start}", total) == tuple(range(start, start + count))
    else:
        with pytest.raises(StriateError, match="go past the last of"):
            layers(f"window:{count}@{start}", total)


@given(st.integers(1, 200), st.integers(1, 10_000))
def test_shares_of_a_window_that_are_the_whole_together_reach_the_last_layer(total: int, share: int) -> None:
    size, below = f"{share / 100:.2f}%", f"{(10_000 - share) / 100:.2f}%"
    chosen = layers(f"window:{size}@{below}", total)
    assert chosen == tuple(range(chosen[0], chosen[0] + read_size(size).of(total)))
    assert chosen[0] == math.floor(Fraction(10_000 - share, 10_000) * total)
    # Where half a layer is rounded away, one is left above.
    assert total - 1 - chosen[-1] in (0, 1)


def test_blocks_are_windows() -> None:
    assert layers("window:25%@0", 32) == layers("window:8@0%", 32) == layers("bottom:8", 32)
    assert layers("window:25%@75%", 30) == layers("top:25%", 30)
    assert layers("window:0.25@0.4", 30) == layers(" window: 8 @ 12 ", 30) == tuple(range(12, 20))


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=60), st.data())
def test_scores_take_the_highest(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    chosen = layers(f"scores:block-influence:{count}", len(values), scores_of(values))
    left = [values[layer] for layer in range(len(values)) if layer not in chosen]
    assert len(chosen) == count
    assert not left or min(values[layer] for layer in chosen) >= max(left)


def test_equal_scores_prefer_the_layer_nearer_to_the_input() -> None:
    assert layers("scores:block-influence:2", 4, scores_of([0.5, 0.5, 0.5, 0.9])) == (0, 3)


def test_ids_may_come_in_any_order_and_with_spaces() -> None:
    assert layers(" ids:12, 0,8,4 ", 32) == (0, 4, 8, 12)


def test_the_published_lists_are_eight_layers_of_32() -> None:
    assert layers("paper:uniform", 32) == (0, 4, 8, 12, 18, 22, 26, 30)
    assert layers("paper:uniform-code", 32) == (1, 5, 9, 13, 19, 23, 27, 31)
    blocks = [layers(f"paper:{name}", 32) for name in PAPER_LISTS if name.startswith("block")]
    assert sorted(sum(blocks, ())) == list(range(32))
    assert all(len(chosen) == 8 for chosen in PAPER_LISTS.values())


def test_a_region_keeps_its_spec_and_selector() -> None:
    region = resolve(" uniform:25% ", 32)
    assert (region.spec, region.selector, region.num_layers, region.ratio) == ("uniform:25%", "uniform", 32, 0.25)
    assert select(32, "uniform:25%") == region


def test_a_region_file_is_read_back_unchanged(tmp_path: Path) -> None:
    region = resolve("random:3@seed5", 12)
    write_document(tmp_path / "region.json", region)
    assert resolve(str(tmp_path / "region.json"), 12) == region
    assert parse_spec("region.json").path == Path("region.json")
    assert resolve("other.json", 12, read_region=lambda path: region) == region


def documented_scores() -> Scores:
    """The scores that docs/regions.md describes."""
    rising = [0.01 * layer for layer in range(32)]
    spans = tuple(tuple(0.32 - 0.01 * layer for layer in range(33 - length)) for length in (1, 2, 3))
    angular = entry_of(list(spans[0]), "angular-distance").model_copy(update={"spans": spans})
    attention = entry_of([-abs(layer - 16.0) for layer in range(32)], "image-attention")
    reading = entry_of([max(0.0, 8.0 - layer) for layer in range(32)])
    counting = entry_of([max(0.0, layer - 23.0) for layer in range(32)])
    return Scores(
        num_layers=32,
        samples=1,
        scorers=(entry_of(rising), angular, attention),
        tasks={"ocr": (reading,), "count": (counting,)},
    )


def documented_rows() -> list[tuple[str, str, str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in DOCS.read_text().splitlines() if "|" in line]
    return [(row[0].strip("`"), row[1].strip("`"), row[2]) for row in cells if row[1].startswith("`")]


@pytest.mark.parametrize(("form", "example", "shown"), documented_rows())
def test_the_documented_table_is_true(form: str, example: str, shown: str) -> None:
    stored = resolve("uniform:25%", 32)
    region = resolve(example, 32, documented_scores(), read_region=lambda path: stored)
    assert (", ".join(map(str, region.layers)) or "(none)") == shown
    assert form == "a path" or form.partition(":")[0] == region.selector


def test_every_selector_is_documented() -> None:
    documented = {form.partition(":")[0] for form, _, _ in documented_rows()}
    assert documented == {*SELECTORS.names(), "a path"}


@pytest.mark.parametrize("name", SELECTORS.names())
def test_every_selector_describes_itself(name: str) -> None:
    strategy = SELECTORS.get(name)
    assert strategy.title
    assert strategy.summary[0].islower()
    assert not strategy.summary.endswith(".")
    assert issubclass(strategy.params, SpecParams)
    assert strategy.params.forms
    assert (strategy.function.__doc__ or "").startswith("Return")


REFUSED = {
    "unifrom:8": ["unknown selector 'unifrom'", "did you mean 'uniform'?", "path of a region.json"],
    "": ["unknown selector ''", "uniform, bottom"],
    "25%": ["did you mean 'uniform:25%'?"],
    "8": ["did you mean 'uniform:8'?"],
    "0,4,8": ["did you mean 'ids:0,4,8'?"],
    "uniform": ["nothing follows the name", "25%"],
    "uniform:": ["nothing follows the name"],
    "uniform:0": ["0 is no layer at all", "write `none`"],
    "top:0%": ["0% is no layer at all", "write `none`"],
    "bottom:0.0": ["0.0 is no layer at all"],
    "middle:120%": ["120% is more than all layers", "at most 100%"],
    "hybrid:1.5": ["1.5 is more than all layers", "at most 1"],
    "uniform:33": ["33 layers asked of a model with 32 layers", "1 to 32"],
    "random:40@seed1": ["40 layers asked of a model with 32 layers"],
    "uniform:-3": ["'-3' is not a number of layers"],
    "uniform:nan": ["'nan' is not a number of layers"],
    "uniform:99999999999": ["is not a number of layers"],
    "uniform:8+4": ["the offset 4 moves the last stripe to layer 32", "an offset of 0 to 3 for 8 of 32"],
    "uniform:8+x": ["the offset 'x' is not a whole number", "8+1"],
    "uniform:8+-1": ["the offset '-1' is not a whole number"],
    "random:8@3": ["'@3' is not a seed", "8@seed3"],
    "random:8@seed-1": ["'@seed-1' is not a seed"],
    "random:8@seedx": ["'@seedx' is not a seed"],
    "random:8@": ["'@' is not a seed"],
    "window": ["nothing follows the name", "25%@40%"],
    "window:8": ["'8' does not say where the window begins", "8@10 or 25%@40%"],
    "window:8@": ["'8@' does not say where the window begins"],
    "window:@8": ["'' is not a number of layers"],
    "window:0@3": ["0 is no layer at all"],
    "window:8@25": ["8 layers from layer 25 on go past the last of 32 layers", "layer 0 to 24"],
    "window:50%@60%": ["16 layers from layer 19 on go past the last of 32", "layer 0 to 16"],
    "window:8@100%": ["100% is above all layers", "below 100%"],
    "window:8@x": ["'x' is not a place among the layers", "counted from 0"],
    "window:8@-1": ["'-1' is not a place among the layers"],
    "ids:": ["nothing follows the name"],
    "ids:0,,4": ["'' is not a layer number", "0,4,8,12"],
    "ids:1-4": ["'1-4' is not a layer number"],
    "ids:0,40": ["names layer 40, but the model has 32 layers", "layers 0 to 31"],
    "ids:-1": ["names layer -1", "counted from 0"],
    "ids:4,4": ["out of order or twice", "remove the repeats"],
    "all:3": ["unexpected ':3'", "leave out the colon"],
    "none:": ["unexpected ':'"],
    "scores:block-influence": ["does not name a scorer and a size", "block-influence:25%"],
    "scores:block-influence:25%": ["there are none", "run `striate analyze` with the scorer 'block-influence'"],
    "paper:unifrm": ["the paper has no list called 'unifrm'", "did you mean 'uniform'?", "block-8-15"],
}


@pytest.mark.parametrize(("spec", "words"), REFUSED.items())
def test_what_a_person_gets_wrong_is_said_in_words(spec: str, words: list[str]) -> None:
    with pytest.raises(StriateError) as caught:
        resolve(spec, 32)
    text = str(caught.value)
    assert f"region {spec!r}" in text
    assert "allowed:" in text
    assert "next:" in text
    for word in words:
        assert word in text


def test_the_published_lists_need_32_layers() -> None:
    with pytest.raises(StriateError, match="lists are for 32 layers, and the model has 40") as caught:
        resolve("paper:uniform", 40)
    assert "uniform:25%" in str(caught.value)


def test_scores_of_another_model_or_scorer_are_refused() -> None:
    with pytest.raises(StriateError, match="scores are of 4 layers, and the model has 32"):
        resolve("scores:block-influence:2", 32, scores_of([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(ArtifactError, match="region 'scores:angular-distance:2': no scores of 'angular-distance'"):
        resolve("scores:angular-distance:2", 4, scores_of([1.0, 2.0, 3.0, 4.0]))
    with pytest.raises(StriateError, match="not numbers"):
        resolve("scores:block-influence:2", 2, scores_of([1.0, math.nan]))


def test_region_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "region.json"
    with pytest.raises(ArtifactError, match=r"can't read .*region\.json"):
        resolve(str(path), 32)
    write_document(path, Region(layers=(0, 1), num_layers=4, spec="bottom:2"))
    with pytest.raises(StriateError, match="is of a model with 4 layers, and this one has 32"):
        resolve(str(path), 32)


def test_a_model_without_layers_is_refused() -> None:
    with pytest.raises(StriateError, match="0 layers has no region"):
        select(0, "all")


def test_choosing_a_region_needs_no_torch() -> None:
    code = (
        "import sys, striate.stages.select as s; s.select(32, 'uniform:8');"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
