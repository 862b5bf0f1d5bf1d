"""Makes a pack of plain text from Python's own language reference, which every installation carries."""

from __future__ import annotations

import json
import random
import re
from functools import partial
from pathlib import Path
from typing import Any

from striate.errors import DataError
from striate.progress import Progress, Silent
from striate.storage.made_once import made_once

PASSAGES, CHARACTERS = 16, 900


def prepare_language_reference(target: Path, seed: int = 0, progress: Progress | None = None) -> Path:
    """Return `target`, filled with English prose from the `pydoc_data` package, a passage a topic.

    test.jsonl has 16 of them, for perplexity, and train.json the others, each as the answer to a question: text to
    calibrate and to heal by.

    Raises:
        DataError: this Python installation comes without it.
    """
    return made_once(target, partial(_convert, seed), progress or Silent())


def _convert(seed: int, folder: Path) -> None:
    passages = _passages()
    chosen = random.Random(seed).sample(passages, PASSAGES)
    rows = [
        {"id": f"language-reference-{topic}", "text": text, "metric": "perplexity", "task": "language-reference"}
        for topic, text in chosen
    ]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    others = [_conversation(topic, text) for topic, text in passages if (topic, text) not in chosen]
    (folder / "train.json").write_text(json.dumps(others))


def _conversation(topic: str, text: str) -> dict[str, Any]:
    """Return a training sample without a picture."""
    asked = {"from": "human", "value": f"What does Python's language reference say of {topic}?"}
    turns = [asked, {"from": "gpt", "value": text}]
    return {"id": f"language-reference-{topic}", "conversations": turns, "task": "language-reference"}


def _passages() -> list[tuple[str, str]]:
    """Return a passage of prose of every topic that has enough of it, in order of topics."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DataError(
            "this Python installation has no pydoc_data (its own documentation)",
            "a full standard library",
            "install Python's standard library whole, or run with your own text pack in evaluate.packs",
        ) from error
    passages = [(topic, _prose(topics[topic])) for topic in sorted(topics)]
    return [(topic, text) for topic, text in passages if len(text) >= CHARACTERS // 2]


def _prose(text: str) -> str:
    """Return the paragraphs of `text` that are sentences, without code and headings, up to a few hundred words."""
    paragraphs = [" ".join(part.split()) for part in text.split("\n\n") if not re.match(r"\s{2,}|\*|=|\+|\|", part)]
    prose = " ".join(part for part in paragraphs if part.endswith(".") and len(part) > 80)
    return prose[: prose.rfind(".", 0, CHARACTERS) + 1]
