"""The settings of a sweep: a base config, what varies, and how rates are chosen."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from striate.config.section import Section
from striate.config.train_settings import Metric

# More runs than anybody waits for.
MOST_RUNS = 10_000
SEED = "seed"
Settings = dict[str, Any]


class SweepRun(Section):
    """One run beside the grid: its settings, and a name where it shall have one of its own."""

    set: Settings
    name: str = Field(default="", pattern=r"^[A-Za-z0-9][A-Za-z0-9=.,+_@-]{0,99}$|^$")


class ChooseSection(Section):
    """Which runs are seen through: of those that differ in `over` alone, the one that is best on held-out samples.

    `by` is what says so, as training measures it. `seeds` are repeated of the best alone. With `rungs`, shares of the
    training such as 25%, all begin with as short a training, and the better half of them goes on after each rung.
    """

    over: tuple[str, ...] = ("train.lr",)
    by: Metric = "exact_match"
    seeds: tuple[int, ...] = ()
    rungs: tuple[float, ...] = ()

    @field_validator("rungs", mode="before")
    @classmethod
    def _percent(cls, value: Any) -> Any:
        """Return the shares that percentages stand for."""
        if not isinstance(value, list | tuple):
            return value
        return [float(one[:-1]) / 100 if isinstance(one, str) and one.endswith("%") else one for one in value]

    @model_validator(mode="after")
    def _check(self) -> ChooseSection:
        if any(not 0 < share < 1 for share in self.rungs) or sorted(set(self.rungs)) != list(self.rungs):
            raise ValueError(f"rungs {list(self.rungs)}: shares of the training between 0% and 100%, rising")
        if not self.over or SEED in self.over:
            raise ValueError("over names the settings that are chosen, such as train.lr; seeds are never chosen")
        return self


class SweepConfig(Section):
    """One sweep: what `striate sweep SWEEP.yaml` reads.

    `base` is a run config, `set` what all runs change in it; `grid` has a list of values for each setting, all of which
    are combined; `runs` are more runs. `folders` is a folder of folders, each with a `settings.yaml`. `each` has values
    that every one of `runs` and `folders` is tried with. Settings are named as `--set` names them. `compare` picks the
    runs that the others are held against. `per_device` runs share a device; `slurm` is what a job asks for, and `jobs`
    how many are in the queue.
    """

    version: Literal[1] = 1
    base: str
    set: Settings = Field(default_factory=dict)
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    runs: tuple[SweepRun, ...] = ()
    folders: str | None = None
    each: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    compare: Settings = Field(default_factory=dict)
    choose: ChooseSection | None = None
    per_device: int | None = Field(default=None, ge=1, le=64)
    slurm: Settings = Field(default_factory=dict)
    jobs: int = Field(default=16, ge=1, le=1000)

    @model_validator(mode="after")
    def _check(self) -> SweepConfig:
        for where, lists in (("grid", self.grid), ("each", self.each)):
            if empty := [name for name, values in lists.items() if not values]:
                raise ValueError(f"{where}: {empty[0]} has no values: give a list of one or more")
            if self.choose and self.choose.seeds and SEED in lists:
                raise ValueError(
                    f"choose.seeds and {where}.seed are both set, and each says which seeds run: leave one out"
                )
        if not (self.grid or self.runs or self.folders):
            raise ValueError("nothing varies: give grid, runs or folders")
        if self.each and not (self.runs or self.folders):
            raise ValueError("each is of runs and folders, and there are none: put its values under grid")
        return self

    def combinations(self) -> Iterator[Settings]:
        """Yield the settings of every run of the grid, the last of its settings varying fastest."""
        return _combined(self.grid) if self.grid else iter(())

    def tried(self, row: Settings) -> Iterator[Settings]:
        """Yield what a row of `runs` or `folders` is tried with: all of `each` that it does not set itself."""
        return _combined({name: values for name, values in self.each.items() if name not in row})


def _combined(lists: Mapping[str, Sequence[Any]]) -> Iterator[Settings]:
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Return what each setting is called beside the others: the last part of its path, where no other ends alike."""
    last = [path.rpartition(".")[2] for path in paths]
    return {path: short if last.count(short) == 1 else path for path, short in zip(paths, last, strict=True)}


def override(name: str, value: Any) -> str:
    """Return a setting and its value as `--set` takes them."""
    return f"{name}={as_yaml(value)}"


def as_yaml(value: Any) -> str:
    """Return a setting's value in one line of YAML."""
    written = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), allow_unicode=True)
    return written.removesuffix("\n").removesuffix("...").strip()
