"""Journal of replies on disk, from which a killed evaluation resumes. No torch."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from striate.errors import ArtifactError
from striate.storage.atomic import cannot_write
from striate.storage.held_folders import check_held
from striate.tasks.packs.items import Item, Reply

Key = tuple[str, str]


class Journal:
    """A file of JSON lines: first what its replies follow from, then one reply a line, added batch by batch.

    A line that was cut short by a kill is dropped; so is a whole file that follows from something else.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Read what is at `path`, if its replies follow from `key`: the fingerprint of model, packs and settings.

        Raises:
            ArtifactError: the file can't be read or written, or is damaged.
        """
        self.path = path
        self._header = json.dumps({"replies_of": key})
        self._known: dict[Key, Reply] = {}
        try:
            lines = self._whole_lines()
            if lines[:1] != [self._header]:
                lines = [self._header]
            self._known = dict(_entry(line, path) for line in lines[1:])
            check_held(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Drop the cut line before anything is appended after it.
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        except OSError as error:
            raise cannot_write(path, error) from error

    def replies(self, items: Sequence[Item]) -> dict[int, Reply]:
        """Return the replies that are known, by the place of their item."""
        known = {place: self._known.get((item.pack, item.id)) for place, item in enumerate(items)}
        return {place: reply for place, reply in known.items() if reply is not None}

    def add(self, items: Sequence[Item], replies: Sequence[Reply]) -> None:
        """Keep the replies to `items`; they are with the system when this returns, and survive a kill.

        Raises:
            ArtifactError: the file can't be written.
        """
        lines = [_line(item, reply) for item, reply in zip(items, replies, strict=True)]
        try:
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write("".join(lines))
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _whole_lines(self) -> list[str]:
        """Return the lines that were written whole; every line ends with a line break."""
        if not self.path.exists():
            return []
        return self.path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def _line(item: Item, reply: Reply) -> str:
    row: dict[str, Any] = {"pack": item.pack, "id": item.id, "text": reply.text}
    return json.dumps({**row, "logprobs": reply.logprobs, "tokens": reply.tokens}) + "\n"


def _entry(line: str, path: Path) -> tuple[Key, Reply]:
    try:
        row = json.loads(line)
        reply = Reply(row["text"], tuple(map(float, row["logprobs"])), tuple(map(int, row["tokens"])))
        if not all(isinstance(text, str) for text in (row["pack"], row["id"], reply.text)):
            raise TypeError("a text is something else")
        return (row["pack"], row["id"]), reply
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is damaged: {line!r:.60} is no reply", "replies as striate kept them", "delete that file"
        ) from error
