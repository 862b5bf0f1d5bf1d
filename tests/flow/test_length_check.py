"""`striate check` names the samples that training could not learn from within train.max_length."""

from __future__ import annotations

import base64
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from published_kit import mmbench

from striate.data.checks.length_check import lengths, oversized
from striate.data.collate import Collator
from striate.data.pictures import ORDINARY
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.errors import ArtifactError, DataError
from striate.pipeline import Flow
from striate.pipeline.checking import data_ahead
from striate.pipeline.validate import check_run
from striate.tasks.inference.ask import ask
from striate.tasks.packs.reader import read_pack

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


def test_what_a_template_refuses_keeps_its_own_advice(
    run_config: Any, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Collator, sample: Any) -> int:
        raise DataError("the template refuses it", "other roles", "change the template")

    monkeypatch.setattr(Collator, "text_length", refuse)
    with pytest.raises(DataError, match="the template refuses it") as error:
        lines(run_config, pack)
    assert error.value.next_step == "change the template"
    left_out = lines(run_config, pack, "data.broken=skip", "evaluate.packs=[]")
    assert any("left out: " in line for line in left_out)


def test_check_says_that_all_fit(run_config: Any, saved_pack: Path) -> None:
    count = len(read_samples(saved_pack))
    assert f"lengths   {count} samples fit into 128 tokens" in lines(run_config, saved_pack)


def test_of_many_samples_some_are_counted_and_the_longest_among_them(
    run_config: Any, saved_pack: Path, pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(read_samples(saved_pack))
    monkeypatch.setattr(data_ahead, "MOST_COUNTED", 6)
    said = [line for line in lines(run_config, saved_pack) if line.startswith(("lengths", "ready"))]
    assert said[0] == (
        f"lengths   of {count} samples 6 were counted, among them those of the most text and pictures: 6 samples fit"
        " into 128 tokens"
    )
    with pytest.raises(DataError, match=r"'train-03' does not fit.*\nsample 'train-04' does not fit"):
        lines(run_config, pack)


def test_what_is_estimated_of_samples_that_are_not_counted(tiny_llava: Loaded, saved_pack: Path) -> None:
    samples = [*read_samples(saved_pack)] * 4
    whole, some = (lengths(tiny_llava.processor, samples, 128, ORDINARY, most_counted=most) for most in (None, 26))
    assert (whole.counted, some.counted, some.samples) == (52, 26, 52)
    assert (some.longest, some.pictures, some.image_tokens) == (whole.longest, whole.pictures, whole.image_tokens)
    assert abs(some.text - whole.text) < 0.1 * whole.text


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text("ab é漢<|im_end|>\n", min_size=1, max_size=60), st.integers(1, 3), st.booleans(), st.integers(16, 90))
def test_it_names_exactly_what_training_and_asking_refuse(
    tiny_llava: Loaded, saved_pack: Path, text: str, times: int, shown: bool, most: int
) -> None:
    picture = next(sample.images[0] for sample in read_samples(saved_pack) if sample.images)
    question = ("<image>\n" if shown else "") + text * times + "?"
    # What is behind the start of an answer is cut.
    turns = (Message("user", question), Message("assistant", "red" + " blue" * 15 * (times - 1)))
    sample = Sample("s", turns, (picture,) if shown else ())
    for train, one in ((True, sample), (False, sample.prompt())):
        try:
            Collator(tiny_llava.processor, most, train).encode([one])
            refused = False
        except DataError:
            refused = True
        assert bool(oversized(tiny_llava.processor, [one], most, ORDINARY, train=train)) == refused


LONG = "Look closely. " * 400
TOO_LONG = {
    "exact": {"question": LONG, "answers": ["red"]},
    "choice_logprob": {"context": LONG, "choices": ["red", "blue"], "answer_index": 0},
    "last_word": {"context": LONG, "continuation": "red"},
}


def with_item(saved_pack: Path, folder: Path, metric: str) -> Path:
    pack = Path(shutil.copytree(saved_pack, folder / "tests"))
    row = {"id": "long one", "metric": metric, "task": "t", **TOO_LONG[metric]}
    with (pack / "test.jsonl").open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    return pack


@pytest.mark.parametrize("metric", TOO_LONG)
def test_items_longer_than_the_context_are_named_before_a_run_computes(
    run_config: Any, listener: Any, saved_pack: Path, tmp_path: Path, metric: str
) -> None:
    pack = with_item(saved_pack, tmp_path, metric)
    config = run_config(f'evaluate.packs=["{pack}"]', "evaluate.limit=null")
    heard = listener()
    flow = Flow(config, tmp_path / "run", progress=heard)
    for work in (lambda: list(check_run(config)), flow.everything):
        with pytest.raises(DataError, match=r"^(sample|item) 'long one' .*\d{4} tokens") as error:
            work()
        assert "evaluate.max_new_tokens" in error.value.next_step
    assert heard.said == []


def test_a_prompt_that_leaves_no_room_for_its_answer_is_named_with_the_right_advice(
    run_config: Any, saved_pack: Path, tiny_llava: Loaded
) -> None:
    context = tiny_llava.model.config.text_config.max_position_embeddings
    assert any("items fit into the" in line for line in check_run(run_config()))
    with pytest.raises(DataError, match=r"^sample '.*' does not fit: "):
        list(check_run(run_config(f"evaluate.max_new_tokens={context - 8}")))
    item = next(item for item in read_pack(saved_pack).items if item.images)
    with pytest.raises(DataError, match=r"within 8 tokens\n  next: .*lower evaluate\.max_new_tokens"):
        ask(tiny_llava.model, tiny_llava.processor, [item], max_new_tokens=context - 8)


def test_pictures_inside_other_files_are_decoded(
    run_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    mmbench(tmp_path / "bench")
    [file] = (tmp_path / "bench").iterdir()
    config = run_config(f'evaluate.packs=["mmbench:{tmp_path / "bench"}"]')
    [told] = [line for line in check_run(config) if line.startswith("pack ")]
    assert told.endswith("items of 1 task, 1 pictures")
    lines = file.read_text().split("\n")
    cells = lines[1].split("\t")
    cells[9] = base64.b64encode(base64.b64decode(cells[9])[:200]).decode()
    file.write_text("\n".join([lines[0], "\t".join(cells), *lines[2:]]))
    with pytest.raises(DataError, match=r"sample '241': can't read picture"):
        list(check_run(config))
    assert not list((tmp_path / "temporary").iterdir())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(ArtifactError, match=r"^no folder for temporary files: [\s\S]*set TMPDIR to one$"):
        list(check_run(config))
