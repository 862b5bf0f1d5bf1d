"""The runs of a sweep: which there are, what each is called, and their whole configs, checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from striate.config import RunConfig, anchored, load_config
from striate.config.sweep_settings import MOST_RUNS, SEED, Settings, SweepConfig, override, short_names
from striate.errors import ConfigError, StriateError
from striate.printable import shown
from striate.selectors.spec.grammar import parse_spec
from striate.storage.read_files import Form, read_yaml, user_path

SWEEP_FILE = Form(ConfigError, "a sweep (YAML)", most_bytes=2**20)
SETTINGS_NAME = "settings.yaml"
_UNSAFE = re.compile(r"[^A-Za-z0-9=.,+_@%-]+")
# Of a folder's name, which systems bound.
_LONGEST_NAME = 160


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        settings: what it changes of the base, by the names of `--set`.
        config: the whole of it.
        rung: the share of the training that it has.
        row: what its row of `runs` or `folders` is called, where it has a name.
    """

    name: str
    settings: Settings
    config: RunConfig
    rung: float = 1.0
    row: str = ""

    @property
    def group(self) -> Settings:
        """What it shares with runs of other seeds."""
        return {name: value for name, value in self.settings.items() if name != SEED}

    @property
    def seed(self) -> int:
        """Its seed: by its settings, or else the config's."""
        return int(self.settings.get(SEED, self.config.seed))

    def has(self, wanted: Settings) -> bool:
        """Return whether it is one of the runs that have the settings `wanted`."""
        return all(self.settings.get(name) == value for name, value in wanted.items())

    def alike(self, other: Planned, over: Sequence[str]) -> bool:
        """Return whether the two differ in the settings `over` alone."""
        own, others = self.settings, other.settings
        names = set(own) | set(others)
        return all(own.get(name) == others.get(name) for name in names - set(over))


class Plan:
    """What a sweep's file asks for."""

    def __init__(self, file: Path) -> None:
        """Read the file.

        Raises:
            ConfigError: it can't be read, or a run of it is no valid run config; the message names the run.
        """
        self.file, self.sweep = file, read_sweep(file)
        self.base = file.parent / user_path(self.sweep.base)
        asked = list(self._asked())
        if len(asked) > MOST_RUNS:
            raise ConfigError(f"{file} asks for {len(asked)} runs", f"at most {MOST_RUNS}", "leave values out")
        self.varied = tuple(dict.fromkeys(name for _, *both in asked for settings in both for name in settings))
        self._short = short_names(self.varied)
        self.runs = tuple(self._planned(*one) for one in asked)
        self._check_chosen()
        self._check_measured()
        self._check_compared()
        check_different(file, self.runs)

    def with_settings(self, run: Planned, changes: Settings) -> Planned:
        """Return the run with other settings."""
        if run.row and changes.keys().isdisjoint(run.settings):
            return self._planned(run.name, run.settings, changes)
        return self._planned("", {**run.settings, **changes}, {})

    def on_rung(self, run: Planned, share: float) -> Planned:
        """Return the run with `share` of its training, which is measured on held-out samples and not asked."""
        train = run.config.train
        steps = train.max_steps
        shorter = {"max_steps": max(1, round(share * steps))} if steps else {"epochs": share * train.epochs}
        config = run.config.model_copy(
            update={
                "train": train.model_copy(update=shorter),
                "prune": run.config.prune.model_copy(update={"remove": 0, "until": None}),
                "heal": type(run.config.heal)(),
                "evaluate": run.config.evaluate.model_copy(update={"packs": (), "suites": (), "gate": None}),
            }
        )
        return replace(run, name=f"{run.name}@{100 * share:g}", config=config, rung=share)

    def _check_chosen(self) -> None:
        """Raise where what is chosen varies in no run."""
        choose = self.sweep.choose
        if choose and (missing := [name for name in choose.over if name not in self.varied]):
            raise ConfigError(
                f"{self.file}: choose.over: {missing[0]} varies in no run",
                f"what varies: {', '.join(self.varied) or 'nothing does'}",
                f"give {missing[0]} several values under grid: or each:",
            )

    def _check_measured(self) -> None:
        """Raise where runs are chosen by held-out samples, and one holds none out."""
        unmeasured = [run.name for run in self.runs if not run.config.data.validate]
        if self.sweep.choose and unmeasured:
            raise ConfigError(
                f"{self.file} chooses by {self.sweep.choose.by}, held out, and {unmeasured[0]} holds nothing out",
                "data.validate: a share of the training data such as 5%, or a file of samples",
                f"set it in {self.sweep.base}, or under set:",
            )

    def _check_compared(self) -> None:
        """Raise where `compare` picks no run."""
        wanted = self.sweep.compare
        if wanted and not any(run.has(wanted) for run in self.runs):
            known = {name: list(dict.fromkeys(_values(self.runs, name))) for name in wanted if name in self.varied}
            raise ConfigError(
                f"{self.file} compares with {told_settings(wanted)}, which no run has",
                told_settings(known) if known else f"some of what varies: {', '.join(self.varied)}",
                "name settings of a run as the sweep writes them, or leave compare: out",
            )

    def _asked(self) -> Iterator[tuple[str, Settings, Settings]]:
        """Yield for each run the name of its row, if it has one, its row's settings, and what that is tried with."""
        for settings in self.sweep.combinations():
            yield "", settings, {}
        for name, row in self._rows():
            for tried in self.sweep.tried(row):
                yield name, row, tried

    def _rows(self) -> Iterator[tuple[str, Settings]]:
        yield from ((run.name, run.set) for run in self.sweep.runs)
        if self.sweep.folders:
            yield from _of_folders(self.file.parent / user_path(self.sweep.folders))

    def _planned(self, row: str, own: Settings, tried: Settings) -> Planned:
        settings = {**own, **tried}
        # What the run itself says comes last, and counts.
        overrides = [override(*pair) for pair in {**self.sweep.set, **settings}.items()]
        unnamed = tried if row else settings
        name = _name(row, {self._short.get(path, path): value for path, value in unnamed.items()})
        try:
            config = anchored(load_config(self.base, overrides))
            parse_spec(config.select.region)
            return Planned(name, settings, config, row=row)
        except StriateError as error:
            raise ConfigError(f"{self.file}, run {name}: {error.given}", error.allowed, error.next_step) from error


