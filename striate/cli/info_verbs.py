"""The verbs ls and version."""

from collections.abc import Callable
from json import dumps
from typing import Annotated

import typer

from striate.cli.boundary import guard
from striate.cli.console import OUT, print_json, show_table
from striate.cli.options import Json
from striate.errors import ConfigError, did_you_mean
from striate.version import __version__


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the command line."""
    app.command("ls")(list_names)
    app.command("version")(version)


def list_names(
    what: Annotated[str, typer.Argument(help="scorers, selectors, tasks or families")], json: Json = False
) -> None:
    """List what exists, one line each."""
    with guard(None):
        rows = _listings().get(what)
        if rows is None:
            hint = f"{did_you_mean(what, _listings())}for example `striate ls scorers`"
            raise ConfigError(f"unknown list {what!r}", ", ".join(_listings()), hint)
        if json:
            print_json(dumps([{"name": name, "what": told} for name, told in rows()]))
        else:
            show_table("", ["name", "what it is"], rows())


def version(json: Json = False) -> None:
    """Print the version."""
    print_json(dumps({"version": __version__})) if json else OUT.print(__version__)


def _listings() -> dict[str, Callable[[], list[list[str]]]]:
    """Return what `ls` can list; each list is made when asked for, since some need torch."""

    def scorers() -> list[list[str]]:
        from striate.scorers import SCORERS

        return [[strategy.name, strategy.summary] for strategy in SCORERS]

    def selectors() -> list[list[str]]:
        from striate.selectors import SELECTORS

        return [[strategy.name, strategy.summary] for strategy in SELECTORS]

    def tasks() -> list[list[str]]:
        from striate.harness.suites import HARNESSES
        from striate.tasks.benchmarks import BENCHMARKS
        from striate.tasks.metrics import METRICS

        metrics = [[strategy.name, f"metric: {strategy.summary}"] for strategy in METRICS]
        benchmarks = [[f"{row.name}:FOLDER", f"benchmark: {row.summary}"] for row in BENCHMARKS]
        return [*metrics, *benchmarks, *([f"{row.name}:TASKS", f"suite: {row.what}"] for row in HARNESSES.values())]

    def families() -> list[list[str]]:
        from striate.models.structure.families import FAMILIES

        return [[family.model_type, family.title] for family in FAMILIES]

    return {"scorers": scorers, "selectors": selectors, "tasks": tasks, "families": families}
