"""The run config: one strict, frozen document a run, one section a stage, machine settings apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from striate.errors import ConfigError, did_you_mean

STAGES = ("analyze", "select", "train", "prune", "evaluate", "report")
BUILTIN = "builtin"
OWN_MODELS = ("start", "tuned", "pruned")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._%:+@-]{0,63}")


class Section(BaseModel):
    """Base of all sections: unknown keys and numbers without a value are errors, instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which LVLM: a folder, a hub id, or `builtin` for the small LVLM that comes with striate."""

    path: str
    revision: str | None = None


class DataSection(Section):
    """Training and calibration data: files or folders in LLaVA or chat-messages format."""

    train: tuple[str, ...] = Field(min_length=1)
    max_train_samples: int | None = Field(default=None, ge=1)
    calibration: tuple[str, ...] = ()


class AnalyzeSection(Section):
    """Which scorers run, on how many calibration samples, for all of them together or by task as well.

    `base` is the folder of the untuned checkpoint that `parameter-change` compares with; `pairs` is how many pairs of
    pictures per attribute `token-swap` draws.
    """

    scorers: tuple[str, ...] = ("block-influence", "modality-block-influence")
    samples: int = Field(default=64, ge=1)
    by: Literal["all", "task"] = "all"
    base: str | None = None
    pairs: int = Field(default=32, ge=2)


class SelectSection(Section):
    """The region SPEC."""

    region: str = "uniform:25%"


class LoraSection(Section):
    """LoRA of all projection matrices of the region's layers; defaults are the paper's."""

    r: int = Field(default=128, ge=1)
    alpha: int = Field(default=256, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)


class ResampleSection(Section):
    """A few layers of the region open at a time (LISA): `active` of them, others every `every` steps; none: all.

    `state` says whether the optimizer keeps what it knows of a closed layer until its next turn, or drops it.
    """

    active: int | None = Field(default=None, ge=1)
    every: int = Field(default=20, ge=1)
    state: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _check(self) -> ResampleSection:
        if self.active is None and (self.every, self.state) != (20, "keep"):
            raise ValueError("every and state have no effect without active, the number of layers open at a time")
        return self


class TrainSection(Section):
    """Visual instruction tuning of the region and the projector; defaults are the paper's.

    `image_tokens` says where image tokens are computed: in all layers; in the region alone, from then on; or so only
    while training. `frozen` is the number format of the decoder layers outside the region while training. Both trade
    exactness for speed (docs/fast-modes.md).
    """

    method: Literal["lora", "qlora", "full"] = "lora"
    lora: LoraSection = LoraSection()
    resample: ResampleSection = ResampleSection()
    train_projector: bool = True
    lr: float = Field(default=2e-4, gt=0)
    projector_lr: float = Field(default=2e-5, gt=0)
    batch_size: int = Field(default=128, ge=1)
    epochs: float = Field(default=1.0, gt=0)
    max_steps: int | None = Field(default=None, ge=1)
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_length: int = Field(default=2048, ge=16)
    gradient_checkpointing: bool = False
    packing: bool = False
    image_tokens: Literal["all", "region", "region while training"] = "all"
    frozen: Literal["exact", "fp8"] = "exact"
    save_steps: int = Field(default=100, ge=1)

    @model_validator(mode="after")
    def _check_modes(self) -> TrainSection:
        if self.packing and self.image_tokens != "all":
            raise ValueError("packing and image_tokens other than 'all' do not go together")
        if self.method == "qlora" and self.frozen != "exact":
            raise ValueError("frozen has no effect on method qlora, whose frozen layers are in 4 bits")
        return self


class PruneSection(Section):
    """How many layers outside the region go, ranked by which scorer."""

    remove: int = Field(default=0, ge=0)
    scorer: str = "modality-block-influence"


class EvaluateSection(Section):
    """Test packs, harness suites, which models answer them, and what they must keep.

    A pack is a folder with `test.jsonl`, or NAME:FOLDER for the published files of a benchmark (`striate ls tasks`).
    A suite is `lm-eval:TASKS` or `lmms-eval:TASKS`, tasks with commas between, `@FOLDER` after them for tasks of one's
    own.
    `others` names further checkpoints (folders or hub ids) that answer beside the run's own models, such as
    `{tuned all: runs/all/checkpoint}`. `baseline` is the model that all others are held against. `gate` is what they
    must keep of it, in %: `visual>=99,text>=99.5`, also of a pack or of PACK/TASK.
    """

    packs: tuple[str, ...] = ()
    suites: tuple[str, ...] = ()
    models: tuple[Literal["start", "tuned", "pruned"], ...] = ("start", "tuned", "pruned")
    others: dict[str, str] = Field(default_factory=dict)
    baseline: str = "start"
    gate: str | None = None
    limit: int | None = Field(default=None, ge=1)
    max_new_tokens: int = Field(default=32, ge=1)
    bootstrap: int = Field(default=2000, ge=100)


class ReportSection(Section):
    """What the page shows besides the figures: its heading, and at most how many questions with their answers."""

    title: str = "striate run"
    examples: int = Field(default=1000, ge=0)


class MachineSection(Section):
    """The machine, apart from the science: changing it must not change what is learned, only how fast.

    At most `eval_batch` rows, and `eval_tokens` tokens with padding and new ones, are asked side by side; left out,
    what suits the device. With `train.packing`, `pack_tokens` is the most tokens of a row, in place of `micro_batch`.
    `compile` fuses the decoder layers' operations while training; `memory_budget` is the peak in GiB that training may
    reach: as few layers as that takes are run again in the backward pass. `cache_vision` keeps what the frozen vision
    encoder makes of each training picture, in memory, or on disk in `cache_folder` for all runs of a sweep.
    """

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    micro_batch: int = Field(default=8, ge=1)
    eval_batch: int | None = Field(default=None, ge=1)
    eval_tokens: int | None = Field(default=None, ge=1)
    workers: int = Field(default=0, ge=0)
    compile: Literal["auto", "off", "on"] = "auto"
    memory_budget: float | None = Field(default=None, gt=0)
    pack_tokens: int = Field(default=8192, ge=16)
    cache_vision: Literal["off", "memory", "disk"] = "off"
    cache_folder: str | None = None

    @field_validator("compile", "cache_vision", mode="before")
    @classmethod
    def _word(cls, value: Any) -> Any:
        """Return the word for what YAML takes for a truth value."""
        return {False: "off", True: "on"}[value] if isinstance(value, bool) else value


class RunConfig(Section):
    """One run, whole: what `striate run RUN.yaml` reads and `config.yaml` in the run folder keeps."""

    version: Literal[1] = 1
    seed: int = 0
    model: ModelSection
    data: DataSection
    analyze: AnalyzeSection = AnalyzeSection()
    select: SelectSection = SelectSection()
    train: TrainSection = TrainSection()
    prune: PruneSection = PruneSection()
    evaluate: EvaluateSection = EvaluateSection()
    report: ReportSection = ReportSection()
    machine: MachineSection = MachineSection()

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        micro = min(self.machine.micro_batch, self.train.batch_size)
        if self.train.batch_size % micro:
            raise ValueError(
                f"train.batch_size {self.train.batch_size} is not a multiple of machine.micro_batch {micro}"
            )
        if self.train.method == "qlora" and self.machine.dtype not in ("auto", "bfloat16"):
            raise ValueError(f"train.method qlora computes in bfloat16, not in machine.dtype {self.machine.dtype}")
        if self.prune.remove and self.prune.scorer not in self.analyze.scorers:
            raise ValueError(
                f"prune.scorer {self.prune.scorer!r} is not among analyze.scorers {list(self.analyze.scorers)}"
            )
        evaluated = (*self.evaluate.models, *self.evaluate.others)
        if self.evaluate.packs and self.evaluate.baseline not in evaluated:
            raise ValueError(
                f"evaluate.baseline {self.evaluate.baseline!r} is not among evaluate.models and evaluate.others"
            )
        for name in self.evaluate.others:
            if name in OWN_MODELS or not NAME.fullmatch(name):
                raise ValueError(
                    f"evaluate.others: {name!r} is no name for a model: letters, digits, '-', '_', '.', '%', ':', '+',"
                    f" '@' and spaces, and not one of {', '.join(OWN_MODELS)}"
                )
        if self.evaluate.gate and not self.evaluate.packs:
            raise ValueError("evaluate.gate is set, but evaluate.packs is empty: nothing would be measured")
        if self.evaluate.baseline == "pruned" and not self.prune.remove:
            raise ValueError("evaluate.baseline is 'pruned', but prune.remove is 0: there is no pruned model")
        return self


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config in `path` with `overrides` (`section.key=value`, value in YAML) applied.

    Raises:
        ConfigError: unreadable, not YAML, unknown keys (with their path), or wrong values; all problems at once.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}", "a YAML file", "check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        place = str(error).replace("\n", " ")
        raise ConfigError(f"{path} is not YAML: {place}", "a YAML mapping", "mend that line") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {_kind(raw)}, not a mapping", "sections such as model:, data:", "see configs/")
    return parse_config(raw, overrides, source=str(path))


def parse_config(raw: dict[str, Any], overrides: Sequence[str] = (), source: str = "config") -> RunConfig:
    """Return the config that the mapping `raw` describes, with `overrides` applied; `source` names it in errors."""
    for override in overrides:
        raw = _with_override(raw, override)
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        problems = [_problem(dict(item), source) for item in error.errors()]
        raise ConfigError("\n".join(problems), "the keys and values of docs/config.md", f"mend {source}") from error


def is_builtin(name: str) -> bool:
    """Return whether `name` stands for something that comes with striate: `builtin`, `builtin:easy-vqa`, ..."""
    return name.partition(":")[0] == BUILTIN


def looks_like_hub_id(path: str) -> bool:
    """Return whether `path`, which is no folder, may be a hub id: owner/name. Anything else needs no network."""
    return path.count("/") == 1 and not path.startswith(("/", ".", "~"))


def anchored(config: RunConfig) -> RunConfig:
    """Return `config` with its paths that exist made absolute, so that it means the same from any folder."""

    def fix(place: str) -> str:
        if is_builtin(place):
            return place
        try:
            return str(Path(place).expanduser().resolve(strict=True))
        except (OSError, RuntimeError, ValueError):
            return place

    def fix_named(place: str) -> str:
        name, colon, folder = place.partition(":")
        named = colon and not is_builtin(place) and not Path(place).expanduser().exists()
        return f"{name}:{fix(folder)}" if named else fix(place)

    def fix_suite(suite: str) -> str:
        tasks, at, folder = suite.partition("@")
        return f"{tasks}@{fix(folder)}" if at else suite

    def fix_all(places: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(fix(place) for place in places)

    data = {"train": fix_all(config.data.train), "calibration": fix_all(config.data.calibration)}
    region, base = config.select.region, config.analyze.base
    return config.model_copy(
        update={
            "analyze": config.analyze.model_copy(update={"base": fix(base) if base else base}),
            "model": config.model.model_copy(update={"path": fix(config.model.path)}),
            "data": config.data.model_copy(update=data),
            "select": config.select.model_copy(update={"region": fix(region) if region.endswith(".json") else region}),
            "evaluate": config.evaluate.model_copy(
                update={
                    "packs": tuple(fix_named(place) for place in config.evaluate.packs),
                    "suites": tuple(fix_suite(suite) for suite in config.evaluate.suites),
                    "others": {name: fix(place) for name, place in config.evaluate.others.items()},
                }
            ),
        }
    )


def dump_config(config: RunConfig) -> str:
    """Return `config` as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _kind(value: Any) -> str:
    """Return in words what a YAML document holds."""
    return "nothing" if value is None else f"a {type(value).__name__}"


