"""A conversation in the terminal: lines in, words out, and a few commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from striate.dialogue.answering import Answerer
from striate.dialogue.conversation import Conversation, checked_picture
from striate.errors import StriateError, did_you_mean
from striate.storage.read_files import user_path

HELP = "ask; /picture PATH shows a picture with the next question, /new begins anew, /quit or Ctrl-D leaves"
COMMANDS = ("/picture", "/new", "/quit", "/help")


@dataclass(frozen=True)
class Terminal:
    """Where a chat takes its lines from (`read` raises EOFError at the end), and where it writes words and notes."""

    read: Callable[[], str]
    write: Callable[[str], None]
    tell: Callable[[str], None]


def run_chat(answerer: Answerer, conversation: Conversation, terminal: Terminal) -> None:
    """Return when the person leaves: by /quit, at the end of the input, or by Ctrl-C where nothing is being answered.

    Ctrl-C within an answer stops that answer alone. What can't be asked is said, and the conversation stays as it was.
    """
    while True:
        try:
            line = terminal.read().strip()
        except (EOFError, KeyboardInterrupt):
            terminal.write("\n")
            return
        try:
            if line == "/quit":
                return
            if line.startswith("/"):
                conversation = _obeyed(line, conversation, terminal)
            elif line:
                conversation = _answered(answerer, conversation, line, terminal)
        except StriateError as error:
            terminal.tell(f"error: {error}")


def _obeyed(line: str, conversation: Conversation, terminal: Terminal) -> Conversation:
    """Return the conversation after a command."""
    command, _, rest = line.partition(" ")
    if command == "/picture" and rest.strip():
        picture = checked_picture(_path(rest))
        terminal.tell(f"{picture.name} is shown with the next question")
        return conversation.showing(picture)
    if command == "/new":
        terminal.tell("a new conversation")
        return Conversation()
    hint = "" if command in COMMANDS else f"no command {command}: {did_you_mean(command, COMMANDS)}"
    terminal.tell(f"{hint}{HELP}")
    return conversation


def _path(typed: str) -> str:
    """Return a path as it was typed, or dropped by a terminal, which quotes it or puts a backslash before spaces."""
    path = typed.strip().strip("'\"")
    return path if user_path(path).exists() else re.sub(r"\\(.)", r"\1", path)


def _answered(answerer: Answerer, begun: Conversation, question: str, terminal: Terminal) -> Conversation:
    """Return the conversation after the answer, or what Ctrl-C left of it; as it was where that is nothing."""
    said: list[str] = []
    asked = begun.asked(question)

    def on_text(text: str) -> None:
        said.append(text)
        terminal.write(text)

    try:
        text = answerer.answer(asked.sample(), on_text).text
    except KeyboardInterrupt:
        text = "".join(said)
        terminal.write(" (stopped)\n")
        return asked.answered(text) if text else begun
    terminal.write("\n")
    return asked.answered(text)
