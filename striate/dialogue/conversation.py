"""A conversation with a model about pictures, turn by turn. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from striate.data.pictures import FORMATS, ORDINARY, PictureLimits, verify_image
from striate.data.samples import PLACEHOLDER, Message, Sample
from striate.errors import DataError
from striate.storage.read_files import user_path

OWNER = "the question"
"""What errors call the sample that a conversation is."""


@dataclass(frozen=True)
class Conversation:
    """What was said so far, the pictures that it showed, and those that the next question shows."""

    messages: tuple[Message, ...] = ()
    pictures: tuple[Path, ...] = ()
    waiting: tuple[Path, ...] = ()

    def showing(self, *pictures: Path) -> Conversation:
        """Return the conversation whose next question shows `pictures` too."""
        return replace(self, waiting=(*self.waiting, *pictures))

    def asked(self, question: str) -> Conversation:
        """Return the conversation after a question, which stands behind its pictures.

        Where the question has an `<image>` for each of them, they stand there.

        Raises:
            DataError: it has another number of them.
        """
        count, named = len(self.waiting), question.count(PLACEHOLDER)
        if named not in (0, count):
            raise DataError(
                f"the question has {named} {PLACEHOLDER} placeholders and {count} pictures",
                f"one {PLACEHOLDER} for every picture, in order, or none",
                f"leave {PLACEHOLDER} out, or name the pictures",
            )
        text = question if named == count else f"{PLACEHOLDER * count}\n{question}"
        return Conversation((*self.messages, Message("user", text)), (*self.pictures, *self.waiting))

    def answered(self, text: str) -> Conversation:
        """Return the conversation after the model's answer."""
        return replace(self, messages=(*self.messages, Message("assistant", text.replace(PLACEHOLDER, ""))))

    def sample(self) -> Sample:
        """Return the conversation as a sample, to be continued or looked into."""
        return Sample(OWNER, self.messages, self.pictures)


def checked_picture(path: str | Path, limits: PictureLimits = ORDINARY) -> Path:
    """Return the path of a picture, which was decoded once.

    Raises:
        DataError: it is missing, damaged, too large, or no picture.
    """
    file = user_path(path)
    if not file.is_file():
        what = "is a folder" if file.is_dir() else "is no file" if file.exists() else "does not exist"
        raise DataError(f"{file} {what}", "a picture's file", "check the path")
    try:
        verify_image(file, OWNER, limits)
    except DataError as error:
        given = error.given.removeprefix(f"sample {OWNER!r}: ")
        allowed = f"a whole picture in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, of a usual size"
        raise DataError(given, allowed, "give another picture, or save this one again") from error
    return file
