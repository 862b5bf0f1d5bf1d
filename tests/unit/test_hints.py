"""Every command, option and setting that a message names is one that there is; those that need nothing are run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import striate
from striate.cli import app
from striate.config import parse_config
from striate.errors import ConfigError

SOURCE = Path(striate.__file__).parent
VERBS: dict[str, Any] = getattr(get_command(app), "commands", {})
GLOBAL = {"--debug", "--quiet", "--verbose", "--version"}
RAW = {"model": {"path": "builtin"}, "data": {"train": ["x"], "validate": "5%"}, "evaluate": {"packs": ["x"]}}
HOLE = "HOLE"
"""Stands where a message puts in what it found."""


def texts(tree: ast.AST) -> Iterator[str]:
    """Yield the strings of a module that a person may see: no docstrings, which stand by themselves."""
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inner = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
    for node in ast.walk(tree):
        if id(node) in told or id(node) in inner:
            continue
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else HOLE for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


TEXTS = [
    (f"{path.relative_to(SOURCE)}", text)
    for path in sorted(SOURCE.rglob("*.py"))
    if re.search(r"striate |--set ", source := path.read_text(encoding="utf-8"))
    for text in texts(ast.parse(source))
]
COMMANDS = {(place, found) for place, text in TEXTS for found in re.findall(r"`(striate [^`]+)`", text)}
SETTINGS = {
    (place, *found)
    for place, text in TEXTS
    for found in re.findall(r"--set '?([a-z_]+\.[a-z_.]+)=([^\s\"'`;:,]+)", text)
}


def test_messages_have_hints() -> None:
    assert len(COMMANDS) > 20
    assert len(SETTINGS) > 10


@pytest.mark.parametrize(("place", "command"), sorted(COMMANDS))
def test_a_command_in_a_message_has_such_a_verb_and_options(place: str, command: str) -> None:
    verb, *words = shlex.split(command)[1:]
    # Of any verb where a message puts in the one that ran.
    found = VERBS if verb == HOLE else {verb: VERBS[verb]}
    options = {name for one in found.values() for each in one.params for name in each.opts} | GLOBAL
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options, place


@pytest.mark.parametrize(
    "command", sorted({command for _, command in COMMANDS if re.match(r"striate ls \w+$", command)})
)
def test_a_list_in_a_message_is_there(command: str) -> None:
    if HOLE in command:
        command = "striate ls scorers"
    assert CliRunner().invoke(app, shlex.split(command)[1:]).exit_code == 0


# Without the form of all settings.
@pytest.mark.parametrize(("place", "key", "value"), sorted(one for one in SETTINGS if one[1] != "section.key"))
def test_a_setting_in_a_message_is_one_that_the_config_takes(place: str, key: str, value: str) -> None:
    known = not (HOLE in value or value.isupper() or value.startswith("["))
    try:
        parse_config(RAW, [f"{key}={value if known else 'null'}"])
    except ConfigError as error:
        # Where a message puts in what it found, the key alone is known.
        if known or "unknown key" in str(error) or "is not a section" in str(error):
            pytest.fail(f"{place}: {error}")
