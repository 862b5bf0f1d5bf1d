"""Conversations about pictures: the one form in which striate holds training, calibration and test samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from striate.data.sources.stored_pictures import Picture

PLACEHOLDER = "<image>"
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks and what is said; each `<image>` in `text` stands for the sample's next picture."""

    role: Role
    text: str

    def content(self) -> list[dict[str, Any]]:
        """Return the turn as Hugging Face content blocks: `{"type": "image"}` and `{"type": "text", "text": ...}`."""
        blocks: list[dict[str, Any]] = []
        for index, piece in enumerate(self.text.split(PLACEHOLDER)):
            if index:
                blocks.append({"type": "image"})
            text = piece if self.images == 0 else piece.strip("\n")
            if text:
                blocks.append({"type": "text", "text": text})
        return blocks

    @property
    def images(self) -> int:
        """The number of pictures that the turn shows."""
        return self.text.count(PLACEHOLDER)

    @property
    def plain(self) -> str:
        """The words of the turn, without its picture placeholders."""
        return self.text.replace(PLACEHOLDER, "").strip() if self.images else self.text


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation with its pictures, in the order in which the placeholders name them."""

    id: str
    messages: tuple[Message, ...]
    images: tuple[Picture, ...] = ()
    task: str = ""

    def chat(self) -> list[dict[str, Any]]:
        """Return the conversation in the content-list form that Hugging Face chat templates read."""
        return [{"role": message.role, "content": message.content()} for message in self.messages]

    @property
    def question(self) -> str:
        """The words of the last user turn."""
        return next((message.plain for message in reversed(self.messages) if message.role == "user"), "")

    @property
    def answer(self) -> str:
        """The words of the last turn if the assistant speaks it, else an empty string."""
        return self.messages[-1].plain if self.messages[-1].role == "assistant" else ""

    def prompt(self) -> Sample:
        """Return the sample without its last answer: what a model is asked."""
        if self.messages[-1].role != "assistant":
            return self
        return Sample(self.id, self.messages[:-1], self.images, self.task)
