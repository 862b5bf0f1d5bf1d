"""From data as it lies somewhere to a tuned model: a folder of photos with a table, and pictures inside other files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from source_kit import FORMS, TALKS, picture
from typer.testing import CliRunner

from striate.artifacts import TrainRecord, read_document
from striate.cli import app
from striate.reporting.sections.trained import draw_course

ADAPTER = "checkpoint/adapter_model.safetensors"


def done(*arguments: object) -> str:
    shown = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert shown.exit_code == 0, shown.output
    return shown.output


def failed(*arguments: object) -> str:
    shown = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert shown.exit_code != 0
    assert "Traceback" not in shown.output
    return " ".join(shown.output.split())


def write_run(
    path: Path, model: Path, train: Sequence[Path], evaluate: dict[str, Any] | None = None, **data: Any
) -> Path:
    """Write the config of a training of one step."""
    raw = {
        "model": {"path": str(model)},
        "data": {"train": list(map(str, train)), **data},
        "select": {"region": "uniform:50%"},
        "train": {"lr": 1e-2, "batch_size": 5, "max_steps": 1, "max_length": 128, "lora": {"r": 4, "alpha": 8}},
        "evaluate": evaluate or {},
        "machine": {"micro_batch": 5, "device": "cpu"},
    }
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.fixture(scope="module")
def saved_llava(_saved_llava: Path) -> Path:
    return _saved_llava


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """What a stranger has: photos in a folder, and a table of their names and labels beside them."""
    folder = tmp_path / "My photos"
    (folder / "2026").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(["Photo", "Colour", "Note"])
        for talk in TALKS[:8]:
            name = f"2026/IMG {talk.picture}"
            (folder / name).write_bytes(picture(talk.picture))
            table.writerow([name, talk.answer, ""])
    return folder


def test_a_folder_of_photos_with_a_table(photos: Path, tmp_path: Path, saved_llava: Path) -> None:
    run, out = tmp_path / "run.yaml", tmp_path / "out"
    write_run(run, saved_llava, [photos])
    # Each message leads on to the next step, and to none twice.
    shown = failed("check", run)
    assert "its fields are 'Photo', 'Colour'" in shown
    assert "data.columns={image: Photo, answer: Colour}" in shown
    columns = "data.columns={image: Photo, answer: Color}"
    assert "did you mean 'Colour'?" in failed("check", run, "--set", columns)
    columns = "data.columns={image: Photo, answer: Colour}"
    assert "data.question" in failed("check", run, "--set", columns)
    settings = ["--set", columns, "--set", "data.question=What colour is it?"]
    assert "8 samples, 8 pictures" in done("check", run, *settings)
    done("select", run, "--out", out, *settings)
    done("train", "--out", out)
    record = json.loads((out / "train.json").read_text())
    assert (record["samples"], record["steps"]) == (8, 1)
    assert "up to date" in done("train", "--out", out)
    shown = failed("train", run, "--out", out, *settings[:2], "--set", "data.question=B?")
    assert "data.question: What colour is it? -> B?" in shown


def test_four_commands_from_photos_to_an_evaluated_model(photos: Path, tmp_path: Path, saved_llava: Path) -> None:
    settings = ["--set", "data.columns={image: Photo, answer: Colour}", "--set", "data.question=What colour is it?"]
    pack, out = tmp_path / "pack", tmp_path / "out"
    assert "8 with pictures" in done("data", photos, *settings)
    assert "none of which is trained on" in done("data", photos, *settings, "--split", "25%", "--out", pack)
    run = write_run(tmp_path / "run.yaml", saved_llava, [pack], evaluate={"packs": [str(pack)], "max_new_tokens": 2})
    assert "ready" in done("check", run)
    done("run", run, "--out", out)
    record = json.loads((out / "train.json").read_text())
    assert record["samples"] == 6
    retained = json.loads((out / "eval" / "retention.json").read_text())
    assert ("tuned", "exact", 2) in [(row["label"], row["metric"], row["n"]) for row in retained["rows"]]
    assert (out / "report.html").is_file()


def test_pictures_of_a_test_pack_may_lie_elsewhere(photos: Path, tmp_path: Path, saved_llava: Path) -> None:
    pack, other = tmp_path / "pack", photos / "2026"
    pack.mkdir()
    item = {"id": "1", "metric": "exact", "question": "Which?", "answers": ["red"], "image": str(other / "IMG 0.png")}
    (pack / "test.jsonl").write_text(json.dumps(item))
    (pack / "train.jsonl").write_text(json.dumps({"image": "IMG 1.png", "question": "Which?", "answer": "green"}))
    run = write_run(tmp_path / "run.yaml", saved_llava, [pack], evaluate={"packs": [str(pack)], "models": ["start"]})
    shown = failed("check", run)
    assert "name the folder that it lies in with data.images" in shown
    allowed = ["--set", f"data.images=['{other}']"]
    assert "1 items of 1 task, 1 pictures" in done("check", run, *allowed)
    done("evaluate", run, "--out", tmp_path / "out", *allowed)
    assert "up to date" in done("evaluate", "--out", tmp_path / "out")
    (other / "IMG 0.png").write_bytes(picture("5.png"))
    assert "start.json was made from other inputs" in failed("evaluate", "--out", tmp_path / "out")


def test_what_was_seen_of_each_source_is_recorded(tmp_path: Path, saved_llava: Path) -> None:
    pictured = FORMS["LLaVA, JSON lines"](tmp_path / "photos").path
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"id": f"x{n}", "question": f"Q{n}", "answer": "A"}) + "\n" for n in range(4)))
    mix = {str(text): 2, str(pictured): 0.4}
    run = write_run(tmp_path / "run.yaml", saved_llava, [pictured, text], mix=mix)
    shown = done("check", run)
    assert "mix       train.jsonl x 0.4 of 10, text.jsonl x 2 of 4: 12 samples an epoch" in shown
    only = f"data.train=[{text}]"
    assert "of 4 samples 4 have none" in failed(
        "check", run, "--set", only, "--set", "data.mix={}", "--set", "data.text=5%"
    )
    out = tmp_path / "out"
    done("select", run, "--out", out, "--set", "train.max_steps=3")
    done("train", "--out", out)
    sources = {Path(one["name"]).name: one for one in json.loads((out / "train.json").read_text())["sources"]}
    # Three steps of five are an epoch of twelve, in which the third step has two, all of them once.
    assert sources["train.jsonl"] == {"name": str(pictured), "samples": 10, "seen": 4, "epochs": 0.4}
    assert sources["text.jsonl"] == {"name": str(text), "samples": 4, "seen": 4, "epochs": 2.0}
    card = (out / "checkpoint" / "README.md").read_text()
    assert "`train.jsonl` 4 of 10 samples, 0.4 epochs; `text.jsonl` 4 of 4 samples, 2 epochs" in card
    page = str(draw_course(read_document(out / "train.json", TrainRecord)))
    assert "4 of 10 (0.4 epochs)" in page
    assert str(tmp_path) not in page


def trained(name: str, root: Path, model: Path) -> Path:
    """Return the run folder of a training on the ten conversations in a form."""
    written = FORMS[name](root / "data")
    run = write_run(root / "run.yaml", model, [written.path], validate="20%")
    done("select", run, "--out", root / "out", "--set", "machine.cache_vision=memory")
    done("train", "--out", root / "out")
    return root / "out"


@pytest.fixture(scope="module")
def from_files(tmp_path_factory: pytest.TempPathFactory, saved_llava: Path) -> Path:
    return trained("LLaVA, JSON", tmp_path_factory.mktemp("files"), saved_llava)


@pytest.mark.parametrize("name", ["Parquet, pictures as objects", "WebDataset, conversations"])
def test_pictures_inside_other_files_train_to_the_same_weights(
    name: str, from_files: Path, tmp_path: Path, saved_llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    out = trained(name, tmp_path, saved_llava)
    assert (out / ADAPTER).read_bytes() == (from_files / ADAPTER).read_bytes()
    assert "up to date" in done("train", "--out", out)
