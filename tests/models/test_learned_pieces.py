"""What `striate data` shows as learned are the tokens that have labels, with the text that they stand for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from typer.testing import CliRunner

from striate.cli.app import app
from striate.data.collate import Collator
from striate.data.label_mask import IGNORED
from striate.data.overview.learned_text import learned_pieces
from striate.data.reading import read_samples

if TYPE_CHECKING:
    from striate.models.io.load import Loaded


def test_pieces_are_the_tokens_and_their_labels(tiny_llava: Loaded, saved_pack: Path) -> None:
    collator = Collator(tiny_llava.processor, 128, True)
    for sample in read_samples(saved_pack):
        pieces = learned_pieces(collator, tiny_llava.processor, sample)
        [item] = collator.encode_each([sample])
        labels, ids = item.tokens["labels"][0], item.tokens["input_ids"][0]
        assert [piece.learned for piece in pieces for _ in range(piece.tokens)] == (labels != IGNORED).tolist()
        assert sum(piece.image_tokens for piece in pieces) == int(collator.image_mask(item.tokens).sum())
        answers = [message.text + "<|im_end|>" for message in sample.messages if message.role == "assistant"]
        assert [piece.text for piece in pieces if piece.learned] == answers
        told = "".join(piece.text for piece in pieces)
        assert told == tiny_llava.processor.tokenizer.decode(ids).replace("<image>", "")


def test_the_verb_counts_tokens_with_a_model(saved_pack: Path, tiny_llava_dir: Path) -> None:
    shown = CliRunner().invoke(app, ["data", str(saved_pack), "--model", str(tiny_llava_dir), "--samples", "1"])
    assert shown.exit_code == 0, shown.output
    assert "<4 image tokens>What colour is the square?<|im_end|>" in shown.stdout
    assert "<|im_end|>]]" in shown.stdout
    short = ["--set", "train.max_length=16", "--samples", "13", "--json"]
    shown = CliRunner().invoke(app, ["data", str(saved_pack), "--model", str(tiny_llava_dir), *short])
    found = json.loads(shown.stdout)
    total, usual, longest = found["tokens"]
    assert 13 * usual >= total / 2
    assert longest > 16
    assert all("does not fit: " in row["error"] for row in found["shown"])
