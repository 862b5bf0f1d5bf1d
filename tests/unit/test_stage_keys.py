"""Every setting of a run config: which stages it makes stale, and that something reads it."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

import striate
from striate.artifacts import LayerScores, Scores, write_document
from striate.config import RunConfig, auto_rate, parse_config
from striate.config.learning_rate import healing_rate
from striate.errors import ArtifactError
from striate.harness.suites import parse_suite
from striate.pipeline.preflight import labels_of
from striate.pipeline.run_inputs import locate_inputs
from striate.pipeline.stage_keys import StageKeys
from striate.progress import Silent
from striate.runs.config_changes import check_same_config
from striate.selectors.spec.grammar import resolve
from striate.storage.fingerprints import fingerprint_of
from striate.tasks.packs.items import Pack
from striate.tasks.packs.sources import Source, read_source

HEALED = {"heal", "evaluate:pruned", "suite:pruned"}
PRUNED = {"prune", *HEALED}
TRAINED = {"train", "evaluate:tuned", "suite:tuned", *PRUNED}
ASKED = {"evaluate:start", "evaluate:tuned", "evaluate:pruned"}
SUITES = {"suite:start", "suite:tuned", "suite:pruned"}
EVERY = {"analyze", "select", *TRAINED, *ASKED, *SUITES}
NONE: set[str] = set()

# Another value than BASE has, and the stages whose artifacts then no longer follow from the config.
STALE: dict[str, tuple[Any, set[str]]] = {
    "seed": (1, {"analyze", *TRAINED, *ASKED}),
    "model.path": ("owner/other", EVERY),
    "model.revision": ("v2", EVERY),
    "data.train": (["ROOT/more"], {"analyze", *TRAINED}),
    "data.max_train_samples": (3, TRAINED),
    "data.columns": ({"task": "kind"}, {"analyze", *TRAINED}),
    "data.question": ("What is it?", {"analyze", *TRAINED}),
    # Which pictures are found counts, not where they may lie.
    "data.images": (["ROOT/more"], NONE),
    "data.mix": ({"ROOT/data": 2}, TRAINED),
    "data.text": ("10%", TRAINED),
    "data.untagged": ("first", {"analyze", *TRAINED}),
    # What is learned is the same where nothing is broken, and recorded where something is.
    "data.broken": ("skip", NONE),
    "data.validate": ("ROOT/more", TRAINED),
    "data.calibration": (["ROOT/more"], {"analyze", *PRUNED}),
    "analyze.scorers": (["modality-block-influence"], {"analyze"}),
    "analyze.samples": (5, {"analyze"}),
    "analyze.by": ("task", {"analyze"}),
    "analyze.base": ("ROOT/base", {"analyze"}),
    "analyze.pairs": (7, {"analyze"}),
    "select.region": ("uniform:3", {"select", *TRAINED}),
    "train.method": ("full", TRAINED),
    "train.lora.r": (3, TRAINED),
    "train.lora.alpha": (3, TRAINED),
    "train.lora.dropout": (0.3, TRAINED),
    "train.lora.modules": ("gate+up", TRAINED),
    "train.lora.use_rslora": (True, TRAINED),
    "train.lora.use_dora": (True, TRAINED),
    "train.lora.rank_pattern": ({"q_proj": 3}, TRAINED),
    "train.lora.alpha_pattern": ({"q_proj": 3}, TRAINED),
    "train.resample.active": (2, TRAINED),
    "train.resample.every": (7, TRAINED),
    "train.resample.state": ("drop", TRAINED),
    "train.resample.order": ("moving", TRAINED),
    "train.projector": ("lora", TRAINED),
    "train.train_projector": (False, TRAINED),
    "train.vision": ("full", TRAINED),
    "train.vision_lr": (0.1, TRAINED),
    "train.vision_layers": ("top:2", TRAINED),
    "train.lr": (0.1, TRAINED),
    "train.projector_lr": (0.1, TRAINED),
    "train.optimizer": ("adamw-8bit", TRAINED),
    "train.batch_size": (16, TRAINED),
    "train.epochs": (2, TRAINED),
    "train.max_steps": (3, TRAINED),
    "train.warmup_ratio": (0.5, TRAINED),
    "train.scheduler": ("linear", TRAINED),
    "train.weight_decay": (0.1, TRAINED),
    "train.max_grad_norm": (0.1, TRAINED),
    "train.max_length": (99, {"analyze", *TRAINED}),
    "train.gradient_checkpointing": (True, TRAINED),
    "train.packing": (True, TRAINED),
    "train.image_tokens": ("region while training", TRAINED),
    "train.image_also": ("top:1", TRAINED),
    "train.image_shift": (False, TRAINED),
    "train.image_whole_every": (10, TRAINED),
    "train.image_check": (None, TRAINED),
    "train.frozen": ("fp8", TRAINED),
    "train.save_steps": (7, TRAINED),
    "train.validate_every": (7, TRAINED),
    "train.keep": ("best", TRAINED),
    "train.metric_for_best_model": ("text_loss", TRAINED),
    "train.early_stopping_patience": (3, TRAINED),
    "train.early_stopping_threshold": (0.1, TRAINED),
    "prune.remove": (2, PRUNED),
    "prune.scorer": ("answer-accuracy", PRUNED),
    "prune.samples": (7, PRUNED),
    "prune.text_weight": (0.1, PRUNED),
    "prune.compensate": ("refit", PRUNED),
    "heal.steps": (3, HEALED),
    "heal.region": ("beside", HEALED),
    "heal.method": ("full", HEALED),
    "heal.lr": (0.3, HEALED),
    "heal.ce": (0.5, HEALED),
    "heal.kl": (0.5, HEALED),
    "heal.hidden": (0.5, HEALED),
    "heal.top_k": (7, HEALED),
    "heal.text": (0.5, HEALED),
    "heal.text_data": (["ROOT/more"], HEALED),
    "prune.until": ("pack>=99", PRUNED),
    "prune.until_packs": (["ROOT/pack2"], NONE),
    "evaluate.packs": (["ROOT/pack", "ROOT/pack2"], ASKED),
    "evaluate.limit": (3, {*ASKED, *SUITES}),
    "evaluate.max_new_tokens": (3, ASKED),
    "evaluate.bootstrap": (123, ASKED),
    # What is compared, not what is answered: retention and gate are made anew each time.
    "evaluate.suites": (["lm-eval:arc_easy", "lm-eval:boolq"], NONE),
    "evaluate.models": (["start", "tuned"], NONE),
    "evaluate.others": ({"tuned all": "ROOT/base"}, NONE),
    "evaluate.baseline": ("tuned", NONE),
    "evaluate.gate": ("text>=99", NONE),
    "evaluate.effect": (2.0, NONE),
    "evaluate.floor": (True, NONE),
    # The page is written anew each time.
    "report.title": ("another", NONE),
    "report.examples": (3, NONE),
    # Where and how fast, not what is learned.
    "machine.device": ("cpu", NONE),
    "machine.dtype": ("float32", NONE),
    "machine.micro_batch": (4, NONE),
    "machine.eval_batch": (3, NONE),
    "machine.eval_tokens": (99, NONE),
    "machine.workers": (3, NONE),
    "machine.compile": ("off", NONE),
    "machine.graphs": ("off", NONE),
    "machine.memory_budget": (3, NONE),
    "machine.pack_tokens": (99, NONE),
    "machine.cache_vision": ("memory", NONE),
    "machine.cache_folder": ("ROOT/cache", NONE),
    "machine.max_pixels": (10**6, NONE),
    "machine.max_ratio": (200, NONE),
    "machine.log_to": (["wandb"], NONE),
}
# Settings that have another name today.
RENAMED = {"train.train_projector": "train.projector"}
FIXED = {
    "prune.when": "before is refused beside healing, which the base has: it has a test of its own",
    "version": "the only form of a run config so far",
    "heal.share": "beside heal.steps, which the base has, it can't be set: it has a test of its own",
}
NO_EFFECT: dict[str, str] = {}
"""Settings that nothing reads, each with the reason why it is still there."""


def base_config(root: Path) -> dict[str, Any]:
    return {
        "model": {"path": "owner/model"},
        "data": {"train": [str(root / "data")], "validate": str(root / "base")},
        "select": {"region": "uniform:2"},
        "train": {
            "batch_size": 8,
            "image_tokens": "region",
            "image_also": "bottom:1",
            "resample": {"active": 1},
        },
        "prune": {"remove": 1, "scorer": "answer-loss"},
        "heal": {"steps": 2},
        "evaluate": {"packs": [str(root / "pack")], "suites": ["lm-eval:arc_easy"]},
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("data", "more", "base"):
        (tmp_path / name).mkdir()
        turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": name}]
        samples = [{"image": "1.png", "conversations": turns}]
        (tmp_path / name / "train.json").write_text(json.dumps(samples))
        (tmp_path / name / "1.png").write_bytes(b"any")
        (tmp_path / name / "config.json").write_text("{}")
    for name in ("pack", "pack2"):
        (tmp_path / name).mkdir()
        row = {"id": name, "task": "t", "metric": "exact", "kind": "text", "question": "?", "answers": ["x"]}
        (tmp_path / name / "test.jsonl").write_text(json.dumps(row) + "\n")
    return tmp_path


class FinishedRun:
    """A run folder whose every stage has run; what a stage wrote is told by what it was made from."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.path = Path(config.data.train[0]).parent
        spec = config.select.region
        region = resolve("uniform:2" if spec.startswith("scores") else spec, 8)
        write_document(self.path / "region.json", region)

    def output(self, stage: str, name: str, inputs: dict[str, Any]) -> str:
        return fingerprint_of({"stage": stage, "name": name, **inputs})

    def note_fingerprint(self, name: str, value: str) -> None:
        pass


