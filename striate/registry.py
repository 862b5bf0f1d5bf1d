"""Strategies by name: plain typed functions with frozen metadata, kept in explicit lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from striate.errors import SpecError, did_you_mean

Function = TypeVar("Function")


class NoParams(BaseModel):
    """The params model of a strategy that has no settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Strategy(Generic[Function]):
    """One registered way of doing something: what it is called, where it comes from, and the function itself."""

    name: str
    title: str
    summary: str
    function: Function
    paper: str = ""
    params: type[BaseModel] = NoParams


Entry = TypeVar("Entry", bound=Strategy[Any])


class Registry(Generic[Entry]):
    """The strategies of one kind, in the order of their explicit list."""

    def __init__(self, kind: str, strategies: Sequence[Entry]) -> None:
        """Keep `strategies`; `kind` is the singular noun that errors use."""
        self.kind = kind
        self._by_name = {strategy.name: strategy for strategy in strategies}
        assert len(self._by_name) == len(strategies), f"two {kind}s share a name"

    def names(self) -> list[str]:
        """Return every registered name, in list order."""
        return list(self._by_name)

    def get(self, name: str) -> Entry:
        """Return the strategy called `name`.

        Raises:
            SpecError: no such strategy; the text names the closest one and lists all.
        """
        if name in self._by_name:
            return self._by_name[name]
        raise SpecError(
            f"unknown {self.kind} {name!r}",
            ", ".join(self.names()),
            f"{did_you_mean(name, self._by_name)}see `striate ls {self.kind}s`",
        )

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._by_name.values())

    def __contains__(self, name: Any) -> bool:
        return name in self._by_name

    def __len__(self) -> int:
        return len(self._by_name)
