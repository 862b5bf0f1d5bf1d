"""The study's sweeps are what docs/study.md says: each claim's arms, a factor 2 between rates, one projector's rate."""

from __future__ import annotations

import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from striate.config import load_config
from striate.pipeline.sweeps.choosing import classes_of
from striate.pipeline.sweeps.plan import Plan, Planned
from striate.selectors.spec.grammar import parse_spec, resolve
from striate.selectors.spec.required_scores import check_needs

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "study"
CHOOSING = ["arms", "data-10", "data-25", "full-weights", "reduced"]
DOCS = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
LAYERS = 30
# Of the built-in LVLM's language model: hidden size, size of keys and values, intermediate size.
HIDDEN, KEYS, INNER = 576, 192, 1536


@cache
def plan(name: str) -> Plan:
    return Plan(FOLDER / f"{name}.yaml")


def rows(name: str) -> dict[str, Planned]:
    return {run.row: run for run in plan(name).runs if run.row}


@pytest.mark.parametrize("name", CHOOSING)
def test_every_arm_has_its_own_rate_of_five_a_factor_of_two_apart(name: str) -> None:
    found = plan(name)
    choose = found.sweep.choose
    assert choose is not None
    for same in classes_of(found.runs, choose.over):
        rates = [float(str(run.config.train.lr)) for run in same]
        assert len(rates) == 5
        assert {round(higher / lower, 9) for lower, higher in pairwise(rates)} == {2.0}
    configs = [run.config for run in found.runs]
    assert {(config.train.projector_lr, config.seed, config.train.epochs) for config in configs} == {(2e-4, 0, 1)}
    assert len(choose.seeds) >= 3
    # Test packs choose nothing: what is measured is held out of the training data.
    assert {str(config.data.validate) for config in configs} == {"5%"}


def test_the_reduced_study_is_as_it_was_designed() -> None:
    found = plan("reduced")
    assert found.sweep.choose is not None
    classes = classes_of(found.runs, found.sweep.choose.over)
    assert [same[0].settings["select.region"] for same in classes] == ["all", "uniform:25%", "middle:25%", "top:25%"]
    assert {run.config.data.max_train_samples for run in found.runs} == {2000}


def test_the_form_for_one_gpu_is_twelve_regions_at_five_rates() -> None:
    found = plan("regions")
    assert found.sweep.choose is not None
    classes = classes_of(found.runs, found.sweep.choose.over)
    assert [len(same) for same in classes] == [5] * 12
    for same in classes:
        rates = [float(str(run.config.train.lr)) for run in same]
        assert {round(higher / lower, 9) for lower, higher in pairwise(rates)} == {2.0}
    specs = {same[0].config.select.region for same in classes}
    assert {spec.partition(":")[2] for spec in specs} >= {"25%", "25%+1", "50%"}
    assert {(run.config.train.method, str(run.config.data.validate)) for run in found.runs} == {("full", "2%")}
    assert len(found.runs) == 60


def test_sizes_of_the_claim_have_five_rates_with_the_data_and_steps_of_the_regions() -> None:
    found, regions = plan("sizes"), plan("regions").runs[0].config
    assert found.sweep.choose is not None
    assert [len(same) for same in classes_of(found.runs, found.sweep.choose.over)] == [5] * 7 + [1]
    sizes = {len(resolve(parse_spec(run.config.select.region), LAYERS).layers) for run in found.runs}
    assert sizes == {30, 15, 8, 6, 4, 2, 1, 0}
    for config in (run.config for run in found.runs):
        assert config.data == regions.data
        assert config.evaluate == regions.evaluate
        assert config.train.model_copy(update={"lr": regions.train.lr}) == regions.train