def _read(sources: Sequence[Source], limit: int | None) -> list[Pack]:
    return [read_source(source, limit) for source in sources]


def keys_of(config: RunConfig) -> dict[str, str]:
    """The key of every stage of `config`'s run."""
    run: Any = FinishedRun(config)
    inputs = locate_inputs(config, Silent())
    read = [partial(_read, sources, config.evaluate.limit) for sources in (inputs.packs, inputs.until_packs)]
    keys = StageKeys(run, inputs, *read)
    stages = {"analyze": keys.analyze(), "select": keys.select(), "train": keys.train(), "prune": keys.prune()}
    stages |= {"heal": keys.heal()} if config.heals else {}
    stages |= {f"evaluate:{label}": keys.evaluate(label) for label in labels_of(config)}
    suite = parse_suite(config.evaluate.suites[0])
    stages |= {f"suite:{label}": keys.suite(label, suite) for label in labels_of(config)}
    return {stage: fingerprint_of(inputs) for stage, inputs in stages.items()}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("analyze.samples=7", {"analyze", *PRUNED}),
        ("prune.scorer=modality-block-influence", PRUNED),
        ("prune.samples=7", NONE),
        ("prune.text_weight=0.1", NONE),
        ("prune.compensate=scale", PRUNED),
        ("prune.compensate=auto", PRUNED),
    ],
)
def test_what_layers_ranked_by_scores_follow_from(root: Path, change: str, expected: set[str]) -> None:
    by_scores = ("prune.scorer=block-influence", "prune.compensate=none")
    old, new = (keys_of(parse_config(base_config(root), [*by_scores, *more])) for more in ((), (change,)))
    assert {stage for stage in old if old[stage] != new[stage]} == expected