def _with_override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    """Return a copy of `raw` with one `a.b=value` applied."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            f"--set {override!r} has no '='", "--set section.key=value", "for example --set train.lr=1e-4"
        )
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override!r}: the value is not YAML", "a number, word or list", "quote it") from error
    return _put(raw, key.strip().split("."), value, override)


def _put(raw: dict[str, Any], keys: list[str], value: Any, override: str) -> dict[str, Any]:
    """Return a copy of `raw` with `value` at the path `keys`; `override` is the setting as it was written."""
    head, *rest = keys
    if not rest:
        return {**raw, head: value}
    inner = raw.get(head)
    if not isinstance(inner, dict | None):
        raise ConfigError(f"--set {override!r}: {head!r} is not a section", "--set section.key=value", "check the key")
    return {**raw, head: _put(inner or {}, rest, value, override)}


def _problem(item: dict[str, Any], source: str) -> str:
    """Return one validation problem in words, with the path of its key."""
    place = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{source}: unknown key {place!r} {_suggestion(item['loc'])}".rstrip()
    message = item["msg"].removeprefix("Value error, ")
    given = "" if item["type"] in ("missing", "value_error") else f" (given: {item['input']!r})"
    return f"{source}: {place + ': ' if place else ''}{message}{given}"


def _suggestion(location: tuple[Any, ...]) -> str:
    """Return a did-you-mean for the unknown last key of `location`, or nothing."""
    section: Any = RunConfig
    for part in location[:-1]:
        field = section.model_fields.get(part) if isinstance(section, type) and issubclass(section, BaseModel) else None
        section = field.annotation if field else None
    known = section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
    return did_you_mean(str(location[-1]), known).strip()
