"""The command line: each verb parses, calls one stage or the flow, and prints."""

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from striate.cli import (
    analysis_verbs,
    asking_verbs,
    bench_verb,
    data_verbs,
    evaluation_verbs,
    export_verbs,
    flow_verbs,
    info_verbs,
    inspect_verbs,
    model_verbs,
    sharing_verbs,
    sweep_verb,
    training_verbs,
)
from striate.cli.boundary import DEBUG, guard
from striate.cli.console import ERR, OUT, QUIET, VERBOSE, RichProgress
from striate.errors import ConfigError
from striate.printable import shown
from striate.progress import FETCHING
from striate.version import __version__

HELP_ORDER = (
    "quickstart",
    "run",
    "analyze",
    "select",
    "find-lr",
    "sweep",
    "train",
    "prune",
    "evaluate",
    "report",
    "inspect",
    "ls",
    "check",
    "data",
    "version",
    "import",
    "compose",
    "remove-layers",
    "merge",
    "export",
    "push",
    "ask",
    "chat",
    "demo",
    "bench",
)
"""Every verb, in the order in which `striate --help` lists them."""

app = typer.Typer(
    help="Find the visual region of a vision-language model, tune only it, prune around it, prove what was kept.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for verbs in (
    flow_verbs,
    analysis_verbs,
    training_verbs,
    evaluation_verbs,
    inspect_verbs,
    info_verbs,
    model_verbs,
    data_verbs,
    sharing_verbs,
    export_verbs,
    asking_verbs,
    bench_verb,
    sweep_verb,
):
    verbs.register(app)
app.registered_commands.sort(key=lambda command: HELP_ORDER.index(command.name or ""))


def _print_version(asked: bool) -> None:
    if asked:
        OUT.print(__version__)
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Results, warnings and errors alone, without progress; may stand anywhere.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Tables of every layer and task; may stand anywhere.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options of all verbs."""
    DEBUG.set(debug)
    QUIET.set(quiet)
    VERBOSE.set(verbose)
    FETCHING.set(RichProgress(ERR))


def main() -> None:
    """Run the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Not every terminal can show every character.
            stream.reconfigure(errors="backslashreplace")
    DEBUG.set("--debug" in sys.argv)
    given = [option for option in ("--debug", "--quiet", "--verbose") if option in sys.argv[1:]]
    arguments = [argument for argument in sys.argv[1:] if argument not in given]
    try:
        with guard(None):
            _check_text(arguments)
            app([*given, *arguments])
    except typer.Exit as stop:
        sys.exit(stop.exit_code)


def _check_text(arguments: Sequence[str]) -> None:
    """Raise for an argument that is no text: it could not be written down in a run folder."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise ConfigError(
                f"{shown(argument)} is not UTF-8 text", "arguments and paths in UTF-8", "rename that file or folder"
            ) from None