def test_with_pruning_first_the_tuned_model_follows_from_the_pruned_one(root: Path) -> None:
    raw, first = base_config(root), ["prune.when=before"]
    del raw["heal"]
    after, before = (keys_of(parse_config(raw, more)) for more in ([], first))
    pruned, follows = {"prune", "evaluate:pruned", "suite:pruned"}, TRAINED & after.keys()
    assert {stage for stage in after if after[stage] != before[stage]} == follows
    for change, expected in (
        ("prune.remove=2", follows),
        ("prune.samples=7", follows),
        ("train.lr=0.1", follows - pruned),
        ("data.max_train_samples=3", follows - pruned),
    ):
        new = keys_of(parse_config(raw, [*first, change]))
        assert {stage for stage in before if before[stage] != new[stage]} == expected
    with pytest.raises(ArtifactError, match=r"another config: prune\.when: after -> before"):
        check_same_config(root, parse_config(raw), parse_config(raw, first), overwrite=False)
    # Without removed layers it has no effect.
    old, new = (keys_of(parse_config(raw, ["prune.remove=0", *more])) for more in ([], first))
    assert old == new


def test_a_learning_rate_that_follows_from_the_region_counts_as_the_number_it_is(root: Path) -> None:
    def stale(one: list[str], other: list[str]) -> set[str]:
        old, new = (keys_of(parse_config(base_config(root), more)) for more in (one, other))
        return {stage for stage in old if old[stage] != new[stage]}

    # Of the region's two layers, one trains at a time, of eight.
    rate = auto_rate("lora", 1 / 8)
    number, same = f"train.lr={rate}", f"heal.lr={healing_rate('lora', rate)}"
    assert stale(["train.lr=auto", "heal.lr=auto"], [number, same]) == NONE
    assert stale([number, "heal.lr=auto"], [number, same]) == NONE
    assert stale(["train.lr=auto", "heal.lr=auto"], ["train.lr=auto", f"heal.lr={2 * rate}"]) == HEALED
    assert stale(["train.lr=auto"], [number]) == NONE
    assert stale(["train.lr=auto"], ["train.lr=auto", "train.resample={}"]) == TRAINED


