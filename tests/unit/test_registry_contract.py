"""Every registered strategy keeps the same promises, and the registry answers unknown names well."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from striate.config.layer_settings import GREEDY
from striate.errors import SpecError
from striate.pruning.greedy_ranking import MEASURES
from striate.registry import NoParams, Registry, Strategy
from striate.scorers import SCORERS
from striate.selectors import SELECTORS
from striate.tasks.benchmarks import BENCHMARKS
from striate.tasks.metrics import METRICS

REGISTRIES = {"scorers": SCORERS, "selectors": SELECTORS, "tasks": METRICS, "benchmarks": BENCHMARKS}
EVERYTHING = [pytest.param(row, id=f"{kind}/{row.name}") for kind, rows in REGISTRIES.items() for row in rows]


@pytest.mark.parametrize("strategy", EVERYTHING)
def test_metadata(strategy: Strategy[Any]) -> None:
    assert re.fullmatch(r"[a-z0-9]+([-_][a-z0-9]+)*", strategy.name)
    assert strategy.title.strip() == strategy.title != ""
    assert strategy.summary.strip() == strategy.summary != ""
    assert "\n" not in strategy.summary
    assert len(strategy.summary) <= 120
    assert strategy.paper == "" or re.fullmatch(r"https://\S+", strategy.paper)


@pytest.mark.parametrize("strategy", EVERYTHING)
def test_function_is_typed_and_documented(strategy: Strategy[Any]) -> None:
    assert callable(strategy.function)
    assert inspect.getdoc(strategy.function)
    function = strategy.function
    if not (inspect.isfunction(function) or inspect.isclass(function)):
        function = type(function).__call__
    signature = inspect.signature(function)
    named = [p for p in signature.parameters.values() if p.name not in ("self", "args", "kwargs")]
    assert all(p.annotation is not inspect.Parameter.empty for p in named)


@pytest.mark.parametrize("strategy", EVERYTHING)
def test_frozen_metadata_and_strict_params(strategy: Strategy[Any]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.name = "other"  # type: ignore[misc]
    assert issubclass(strategy.params, BaseModel)
    assert strategy.params.model_config["frozen"] is True
    assert strategy.params.model_config["extra"] == "forbid"
    with pytest.raises(ValidationError):
        strategy.params.model_validate({"no_such_setting": 1})


@pytest.mark.parametrize("kind", REGISTRIES)
def test_kind_is_what_ls_lists(kind: str) -> None:
    registry: Registry[Any] = REGISTRIES[kind]
    assert f"{registry.kind}s" == kind
    assert len(registry) == len(registry.names()) == len(set(registry.names()))
    assert all(name in registry and registry.get(name).name == name for name in registry.names())


@pytest.mark.parametrize(
    ("registry", "name", "meant"),
    [(SCORERS, "block-influense", "block-influence"), (SELECTORS, "unifrom", "uniform"), (METRICS, "exakt", "exact")],
)
def test_unknown_name_lists_all_and_suggests(registry: Registry[Any], name: str, meant: str) -> None:
    with pytest.raises(SpecError) as caught:
        registry.get(name)
    assert str(caught.value) == (
        f"unknown {registry.kind} {name!r}\n"
        f"  allowed: {', '.join(registry.names())}\n"
        f"  next:    did you mean {meant!r}? see `striate ls {registry.kind}s`"
    )


def test_no_params_takes_nothing() -> None:
    assert NoParams().model_dump() == {}
    with pytest.raises(ValidationError):
        NoParams(size=1)  # type: ignore[call-arg]


def test_two_of_one_name_are_refused() -> None:
    twin = Strategy("a", "A", "a", len)
    with pytest.raises(AssertionError, match="two things share a name"):
        Registry("thing", [twin, twin])


def test_families_are_rows_of_a_table() -> None:
    from striate.models.structure.families import FAMILIES

    names = [family.model_type for family in FAMILIES]
    assert len(names) == len(set(names)) > 0
    assert all(family.title and "\n" not in family.title for family in FAMILIES)
    with pytest.raises(dataclasses.FrozenInstanceError):
        FAMILIES[0].title = "other"  # type: ignore[misc]


def test_what_layers_may_be_ranked_by_is_the_same_in_the_config_and_where_they_are_ranked() -> None:
    assert tuple(MEASURES) == GREEDY
