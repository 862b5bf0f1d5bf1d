"""Replies on disk: added as they come, whole lines only, and only those that follow from the same inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from striate.errors import ArtifactError
from striate.tasks.inference.reply_journal import Journal
from striate.tasks.packs.items import Item, Reply

ITEMS = [Item(id=name, pack=pack, task="t", metric="exact") for pack, name in (("p", "a"), ("p", "b"), ("q", "a"))]
REPLIES = [Reply("a\nb é\u2028"), Reply("", (-1.5, -0.1 - 0.2), (3, 4)), Reply("x")]


def test_replies_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "eval" / "start.replies.jsonl"
    journal = Journal(path, "k")
    journal.add(ITEMS[:2], REPLIES[:2])
    assert Journal(path, "k").replies(ITEMS) == {0: REPLIES[0], 1: REPLIES[1]}
    Journal(path, "k").add(ITEMS[2:], REPLIES[2:])
    assert Journal(path, "k").replies(ITEMS[::-1]) == {0: REPLIES[2], 1: REPLIES[1], 2: REPLIES[0]}


def test_a_line_cut_short_is_dropped_and_the_next_one_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    Journal(path, "k").add(ITEMS, REPLIES)
    whole = path.read_bytes()
    for cut in range(1, len(whole.splitlines(keepends=True)[-1]) + 1):
        path.write_bytes(whole[:-cut])
        journal = Journal(path, "k")
        assert journal.replies(ITEMS) == {0: REPLIES[0], 1: REPLIES[1]}
        journal.add(ITEMS[2:], REPLIES[2:])
        assert path.read_bytes() == whole


def test_replies_of_other_inputs_are_not_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "replies.jsonl"
    Journal(path, "k").add(ITEMS, REPLIES)
    assert Journal(path, "other").replies(ITEMS) == {}
    assert Journal(path, "k").replies(ITEMS) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('{"pack": "p"', '{"pakc": "p"'),
        ('{"pack": "p"', '{"pack": ["p"]'),
        ('"text": ', '"text": null, "was": '),
        ('"logprobs": [', '"logprobs": ["x", '),
        ('"tokens": [', '"tokens": [Infinity, '),
    ],
)
def test_a_damaged_journal_is_named(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "replies.jsonl"
    Journal(path, "k").add(ITEMS, REPLIES)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ArtifactError) as caught:
        Journal(path, "k")
    assert f"{path} is damaged: " in str(caught.value)
    assert "next:    delete that file" in str(caught.value)


def test_a_journal_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "eval").write_text("a file")
    with pytest.raises(ArtifactError, match="can't write"):
        Journal(tmp_path / "eval" / "replies.jsonl", "k")