def test_layers_that_went_before_tuning_are_none_of_the_model_that_is_tuned(root: Path) -> None:
    raw = base_config(root)
    del raw["heal"]
    first = ["prune.when=before", "prune.remove=4", "train.resample={}"]
    auto, number = (keys_of(parse_config(raw, [*first, f"train.lr={lr}"])) for lr in ("auto", auto_rate("lora", 2 / 4)))
    assert auto == number


def test_layers_that_scores_choose_to_compute_image_tokens_count_as_their_numbers(root: Path) -> None:
    raw = base_config(root)
    raw["train"] |= {"resample": {}, "image_also": "scores:block-influence:2"}

    def keys(values: tuple[float, ...], *changes: str) -> dict[str, str]:
        entry = LayerScores(scorer="block-influence", values=values, low=values, high=values, samples=1)
        write_document(root / "scores.json", Scores(num_layers=len(values), samples=1, scorers=(entry,)))
        return keys_of(parse_config(raw, changes))

    def stale(one: dict[str, str], other: dict[str, str]) -> set[str]:
        return {stage for stage in one if one[stage] != other[stage]}

    # The region is 0 and 4.
    old = keys((9, 1, 2, 0, 0, 0, 0, 0))
    assert stale(old, keys((9, 0, 3, 0, 0, 0, 0, 0))) == NONE
    assert stale(old, keys((9, 0, 2, 0, 0, 0, 0, 0), "train.image_also=ids:2")) == NONE
    assert stale(old, keys((9, 0, 0, 0, 0, 0, 0, 4))) == TRAINED
    assert stale(old, keys((9, 0, 3, 0, 0, 0, 0, 0), "train.image_also=scores:block-influence:3")) == TRAINED


def test_a_percentage_of_layers_is_what_the_pruned_model_follows_from(root: Path) -> None:
    old, new = (keys_of(parse_config(base_config(root), more)) for more in ([], ["prune.remove=25%"]))
    assert {stage for stage in old if old[stage] != new[stage]} == PRUNED


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("prune.samples=7", PRUNED),
        ("prune.text_weight=0.1", NONE),
        ("data.calibration=[ROOT/more]", {"analyze", *PRUNED}),
        ("train.max_length=99", {"analyze", *TRAINED}),
    ],
)
def test_what_compensation_follows_from(root: Path, change: str, expected: set[str]) -> None:
    settings = ["prune.scorer=block-influence", "prune.compensate=refit"]
    changed = [*settings, change.replace("ROOT", str(root))]
    old, new = (keys_of(parse_config(base_config(root), more)) for more in (settings, changed))
    assert {stage for stage in old if old[stage] != new[stage]} == expected


def test_a_setting_that_earlier_runs_lacked_is_no_part_of_their_keys(root: Path) -> None:
    run: Any = FinishedRun(parse_config(base_config(root), ["prune.compensate=none"]))
    keys = StageKeys(run, locate_inputs(run.config, Silent()), list)
    assert set(keys.prune()["section"]) == {"remove", "scorer", "samples", "text_weight"}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("prune.until_packs=[ROOT/pack2]", PRUNED),
        ("evaluate.packs=[ROOT/pack2]", {*PRUNED, *ASKED}),
        ("evaluate.max_new_tokens=3", {*PRUNED, *ASKED}),
        ("evaluate.gate=pack>=99", NONE),
        ("heal.steps=3", PRUNED),
        ("heal.lr=0.3", PRUNED),
    ],
)
def test_what_the_number_of_layers_follows_from_where_a_gate_chooses_it(
    root: Path, change: str, expected: set[str]
) -> None:
    settings = ["prune.until='text>=99'"]
    changed = [*settings, change.replace("ROOT", str(root))]
    old, new = (keys_of(parse_config(base_config(root), more)) for more in (settings, changed))
    assert {stage for stage in old if old[stage] != new[stage]} == expected


