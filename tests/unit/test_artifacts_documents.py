"""Artifacts: strict, frozen, and damaged ones are told apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from striate.artifacts import (
    LayerScores,
    Prediction,
    Region,
    Scores,
    read_document,
    read_lines,
    write_document,
    write_lines,
)
from striate.errors import ArtifactError, SpecError

REGION = Region(layers=(0, 4), num_layers=8, spec="uniform:25%", selector="uniform")


def test_region_knows_its_size_and_complement() -> None:
    assert (REGION.ratio, REGION.outside, len(REGION)) == (0.25, (1, 2, 3, 5, 6, 7), 2)
    assert 4 in REGION
    assert 5 not in REGION
    assert "4" not in REGION


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        ((0, 8), "region 's' names layer 8, but the model has 8 layers\n  allowed: layers 0 to 7"),
        ((-1, 9), "region 's' names layer -1, 9, but the model has 8 layers"),
        ((4, 0), "region 's' has layers out of order or twice: [4, 0]"),
        ((4, 4), "region 's' has layers out of order or twice: [4, 4]\n  allowed: each layer once, in rising order"),
    ],
)
def test_impossible_region(layers: tuple[int, ...], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Region(layers=layers, num_layers=8, spec="s")
    assert text in str(caught.value)


def test_region_is_frozen() -> None:
    with pytest.raises(ValidationError):
        REGION.spec = "other"  # type: ignore[misc]


def test_round_trip_is_byte_equal(tmp_path: Path) -> None:
    write_document(tmp_path / "a.json", REGION)
    again = read_document(tmp_path / "a.json", Region)
    write_document(tmp_path / "b.json", again)
    assert again == REGION
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert (tmp_path / "a.json").read_text().endswith("}\n")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("", "is not a Region: the document: Invalid JSON"),
        ('{"layers": [0', "is not a Region: the document: Invalid JSON"),
        ("[]", "is not a Region: the document: Input should be an object"),
        ('{"layers":[0],"num_layers":4}', "is not a Region: spec: Field required"),
        ('{"layers":[0],"num_layers":4,"spec":"x","more":1}', "is not a Region: more: Extra inputs are not permitted"),
        ('{"layers":[0],"num_layers":4,"spec":"x","version":2}', "is not a Region: version: Input should be 1"),
    ],
)
def test_damaged_document(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "region.json"
    path.write_text(content)
    with pytest.raises(ArtifactError) as caught:
        read_document(path, Region)
    assert str(caught.value).startswith(f"{path} {text}")
    assert "next:    delete it and run its stage again" in str(caught.value)


def test_binary_document(tmp_path: Path) -> None:
    path = tmp_path / "region.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="the document: Invalid JSON"):
        read_document(path, Region)


def test_region_file_with_impossible_layers(tmp_path: Path) -> None:
    path = tmp_path / "region.json"
    path.write_text('{"layers":[9],"num_layers":4,"spec":"x"}')
    with pytest.raises(SpecError, match="names layer 9, but the model has 4 layers"):
        read_document(path, Region)


def test_missing_document(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError) as caught:
        read_document(tmp_path / "no.json", Region)
    assert str(caught.value) == (
        f"can't read {tmp_path / 'no.json'}: No such file or directory\n"
        "  allowed: a file that holds a Region\n  next:    run the stage that writes it first"
    )


def test_lines_keep_text_as_it_is(tmp_path: Path) -> None:
    rows = [
        Prediction(id=str(n), pack="p", task="t", metric="exact", question=f"a\u2028b\n{n} été", score=0.5)
        for n in range(3)
    ]
    write_lines(tmp_path / "rows.jsonl", rows)
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) >= 3
    assert read_lines(tmp_path / "rows.jsonl", Prediction) == rows


@pytest.mark.parametrize(
    ("content", "what"), [('{"id": 1', "the text stops"), ('{"id": "1"}', "is not a Pred"), ("[1]", "is not a Pred")]
)
def test_damaged_lines(tmp_path: Path, content: str, what: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content + "\n")
    with pytest.raises(ArtifactError, match=rf"rows\.jsonl:1 .*{what}"):
        read_lines(tmp_path / "rows.jsonl", Prediction)


def test_scores_that_were_not_made() -> None:
    entry = LayerScores(scorer="block-influence", values=(1.0,), low=(1.0,), high=(1.0,), samples=1)
    scores = Scores(num_layers=1, samples=1, scorers=(entry,))
    assert scores.of("block-influence") is entry
    with pytest.raises(ArtifactError) as caught:
        scores.of("angular-distance")
    assert "no scores of 'angular-distance' here\n  allowed: block-influence" in str(caught.value)
    with pytest.raises(ArtifactError, match="allowed: no scorer was run"):
        Scores(num_layers=1, samples=1, scorers=()).of("x")
