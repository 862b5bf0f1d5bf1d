"""The command line: each verb parses, calls one stage or the flow, and prints."""

import typer

from striate.cli import (
    analysis_verbs,
    evaluation_verbs,
    flow_verbs,
    info_verbs,
    inspect_verbs,
    model_verbs,
    training_verbs,
)

HELP_ORDER = (
    "quickstart",
    "run",
    "analyze",
    "select",
    "train",
    "prune",
    "evaluate",
    "report",
    "inspect",
    "ls",
    "check",
    "version",
    "import",
    "compose",
    "remove-layers",
)
"""Every verb, in the order in which `striate --help` lists them."""

app = typer.Typer(
    help="Find the visual region of a vision-language model, tune only it, prune around it, prove what was kept.",
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
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
):
    verbs.register(app)
app.registered_commands.sort(key=lambda command: HELP_ORDER.index(command.name or ""))


def main() -> None:
    """Run the command line."""
    app()
