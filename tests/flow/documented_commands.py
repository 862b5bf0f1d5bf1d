"""Commands and Python that the README, the docs and the shipped configs show, in the order of their pages."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# A command stands in a block of its own, indented by four, or in a config's comment.
_SHOWN = re.compile(r"(?: {4}|#   )\s*(.*\bstriate [a-z].*)")


@dataclass(frozen=True)
class Shown:
    """One command line of `striate`, without what stands before it, and the pages that show it."""

    line: str
    pages: tuple[str, ...]

    @property
    def arguments(self) -> list[str]:
        """Its arguments, as a shell would hand them on."""
        return shlex.split(self.line, comments=True)[1:]


def shown_commands() -> list[Shown]:
    """Return every command of `striate` that a page or a config shows, each once."""
    places: dict[str, list[str]] = {}
    for path in (*PAGES, *CONFIGS):
        for line in _command_lines(path.read_text(encoding="utf-8"), is_page=path.suffix == ".md"):
            for part in line.split("&&"):
                command = re.search(r"(?:^|\s)(striate(?: (?!--).*|$))", part.split(" #")[0].strip())
                if command:
                    places.setdefault(command[1].strip(), []).append(path.relative_to(ROOT).as_posix())
    return [Shown(line, tuple(dict.fromkeys(pages))) for line, pages in places.items()]


def python_blocks() -> list[tuple[str, str]]:
    """Return the page and the text of every Python block."""
    return [
        (path.relative_to(ROOT).as_posix(), body)
        for path in PAGES
        for language, body in _FENCE.findall(path.read_text(encoding="utf-8"))
        if language == "python"
    ]


def named_options() -> list[tuple[str, str, str]]:
    """Return page, verb and option of each option that running text names, as in `striate select --beside`."""
    named = []
    for path in PAGES:
        for verb, rest in re.findall(r"`striate ([a-z][a-z-]*)((?: [^`\n]*)?)`", path.read_text(encoding="utf-8")):
            named += [(path.name, verb, option) for option in re.findall(r"(?<=\s)--[a-z][a-z-]*", rest) or [""]]
    return list(dict.fromkeys(named))


def _command_lines(text: str, *, is_page: bool) -> list[str]:
    """Return lines that may hold commands: those of blocks, and indented ones."""
    if not is_page:
        return [shown[1] for shown in map(_SHOWN.match, text.splitlines()) if shown]
    # A command that goes on in the next line.
    text = re.sub(r" *\\\n *", " ", text)
    blocks = [line for language, body in _FENCE.findall(text) if language in ("", "bash") for line in body.splitlines()]
    outside = _FENCE.sub("", text).splitlines()
    return [*blocks, *(shown[1] for shown in map(_SHOWN.match, outside) if shown)]