def test_rules_for_image_tokens_differ_from_the_regions_in_these_alone() -> None:
    found, regions = plan("fast-modes"), plan("regions").runs
    exact = next(run.config for run in regions if run.name == "region=uniform-25%,lr=0.0016")
    ours = {"image_tokens", "image_also", "image_whole_every", "image_check", "validate_every"}
    rules = set()
    for config in (run.config for run in found.runs):
        assert config.data == exact.data
        assert config.evaluate == exact.evaluate
        assert config.select == exact.select
        assert config.train.model_dump(exclude=ours) == exact.train.model_dump(exclude=ours)
        rules.add((config.train.image_tokens, config.train.image_also, config.train.image_whole_every))
        # What a rule costs is what is asked: none is refused for it beforehand.
        assert config.train.image_tokens == "all" or config.train.image_check is None
    assert len(rules) == 6
    half = {
        layer
        for spec in (exact.select.region, rows("fast-modes")["half"].config.train.image_also)
        for layer in resolve(parse_spec(spec), LAYERS).layers
    }
    assert len(half) == LAYERS // 2
    assert sorted(run.config.seed for run in found.runs) == sorted([0, 1, 2] * 6)


def test_rules_that_may_come_closer_differ_from_exact_training_in_these_alone() -> None:
    found = plan("closer-modes")
    exact = rows("fast-modes")["exact"].config
    ours = {"image_tokens", "image_whole_every", "image_check"}
    more = {"longer": {"max_steps"}, "dense": {"lr"}}
    for run in found.runs:
        assert run.config.data == exact.data
        assert run.config.evaluate == exact.evaluate
        assert (run.config.select == exact.select) is (run.row != "dense")
        excluded = ours | more.get(run.row, set())
        assert run.config.train.model_dump(exclude=excluded) == exact.train.model_dump(exclude=excluded)
    chosen = rows("closer-modes")
    dense = chosen["dense"].config
    assert len(resolve(parse_spec(dense.select.region), LAYERS).layers) == LAYERS // 2
    rules = {name: (run.config.train.image_tokens, run.config.train.image_whole_every) for name, run in chosen.items()}
    assert rules == {
        "exact": ("all", 0),
        "while": ("region while training", 0),
        "while-tenth": ("region while training", 10),
        "while-fifth": ("region while training", 5),
        "longer": ("region", 10),
        "dense": ("region", 0),
    }
    assert chosen["longer"].config.train.max_steps == 400
    assert sorted(run.config.seed for run in found.runs) == sorted([0, 1, 2] * 6)


def test_real_pictures_are_learned_at_six_rates_and_the_projector_alone_at_one() -> None:
    found = plan("photos")
    assert found.sweep.choose is not None
    assert [len(same) for same in classes_of(found.runs, found.sweep.choose.over)] == [6, 6, 1]
    configs = [run.config for run in found.runs]
    learned = {folder.partition("/")[2] for config in configs for folder in config.data.train} - {"text_train"}
    assert learned == {str(pack).partition("/")[2] for pack in configs[0].evaluate.packs if "text_" not in str(pack)}


def test_a_second_model_is_aligned_with_its_language_model_as_it_is() -> None:
    config = load_config(FOLDER / "align.yaml")
    assert (config.select.region, config.train.method, config.train.vision) == ("none", "full", "full")
    assert list(config.data.train) == [str(pack) for pack in config.evaluate.packs]


def test_every_claim_has_its_arms() -> None:
    claims = re.findall(r"^\| (\d[ab]?) \|", DOCS.partition("## Arms")[0], flags=re.MULTILINE)
    table = DOCS.partition("## The arms as sweeps")[2].partition("\n## ")[0]
    armed = dict(re.findall(r"^\| (\d[^|]*?) \| (`configs[^|]*?) \|", table, flags=re.MULTILINE))
    told = {claim for cell in armed for claim in re.findall(r"\d[ab]?", cell)}
    assert claims == ["1", "2", "3a", "3b", "4", "5", "6", "7", "8"]
    assert told == set(claims)
    files = set(re.findall(r"`configs/study/([\w-]+)\.yaml`", table)) - {"run"}
    assert files == {file.stem for file in FOLDER.glob("*.yaml")} - {
        "run",
        "one-gpu",
        "align",
        "reduced",
        "regions",
        "sizes",
        "fast-modes",
        "closer-modes",
    }
    # Every row of the arms is told, by its name or as one of a kind.
    arms = [line for line in table.splitlines() if line.startswith("|") and "arms.yaml" in line]
    named = {name for line in arms for name in re.findall(r"`([\w+-]+)`", line.split("|")[3])}
    kinds = re.compile(r"(scores|spaced)-.*|random-[1-5]")
    untold = {name for name in rows("arms") if name not in named and not kinds.fullmatch(name)}
    assert untold == set()
    assert named - {"scores-SCORER", "spaced-SCORER"} <= set(rows("arms"))
    assert f"{len(plan('arms').runs)} runs before seeds" in table