def settings_of(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """The dotted name of every setting, sections within sections included."""
    for name, field in section.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        sections = [kind for kind in inner if issubclass(kind, BaseModel)]
        if sections:
            yield from settings_of(sections[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def test_healing_goes_stale_with_how_much_is_learned_and_alone(root: Path) -> None:
    shares = ([], ["heal={share: 5%}"], ["heal={share: 6%}"])
    keys = [keys_of(parse_config(base_config(root), share)) for share in shares]
    for old, new in ((keys[0], keys[1]), (keys[1], keys[2])):
        assert {stage for stage in old if old[stage] != new[stage]} == HEALED
    unhealed = keys_of(parse_config(base_config(root), ["heal={}"]))
    assert {stage for stage in unhealed if unhealed[stage] != keys[0][stage]} == HEALED - {"heal"}


def test_every_setting_is_in_the_table() -> None:
    assert set(settings_of()) == {*STALE, *FIXED}


@pytest.mark.parametrize("setting", STALE)
def test_a_setting_makes_stale_what_follows_from_it_and_nothing_else(setting: str, root: Path) -> None:
    value, expected = STALE[setting]
    text = json.dumps(value).replace("ROOT", str(root))
    before = parse_config(base_config(root))
    after = parse_config(base_config(root), [f"{setting}={text}"])
    assert before != after, "the table holds the same value as the base"
    old, new = keys_of(before), keys_of(after)
    assert {stage for stage in old.keys() & new.keys() if old[stage] != new[stage]} == expected


@pytest.mark.parametrize("setting", STALE)
def test_a_run_folder_goes_on_with_another_value_only_where_nothing_goes_stale(setting: str, root: Path) -> None:
    value, stale = STALE[setting]
    before = parse_config(base_config(root))
    after = parse_config(base_config(root), [f"{setting}={json.dumps(value).replace('ROOT', str(root))}"])
    name = RENAMED.get(setting, setting)
    if stale:
        with pytest.raises(ArtifactError, match=f"holds a run of another config: .*{re.escape(name)}"):
            check_same_config(root, before, after, overwrite=False)
    check_same_config(root, before, after, overwrite=bool(stale))


def test_settings_that_came_later_are_noted_only_where_they_differ(root: Path) -> None:
    raw = base_config(root)
    del raw["data"]["validate"]
    config = parse_config(raw)
    new = {"validate_every", "keep", "metric_for_best_model", "early_stopping_patience", "early_stopping_threshold"}
    new |= {"vision", "vision_lr", "vision_layers", "image_whole_every", "image_check"}
    # The projector is noted by its earlier name.
    assert set(config.train.model_dump()) - set(config.train.noted()) == new | {"projector"}
    assert config.train.model_copy(update={"validate_every": 5}).noted()["validate_every"] == 5
    run: Any = FinishedRun(config)
    assert "validate" not in StageKeys(run, locate_inputs(config, Silent()), list).train()
    share = parse_config(raw, ["data.validate=2%"])
    run = FinishedRun(share)
    assert StageKeys(run, locate_inputs(share, Silent()), list).train()["validate"] == "2%"


def test_a_region_from_scores_goes_stale_with_them(root: Path) -> None:
    scored = "select.region=scores:block-influence:2"
    old = keys_of(parse_config(base_config(root), [scored]))
    new = keys_of(parse_config(base_config(root), [scored, "analyze.samples=5"]))
    assert {stage for stage in old if old[stage] != new[stage]} == {"analyze", "select", *TRAINED}


def test_data_that_changes_on_disk_makes_stale_what_reads_it(root: Path) -> None:
    config = parse_config(base_config(root))
    old = keys_of(config)
    samples = root / "data" / "train.json"
    samples.write_text(samples.read_text().replace("What?", "Which?"))
    new = keys_of(config)
    assert {stage for stage in old if old[stage] != new[stage]} == {"analyze", *TRAINED}


def pack_with_data(root: Path) -> RunConfig:
    """A config whose training data, test pack and models lie in folders with more in them."""
    for name in ("start", "other", "tasks"):
        (root / name).mkdir()
        (root / name / "config.json").write_text("{}")
        (root / name / "model.safetensors").write_bytes(b"weights")
    (root / "tasks" / "task.yaml").write_text("task: t")
    pack = root / "pack"
    (pack / "train.json").write_text((root / "data" / "train.json").read_text())
    for number in (1, 2, 3):
        (pack / f"{number}.png").write_bytes(b"any")
    row = {"id": "seen", "metric": "exact", "question": "?", "answers": ["x"], "image": "2.png"}
    (pack / "test.jsonl").write_text((pack / "test.jsonl").read_text() + json.dumps(row) + "\n")
    raw = base_config(root)
    raw["model"]["path"] = str(root / "start")
    raw["data"]["train"] = [str(pack)]
    raw["evaluate"] = {"packs": [str(pack)], "suites": [f"lm-eval:arc_easy@{root / 'tasks'}"]}
    raw["evaluate"]["others"] = {"other": str(root / "other")}
    return parse_config(raw)


EVALUATED = {*ASKED, "evaluate:other"}
# A file of these folders, and the stages that read it.
READ_BY = {
    "pack/test.jsonl": EVALUATED,
    "pack/2.png": EVALUATED,
    "pack/1.png": {"analyze", *TRAINED},
    "pack/3.png": NONE,
    "pack/README.md": NONE,
    "pack/.DS_Store": NONE,
    "pack/images/Thumbs.db": NONE,
    "pack/notes.txt": NONE,
    "start/.DS_Store": NONE,
    "start/README.md": NONE,
    "start/LICENSE.txt": NONE,
    "start/.git/config.json": NONE,
    "start/trainer_state.json": NONE,
    "start/checkpoint-100/model.safetensors": NONE,
    "start/original/consolidated.00.pth": NONE,
    "start/model.safetensors": EVERY - {"suite:other"},
    "start/tokenizer.model": EVERY,
    "start/merges.txt": EVERY,
    "start/additional_chat_templates/tool.jinja": EVERY,
    "other/config.json": {"evaluate:other", "suite:other"},
    "tasks/.task.yaml.swp": NONE,
    "tasks/README.md": NONE,
}


@pytest.mark.parametrize("name", READ_BY)
def test_a_stage_goes_stale_with_the_files_that_it_reads_and_no_others(name: str, root: Path) -> None:
    config = pack_with_data(root)
    old = keys_of(config)
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_bytes() if file.exists() else b""
    file.write_bytes(before.replace(b"?", b"!").replace(b"any", b"new").replace(b"{}", b"{ }") + b" ")
    new = keys_of(config)
    assert {stage for stage in old if old[stage] != new[stage]} == READ_BY[name]


def test_the_base_of_an_adapter_is_read_with_it(root: Path) -> None:
    config = pack_with_data(root)
    (root / "other" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(root / "base")}))
    (root / "base" / "config.json").write_text("{}")
    old = keys_of(config)
    (root / "base" / "config.json").write_text("{ }")
    new = keys_of(config)
    assert {stage for stage in old if old[stage] != new[stage]} == {"evaluate:other", "suite:other"}


@pytest.mark.parametrize("name", ["data/train.json", "start/model.safetensors"])
def test_a_change_in_the_middle_of_a_large_file_is_seen(name: str, root: Path) -> None:
    config = parse_config({**base_config(root), "model": {"path": str(root / "start")}})
    (root / "start").mkdir()
    filler = b" " * (20 * 2**20)
    middle = filler + b"[" + b" " * 2**20 + b"]"
    (root / name).write_bytes((root / name).read_bytes() + filler if "train" in name else middle)
    old = keys_of(config)
    with (root / name).open("r+b") as stream:
        stream.seek(7 * 2**20)
        stream.write(b"\n")
    new = keys_of(config)
    assert {"analyze", *TRAINED} <= {stage for stage in old if old[stage] != new[stage]}


def test_every_setting_is_read_somewhere() -> None:
    package = Path(striate.__file__).parent
    files = [path for path in package.rglob("*.py") if not path.is_relative_to(package / "config")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    read = {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    unread = {setting for setting in STALE if setting.rpartition(".")[2] not in read}
    assert unread == set(NO_EFFECT)
