"""Text for others to read, without the places on this disk."""

import re
import shlex
from pathlib import Path
from typing import Any

# What stands before a path: nothing of a word, of an address (https://) or of a share (1/2).
_FOLDERS = re.compile(r"(?<![\w.:/~\\-])/(?:[^\s/'\",;:(){}\[\]=]+/)*(?=[^\s/])")
# A name and a path, but no address.
_NAMED = re.compile(r"([^/\\\s]+[:@])(/(?!/).*)", re.DOTALL)


def without_places(value: Any) -> Any:
    """Return `value` with every text in it that is an absolute path cut to its last part; of dicts the keys too."""
    if isinstance(value, dict):
        return {without_places(key): without_places(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_places(part) for part in value]
    return last_part(value) if isinstance(value, str) else value


def last_part(place: str) -> str:
    """Return an absolute path's last part, also behind a name (`name:PATH`, `tasks@PATH`); any other text as it is."""
    named = _NAMED.fullmatch(place)
    before, path = named.groups() if named else ("", place)
    return before + (Path(path).name or path) if Path(path).is_absolute() else place


def portable_command(command: str) -> str:
    """Return a command line whose absolute paths are cut to their last parts."""
    try:
        words = shlex.split(command)
    except ValueError:
        return portable_text(command)
    return shlex.join(portable_text(last_part(word)) for word in words)


def portable_text(text: str) -> str:
    """Return `text` without the folders before the last part of each absolute path in it."""
    return _FOLDERS.sub("", text)
