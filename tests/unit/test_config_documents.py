"""The run config: strict, frozen, overridable, and written so that it reads back equal."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from striate.config import (
    HealSection,
    MachineSection,
    RunConfig,
    TrainSection,
    dump_config,
    load_config,
    parse_config,
)
from striate.demo.places import quickstart_config
from striate.errors import ConfigError

RAW: dict[str, Any] = {"model": {"path": "m"}, "data": {"train": ["d"]}}


def refusal(raw: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, overrides, source="run.yaml")
    return str(caught.value)


def test_defaults_are_the_papers() -> None:
    config = parse_config(RAW)
    assert (config.train.method, config.train.lora.r, config.train.lora.alpha) == ("lora", 128, 256)
    assert (config.train.lr, config.train.projector_lr, config.train.batch_size) == (2e-4, 2e-5, 128)
    assert config.select.region == "uniform:25%"
    assert config.prune.remove == 0


def test_frozen_all_the_way() -> None:
    config = parse_config(RAW)
    with pytest.raises(ValidationError):
        config.train.lora.r = 4  # type: ignore[misc]
    assert isinstance(hash(config.train), int)


def test_reads_back_equal(tmp_path: Path) -> None:
    config = parse_config(RAW, ["train.lr=3.3e-5", "report.title='a: \"b\" # été'", "data.calibration=[x, y]"])
    path = tmp_path / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(path) == config
    assert dump_config(load_config(path)) == dump_config(config)


def test_quickstart_config_reads_back_equal() -> None:
    config = quickstart_config(("train.max_steps=2",))
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert (config.model.path, config.train.max_steps, config.prune.remove) == ("builtin", 2, 3)
    assert resources.files("striate.demo").joinpath("quickstart.yaml").is_file()


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_example_configs_are_valid(path: Path) -> None:
    assert load_config(path).model.path


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("train.lr=1e-4", ("train", "lr"), 1e-4),
        ("train.lr=1.0e-4", ("train", "lr"), 1e-4),
        ("train.lr=auto", ("train", "lr"), "auto"),
        ("heal.lr=auto", ("heal", "lr"), "auto"),
        ("heal.lr=null", ("heal", "lr"), None),
        ("train.lora.r=4", ("train", "lora", "r"), 4),
        (" seed = 3", ("seed",), 3),
        ("data.train=[a, b]", ("data", "train"), ("a", "b")),
        ("train.max_steps=null", ("train", "max_steps"), None),
        ("select.region=ids:0,4", ("select", "region"), "ids:0,4"),
        ("select.region=uniform:25%", ("select", "region"), "uniform:25%"),
        ("report.title=a=b", ("report", "title"), "a=b"),
        ("train.projector=frozen", ("train", "projector"), "frozen"),
        ("train.train_projector=false", ("train", "projector"), "frozen"),
        ("train.train_projector=true", ("train", "projector"), "full"),
    ],
)
def test_override(override: str, place: tuple[str, ...], value: Any) -> None:
    found: Any = parse_config(RAW, [override])
    for part in place:
        found = getattr(found, part)
    assert found == value


def test_later_override_wins_and_source_is_untouched() -> None:
    raw = {**RAW, "train": {"lr": 1.0}}
    assert parse_config(raw, ["train.lr=2", "train.lr=3"]).train.lr == 3
    assert raw["train"] == {"lr": 1.0}
    assert parse_config(raw, ["train.epochs=2"]).train.lr == 1.0


@pytest.mark.parametrize(
    ("override", "text"),
    [
        ("train.lr", "--set 'train.lr' has no '='\n  allowed: --set section.key=value"),
        ("=3", "--set '=3' has no '='"),
        ("x." * 3000 + "x=1", "has 3001 parts"),
        ("model.path.deep=3", "--set 'model.path.deep=3': 'path' is not a section"),
        ("train.lr=[1", "--set 'train.lr=[1': the value is not YAML"),
        ("train.lr=fast", "run.yaml: train.lr: 'fast' is neither a number over 0 to 1e+38 nor auto"),
        ("train.lr=0", "run.yaml: train.lr: 0 is neither a number over 0 to 1e+38 nor auto"),
        ("train.lr=true", "run.yaml: train.lr: True is neither a number over 0 to 1e+38 nor auto"),
        ("train.lr=null", "run.yaml: train.lr: None is neither a number over 0 to 1e+38 nor auto"),
        ("heal.lr=automatic", "run.yaml: heal.lr: 'automatic' is neither a number over 0 to 1e+38 nor auto"),
        ("train.batch_sise=3", "run.yaml: unknown key 'train.batch_sise'; did you mean 'train.batch_size'?"),
        ("train.lora.rank=3", "run.yaml: unknown key 'train.lora.rank'\n"),
        ("train.x=3", "run.yaml: unknown key 'train.x'\n"),
        ("data.train=photos", "run.yaml: data.train: 'photos' is no list: write [photos]\n"),
        ("lr=3", "run.yaml: unknown key 'lr'; did you mean 'train.lr'?"),
        ("trian.lr=3", "run.yaml: unknown key 'trian'; did you mean 'train'?"),
        ("data.columns={image:file}", "'image:file' is one word: write a space behind the colon, {image: file}"),
        (
            "data.mix={hf:me/chat:20%}",
            "'hf:me/chat:20%' is one word: write a space behind the colon, {hf:me/chat: 20%}",
        ),
        ("data.mix={hf:me/chat: }", "data.mix.hf:me/chat.float: Input should be a valid number"),
        ("evaluate.gate={a:b}", "'a:b' is one word"),
        ("train.method=dora", "run.yaml: train.method: Input should be 'lora', 'qlora' or 'full' (given: 'dora')"),
        (
            "train=full",
            "run.yaml: train: Input should be a valid dictionary or instance of TrainSection (given: 'full')",
        ),
        ("data.train=[]", "run.yaml: data.train: Tuple should have at least 1 item after validation, not 0"),
        ("model.path=3", "run.yaml: model.path: Input should be a valid string (given: 3)"),
        ("version=2", "run.yaml: version: Input should be 1 (given: 2)"),
        (
            "evaluate.models=[start, tunned]",
            "run.yaml: evaluate.models.1: Input should be 'start', 'tuned', 'unhealed' or 'pruned'",
        ),
        ("heal.share=150%", "run.yaml: heal.share: Input should be less than or equal to 1 (given: 1.5)"),
        ("heal.share=some%", "run.yaml: heal.share: Input should be a valid number"),
        ("heal={steps: 3, share: 5%}", "run.yaml: heal: steps and share are both set, and each says how long"),
        ("heal={ce: 0, kl: 0}", "run.yaml: heal: ce, kl and hidden are all 0: there is nothing to learn"),
        ("evaluate={packs: [p], baseline: unhealed, models: [unhealed]}", "'unhealed', but nothing is healed"),
    ],
)
def test_refused_override(override: str, text: str) -> None:
    assert text in refusal(RAW, override)


def test_the_hidden_state_cache_of_older_configs() -> None:
    for value in ("off", False):
        config = parse_config({**RAW, "machine": {"cache_hidden": value, "workers": 2}})
        assert config.machine == MachineSection(workers=2)
    assert "cache_hidden" not in dump_config(config)
    for value in ("memory", "disk"):
        assert refusal(RAW, f"machine.cache_hidden={value}") == (
            f"run.yaml: machine: cache_hidden is {value!r}, but hidden states are no longer cached: only 'off' is"
            " allowed, or no such key; use machine.cache_vision, which caches the vision encoder's features\n"
            "  allowed: the keys and values of docs/config.md\n"
            "  next:    fix what --set gives"
        )


def numbers(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, set[str]]]:
    """Every setting that is a number, with its bounds."""
    for name, field in section.model_fields.items():
        kinds = {kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)}
        for inner in kinds:
            if issubclass(inner, BaseModel):
                yield from numbers(inner, f"{prefix}{name}.")
        if kinds & {int, float}:
            bounds = ("ge", "gt", "le", "lt")
            yield f"{prefix}{name}", {bound for rule in field.metadata for bound in bounds if hasattr(rule, bound)}


def test_every_number_has_a_least_and_a_most() -> None:
    found = dict(numbers())
    assert len(found) > 30
    assert [name for name, bounds in found.items() if not bounds & {"ge", "gt"} or not bounds & {"le", "lt"}] == []


@pytest.mark.parametrize("name", [name for name, _ in numbers()])
@pytest.mark.parametrize("value", ["-1", "1e300", "1" + "0" * 40, ".nan", ".inf"])
def test_a_number_beyond_any_use_is_refused(name: str, value: str) -> None:
    assert f"run.yaml: {name}: Input should be" in refusal(RAW, f"{name}={value}")


@pytest.mark.parametrize(
    "override", ["seed=-1", "seed=4294967296", "evaluate.bootstrap=200000000", "evaluate.max_new_tokens=100000"]
)
def test_values_that_runs_died_of(override: str) -> None:
    assert f"{override.partition('=')[0]}: Input should be" in refusal(RAW, override)


def test_lr_that_is_no_number() -> None:
    assert "train.lr" in refusal(RAW, "train.lr=.nan")
    assert "train.lr" in refusal(RAW, "train.lr=.inf")


def test_the_projector_of_older_configs() -> None:
    for before, now in ((True, "full"), (False, "frozen")):
        config = parse_config({**RAW, "train": {"train_projector": before}})
        assert config.train.projector == now
        assert "train_projector" not in dump_config(config)
        assert config.train.noted() == parse_config({**RAW, "train": {"projector": now}}).train.noted()
        # What stage keys of earlier versions hold.
        assert config.train.noted()["train_projector"] is before
        assert "projector" not in config.train.noted()
    assert refusal({**RAW, "train": {"projector": "lora"}}, "train.train_projector=false").startswith(
        "run.yaml: train: train_projector means projector 'frozen', and projector is 'lora': leave out train_projector"
    )
    assert "train.train_projector: Input should be a valid boolean" in refusal(RAW, "train.train_projector=maybe")
    assert refusal({**RAW, "train": {"method": "full"}}, "train.projector=lora").startswith(
        "run.yaml: train: projector lora goes with method lora or qlora"
    )


def test_healing_trains_the_projector_in_a_way_that_fits_its_method_and_no_encoder() -> None:
    train = TrainSection(projector="lora", vision="lora")
    parts = {
        method: (healing.method, healing.projector, healing.vision)
        for method in (None, "full")
        for healing in [HealSection(steps=1, method=method).training(train)]  # type: ignore[arg-type]
    }
    assert parts == {None: ("lora", "lora", "frozen"), "full": ("full", "full", "frozen")}


def test_a_wrong_setting_of_the_quickstart_is_mended_where_it_was_given() -> None:
    with pytest.raises(ConfigError) as error:
        quickstart_config(("train.lrr=1",))
    assert str(error.value) == (
        "the quickstart's config: unknown key 'train.lrr'; did you mean 'train.lr'?\n"
        "  allowed: the keys and values of docs/config.md\n"
        "  next:    fix what --set gives"
    )


def test_all_problems_at_once() -> None:
    text = refusal({"model": {}, "data": {"train": ["d"]}, "selekt": {}}, "train.epochs=-1")
    assert text == (
        "run.yaml: model.path: Field required\n"
        "run.yaml: train.epochs: Input should be greater than 0 (given: -1)\n"
        "run.yaml: unknown key 'selekt'; did you mean 'select'?\n"
        "  allowed: the keys and values of docs/config.md\n"
        "  next:    fix run.yaml"
    )


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (
            ["prune.remove=1", "prune.scorer=angular-distance"],
            "is none of answer-loss, answer-accuracy, top, spaced, nor among analyze.scorers",
        ),
        (["evaluate.packs=[p]", "evaluate.models=[tuned]"], "evaluate.baseline 'start' is not among evaluate.models"),
        (["evaluate.packs=[p]", "evaluate.baseline=pruned"], "baseline is 'pruned', but prune.remove is 0"),
        (
            ["prune={remove: 1, scorer: answer-loss, when: before}", "heal.steps=3"],
            "heal is set, and prune.when is before: the tuning that follows is the healing; leave out heal.steps and",
        ),
        (["evaluate.packs=[p]", "evaluate.baseline=pruned", "prune.remove=0%"], "but prune.remove is 0"),
        (["evaluate.packs=[p]", "evaluate.gate=text>=9", "evaluate.models=[start]"], "the gate would hold always"),
        (["evaluate.packs=[p]", "evaluate.gate=text>=9", "evaluate.models=[start, pruned]"], "the gate would hold"),
        (["machine.memory_budget=9", "train.gradient_checkpointing=true"], "are both set"),
        (["machine.device=gpu"], "unknown device 'gpu': auto, cpu, cuda, cuda:N or mps"),
        (["machine.device=cuda:x"], "unknown device 'cuda:x'"),
        (["analyze.scorers=[]"], "analyze.scorers: Tuple should have at least 1 item"),
    ],
)
def test_contradictions(overrides: list[str], text: str) -> None:
    assert text in refusal(RAW, *overrides)


@pytest.mark.parametrize(
    ("written", "read"),
    [("4", 4), ("'4'", 4), ("4.0", 4), ("25%", "25%"), ("0.5%", "0.5%"), ("100%", "100%"), ("0%", 0), ("0.00 %", 0)],
)
def test_layers_to_remove_are_a_number_or_a_percentage(written: str, read: int | str) -> None:
    assert parse_config(RAW, [f"prune.remove={written}"]).prune.remove == read


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        *[(text, text) for text in ("-1", "0.25", "10001", "[1]")],
        *[(text, f"'{text.strip(chr(39))}'") for text in ("101%", "-5%", "'%'", "quarter", "25%%", "1e1%")],
        (".inf", "inf"),
        ("true", "True"),
        ("null", "None"),
    ],
)
def test_no_number_of_layers_and_no_percentage(written: str, shown: str) -> None:
    assert refusal(RAW, f"prune.remove={written}").startswith(
        f"run.yaml: prune.remove: {shown} is not a number of layers from 0 to 10,000, or a percentage of them"
    )


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "holds nothing, not a mapping"),
        (b"- a\n- b\n", "holds a list, not a mapping"),
        (b"model: {path: m\n", "is not YAML"),
        (b"model:\n\tpath: m\n", "is not YAML"),
        (b"\xff\xfe\x00m", "is not UTF-8 text: byte 0 (it looks like UTF-16)"),
    ],
)
def test_unreadable_file(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert f"{path} {text}" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "no.yaml")
    assert str(caught.value).startswith(f"can't read {tmp_path / 'no.yaml'}: No such file or directory")
    with pytest.raises(ConfigError, match=r"can't read .*: Is a directory"):
        load_config(tmp_path)


def test_machine_is_apart_from_the_science() -> None:
    sections = set(RunConfig.model_fields)
    assert {"analyze", "select", "train", "prune", "evaluate", "report", "machine"} <= sections


def test_paths_that_exist_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.config import anchored

    (tmp_path / "pack").mkdir()
    (tmp_path / "region.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    raw = {
        "model": {"path": "owner/name"},
        "data": {"train": ["pack", "builtin:easy-vqa"]},
        "select": {"region": "region.json"},
        "train": {"image_tokens": "region", "image_also": "region.json"},
        "evaluate": {"packs": ["pack"]},
    }
    config = anchored(parse_config(raw))
    assert config.model.path == "owner/name"
    assert config.data.train == (str(tmp_path / "pack"), "builtin:easy-vqa")
    assert config.select.region == config.train.image_also == str(tmp_path / "region.json")
    assert config.evaluate.packs == (str(tmp_path / "pack"),)
    assert anchored(config) == config