def read_sweep(file: Path) -> SweepConfig:
    """Return the sweep in `file`.

    Raises:
        ConfigError: it can't be read, or has unknown keys or wrong values.
    """
    raw = read_yaml(file, SWEEP_FILE)
    if not isinstance(raw, dict):
        raise ConfigError(f"{file} is no mapping", "base: and grid:, runs: or folders:", "see docs/sweeps.md")
    if "model" in raw and "base" not in raw:
        raise ConfigError(
            f"{file} is the config of a run, not a sweep",
            "base: and grid:, runs: or folders:",
            f"name it as the base: of a sweep, or run it alone with `striate run {file}`",
        )
    try:
        return SweepConfig.model_validate(raw)
    except ValidationError as error:
        problems = [f"{file}: {'.'.join(map(str, one['loc']))}: {_message(one)}" for one in error.errors()]
        raise ConfigError("\n".join(problems), "the keys of docs/sweeps.md", f"fix {file}") from error


def _message(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key"
    if problem["type"] == "tuple_type":
        return f"give a list, such as [{shown(problem['input'])}]"
    return str(problem["msg"]).removeprefix("Value error, ")


def _of_folders(folder: Path) -> Iterator[tuple[str, Settings]]:
    """Yield the settings of every folder in `folder` that has a file of them."""
    try:
        files = sorted(folder.glob(f"*/{SETTINGS_NAME}"))
    except OSError as error:
        raise ConfigError(f"{folder} can't be read: {error}", "a folder of folders", "check folders:") from error
    if not files:
        raise ConfigError(f"{folder} has no folder with {SETTINGS_NAME}", "one or more", "check folders:")
    for file in files:
        settings = read_yaml(file, SWEEP_FILE)
        if not isinstance(settings, dict) or not all(isinstance(name, str) for name in settings):
            raise ConfigError(f"{file} is no mapping of settings", "lines such as train.lr: 1e-4", f"fix {file}")
        yield _safe(file.parent.name), settings


def _name(row: str, settings: Settings) -> str:
    return _safe(",".join(filter(None, [row, *(override(*pair) for pair in settings.items())]))) or "base"


def _safe(text: str) -> str:
    name = _UNSAFE.sub("-", text).strip("-.")
    if len(name) > _LONGEST_NAME:
        raise ConfigError(f"the run {shown(text)} has too long a name", f"{_LONGEST_NAME} characters", "give it a name")
    return name


def _values(runs: Sequence[Planned], name: str) -> list[str]:
    return [shown(run.settings[name]) for run in runs if name in run.settings]


def told_settings(settings: Settings) -> str:
    """Return settings in words."""
    told = {name: ", ".join(value) if isinstance(value, list) else shown(value) for name, value in settings.items()}
    return "; ".join(f"{name}: {value}" for name, value in told.items())


def check_different(file: Path, runs: Sequence[Planned]) -> None:
    """Raise where two runs have the same name, or the same whole config."""
    names, configs = set[str](), dict[str, str]()
    for run in runs:
        if run.name in names:
            raise ConfigError(
                f"{file} has two runs called {run.name}",
                "runs that differ, with different names",
                "leave one of them out, or give it another name",
            )
        names.add(run.name)
        config = run.config.model_dump_json()
        if config in configs:
            raise ConfigError(
                f"{file} asks for the same run twice: {configs[config]} and {run.name}",
                "runs that differ",
                "leave one of them out",
            )
        configs[config] = run.name