def test_the_regions_are_a_quarter_and_the_sizes_those_of_the_claim() -> None:
    regions = {name: parse_spec(run.config.select.region) for name, run in rows("arms").items()}
    chosen = {name: resolve(spec, LAYERS).layers for name, spec in regions.items() if not spec.needs_scores}
    quarter = {"uniform", "uniform+1", "bottom", "middle", "top", "hybrid", *(f"random-{n}" for n in range(1, 6))}
    assert {len(chosen[name]) for name in quarter} == {8}
    assert len({chosen[name] for name in quarter}) == len(quarter)
    sizes = [len(chosen[name]) for name in ("all", "uniform", "none")]
    sizes += [len(layers) for name, layers in chosen.items() if name.startswith("size-")]
    assert sorted(sizes, reverse=True) == [30, 15, 12, 8, 6, 4, 2, 1, 0]
    by_scores = {name for name, spec in regions.items() if spec.needs_scores}
    scorers = rows("arms")["all"].config.analyze.scorers
    assert len(scorers) == 5
    assert by_scores == {f"{kind}-{scorer}" for kind in ("scores", "spaced") for scorer in scorers} | {"coverage"}
    assert all(regions[name].text.split(":")[1] == name.partition("-")[2] for name in by_scores - {"coverage"})
    assert rows("arms")["coverage"].config.analyze.by == "task"


def test_rivals_train_about_as_many_weights_as_a_quarter() -> None:
    attention, gate_up = 2 * (2 * HIDDEN) + 2 * (HIDDEN + KEYS), 2 * (HIDDEN + INNER)
    weights = {"thin": attention + gate_up + HIDDEN + INNER, "attention": attention, "gate-up": gate_up}
    a_quarter = 8 * 32 * weights["thin"]
    for name, of_a_rank in weights.items():
        lora = rows("arms")[name].config.train.lora
        assert lora.alpha == 2 * lora.r
        assert LAYERS * lora.r * of_a_rank == pytest.approx(a_quarter, rel=0.07)


def test_others_are_held_against_all_layers_and_no_rival() -> None:
    found = plan("arms")
    assert {run.row for run in found.runs if run.has(found.sweep.compare)} == {"all"}


def test_shares_of_the_data_and_of_the_layers_removed_are_those_of_the_claims() -> None:
    samples = [plan(name).runs[0].config.data.max_train_samples for name in ("reduced", "data-25", "data-10")]
    assert samples == [2000, 500, 200]
    removed = {
        (run.config.select.region, str(run.config.prune.remove), run.config.seed) for run in plan("pruning").runs
    }
    shares = ("10%", "20%", "25%", "33%", "50%")
    assert removed == {
        (region, share, seed) for region in ("all", "uniform:25%") for share in shares for seed in range(3)
    }


def test_what_a_rule_for_image_tokens_costs_is_measured_and_refuses_no_arm() -> None:
    ruled = {name: run.config for name, run in rows("arms").items() if name.startswith("image-")}
    assert {config.train.image_check for config in ruled.values()} == {None}
    assert {config.select.region for config in ruled.values()} == {"uniform:25%"}
    assert {name: config.train.image_also for name, config in ruled.items() if config.train.image_also != "none"} == {
        "image-bottom": "bottom:8",
        "image-window": "window:25%@25%",
        "image-contribution": "scores:layer-contribution-image:25%",
    }
    assert {
        name: config.train.image_whole_every for name, config in ruled.items() if config.train.image_whole_every
    } == {"image-whole": 10}
    check_needs(parse_spec(ruled["image-contribution"].train.image_also), ruled["image-contribution"].analyze)
