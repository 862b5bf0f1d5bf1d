"""`striate check` names the samples that training could not learn from within train.max_length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from striate.data.collate import Collator
from striate.data.length_check import oversized
from striate.data.pictures import ORDINARY
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.errors import DataError
from striate.pipeline.validate import check_run

if TYPE_CHECKING:
    from striate.models.io.load import Loaded


@pytest.fixture
def pack(saved_pack: Path, tmp_path: Path) -> Path:
    pack = Path(shutil.copytree(saved_pack, tmp_path / "pack"))
    rows = json.loads((pack / "train.json").read_text())
    for row in rows[3:5]:
        row["conversations"][0]["value"] = row["conversations"][0]["value"] + " Look closely." * 90
    (pack / "train.json").write_text(json.dumps(rows))
    return pack


def lines(run_config: Any, pack: Path, *more: str) -> list[str]:
    return list(check_run(run_config(f'data.train=["{pack}"]', "train.max_length=128", *more)))


def test_check_names_every_sample_that_is_too_long(run_config: Any, pack: Path) -> None:
    with pytest.raises(
        DataError, match=r"^sample 'train-03' does not fit: \d+ tokens, 4 of them image tokens"
    ) as error:
        lines(run_config, pack)
    assert "\nsample 'train-04' does not fit: " in str(error.value)
    assert "within train.max_length 128" in error.value.allowed
    assert "raise train.max_length" in error.value.next_step


def test_check_says_what_is_left_out_where_broken_samples_are(run_config: Any, pack: Path) -> None:
    (pack / "images/square_00.png").write_bytes(b"no picture")
    said = lines(run_config, pack, "data.broken=skip")
    assert any("some broken: sample 'train-00': can't read picture" in line for line in said)
    assert any(line.endswith("fit into 128 tokens; left out: 2 (train-03, train-04)") for line in said)


def test_check_says_that_all_fit(run_config: Any, saved_pack: Path) -> None:
    count = len(read_samples(saved_pack))
    assert f"lengths   {count} samples fit into 128 tokens" in lines(run_config, saved_pack)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("ab é漢<|im_end|>\n", min_size=1, max_size=60), st.integers(1, 3), st.booleans(), st.integers(16, 90))
def test_it_names_exactly_what_training_refuses(
    tiny_llava: Loaded, saved_pack: Path, text: str, times: int, shown: bool, most: int
) -> None:
    picture = next(sample.images[0] for sample in read_samples(saved_pack) if sample.images)
    question = ("<image>\n" if shown else "") + text * times + "?"
    sample = Sample("s", (Message("user", question), Message("assistant", "red")), (picture,) if shown else ())
    try:
        Collator(tiny_llava.processor, most, train=True).encode_each([sample])
        refused = False
    except DataError:
        refused = True
    assert bool(oversized(tiny_llava.processor, [sample], most, ORDINARY)) == refused
