"""Run folders that commit 7dbed79 made (`tests/data/run_7dbed79`) are read, and gone on with."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

import striate
from striate.artifacts import (
    EvalRecord,
    Prediction,
    PruneRecord,
    Region,
    Retention,
    Scores,
    TrainRecord,
    read_document,
    read_lines,
)
from striate.cli import app
from striate.config import load_config
from striate.pipeline import Flow
from striate.runs.former_defaults import as_it_began

DATA = Path(__file__).parents[1] / "data" / "run_7dbed79"
# Where they were made.
PLACE = "/path/to/run_7dbed79"
STAGES = ["analyze", "select", "train", "prune", "evaluate:start", "evaluate:tuned", "evaluate:pruned"]
# What is written anew by every run.
ANEW = {"run.json", "config.yaml", "report.html", "README.md", "retention.json"}


def key(made_of: dict[str, Any]) -> str:
    """Return what run.json calls a stage's key, as that commit makes it."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Return what run.json holds of an output, as that commit makes it."""
    digest = hashlib.sha256()
    inside = sorted(file for file in path.rglob("*") if file.is_file() and file != path / "README.md")
    for file in inside if path.is_dir() else [path]:
        name = file.relative_to(path) if path.is_dir() else ""
        digest.update(f"{name}:{file.stat().st_size};".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in ANEW)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def done(*arguments: str) -> str:
    shown = CliRunner().invoke(app, [*arguments])
    assert shown.exit_code == 0, shown.output
    return shown.stdout


def up_to_date(said: str) -> list[str]:
    return [line.removesuffix(": up to date") for line in said.splitlines() if line.endswith(": up to date")]


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of them, as if they had been made where it lies, which is the working folder."""
    root = Path(shutil.copytree(DATA, tmp_path / "runs")).resolve()
    for path in (path for path in root.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if PLACE.encode() in content:
            path.write_bytes(content.replace(PLACE.encode(), str(root).encode()))
    record, keys = (root / "finished/run.json").read_text(), (root / "keys.json").read_text()
    for stage, noted in json.loads(record)["stages"].items():
        moved = {value: fingerprint(root / "finished" / name) for name, value in noted["outputs"].items()}
        for old, new in {**moved, noted["key"]: key(json.loads(keys)[stage])}.items():
            record, keys = record.replace(old, new), keys.replace(old, new)
    (root / "finished/run.json").write_text(record)
    monkeypatch.chdir(root)
    return root


def test_the_files_are_whole() -> None:
    keys = json.loads((DATA / "keys.json").read_text())
    stages = json.loads((DATA / "finished/run.json").read_text())["stages"]
    assert list(stages) == STAGES
    for stage, noted in stages.items():
        assert noted["key"] == key(keys[stage])
        assert noted["outputs"] == {name: fingerprint(DATA / "finished" / name) for name in noted["outputs"]}


def test_a_finished_run_is_up_to_date(earlier: Path) -> None:
    before = contents(earlier)
    assert up_to_date(done("run", "run.yaml", "--out", "finished")) == STAGES
    assert up_to_date(done("run", "finished/config.yaml", "--out", "finished")) == STAGES
    assert up_to_date(done("train", "--out", "image_finished")) == ["train"]
    assert contents(earlier) == before


def test_its_artifacts_are_read(earlier: Path) -> None:
    run = earlier / "finished"
    scores, region = read_document(run / "scores.json", Scores), read_document(run / "region.json", Region)
    assert [entry.scorer for entry in scores.scorers] == list(load_config(run / "config.yaml").analyze.scorers)
    assert (region.layers, region.num_layers) == ((0, 1), 4)
    assert read_document(run / "train.json", TrainRecord).steps == 4
    assert read_document(run / "prune.json", PruneRecord).removed == (2,)
    for label in ("start", "tuned", "pruned"):
        record = read_document(run / f"eval/{label}.json", EvalRecord)
        predictions = read_lines(run / f"eval/{label}.predictions.jsonl", Prediction)
        assert sum(task.n for task in record.tasks) == len(predictions) == 14
    rows = read_document(run / "eval/retention.json", Retention).rows
    assert {row.label for row in rows} == {"tuned", "pruned"}
    again = Flow(load_config(run / "config.yaml"), run).evaluate().rows
    assert [row.difference for row in again] == pytest.approx([row.difference for row in rows])


def test_its_page_and_its_differences(earlier: Path) -> None:
    done("report", "--out", "finished")
    page = (earlier / "finished/report.html").read_text(encoding="utf-8")
    assert "</html>" in page
    assert "angular-distance" in page
    assert "What colour is the square?" in page
    said = done("evaluate", "--out", "finished", "--differences", "--export", "differences.jsonl")
    assert "11 of 14 items in differences.jsonl" in said
    assert len((earlier / "differences.jsonl").read_text().splitlines()) == 11


def test_its_models_answer_as_they_did(earlier: Path) -> None:
    folder = earlier / "finished/eval"
    for label in ("tuned", "pruned"):
        (folder / f"{label}.json").rename(folder / f"{label}.before.json")
    assert up_to_date(done("evaluate", "--out", "finished")) == ["evaluate:start"]
    for label in ("tuned", "pruned"):
        before, after = (read_document(folder / f"{label}{name}.json", EvalRecord) for name in (".before", ""))
        assert [task.score for task in after.tasks] == pytest.approx([task.score for task in before.tasks], abs=1e-4)
    assert "lora_A" in " ".join(striate.load_model("finished/checkpoint", device="cpu").model.state_dict())


@pytest.mark.parametrize(
    ("verb", "config", "name", "weights"),
    [
        ("run", "run.yaml", "", "adapter_model.safetensors"),
        ("train", "image.yaml", "image_", "model.safetensors"),
    ],
)
def test_a_stopped_training_goes_on(earlier: Path, verb: str, config: str, name: str, weights: str) -> None:
    run, whole = earlier / f"{name}stopped", earlier / f"{name}finished"
    before = log(run)
    said = done(verb, config, "--out", run.name)
    assert "going on from step 2 of 4" in said
    assert up_to_date(said) == (["analyze", "select"] if verb == "run" else [])
    after = log(run)
    # Their seconds tell that these steps are those that were made before.
    assert after[:2] == before[:2]
    assert [row["step"] for row in after] == [1, 2, 3, 4]
    assert [row["loss"] for row in after] == pytest.approx([row["loss"] for row in log(whole)], rel=1e-4)
    assert not (run / ".training").exists()
    for file in (whole / "checkpoint").glob("*.safetensors"):
        expected, found = load_file(file), load_file(run / "checkpoint" / file.name)
        assert found.keys() == expected.keys()
        for tensor in expected:
            # Two steps of up to 0.0075 and 0.0025.
            torch.testing.assert_close(found[tensor], expected[tensor], rtol=0, atol=1e-4)
    assert (whole / "checkpoint" / weights).is_file()


def test_configs_are_parsed(earlier: Path) -> None:
    for own, config in (("finished", "run.yaml"), ("stopped", "run.yaml"), ("image_finished", "image.yaml")):
        kept, given = load_config(earlier / own / "config.yaml"), load_config(earlier / config)
        assert (kept.analyze, kept.select, kept.train) == (given.analyze, given.select, given.train)
        assert (kept.machine, kept.report) == (given.machine, given.report)
        began, asked = (as_it_began(one, earlier / own / "config.yaml") for one in (kept, given))
        assert (asked.prune, asked.heal) == (began.prune, began.heal)
        assert (began.prune.scorer, began.prune.compensate) == ("modality-block-influence", "none")
        assert kept.model.path == str(earlier / given.model.path)


def test_image_tokens_pass_layers_of_a_checkpoint_that_says_so(earlier: Path) -> None:
    folder = earlier / "image_finished/checkpoint"
    assert read_document(folder / "region.json", Region).layers == (1,)
    loaded = striate.load_model(folder, device="cpu")
    entering: list[torch.Tensor] = []
    for layer in loaded.model.model.language_model.layers:
        layer.register_forward_pre_hook(lambda _, args: entering.append(args[0]))
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is the square?"}]}]
    text = loaded.processor.apply_chat_template(turn, add_generation_prompt=True)
    with Image.open(earlier / "pack/images/square_00.png") as picture, torch.no_grad():
        batch = loaded.processor(images=picture, text=text, return_tensors="pt")
        loaded.model(**batch)
    image = batch["input_ids"][0] == loaded.model.config.image_token_id
    assert image.sum() == 4
    changes = [(entering[layer + 1] - entering[layer])[0, image] for layer in range(3)]
    steps = load_file(folder / "image_shift.safetensors")
    assert sorted(steps) == ["0", "2"]
    for layer in (0, 2):
        torch.testing.assert_close(changes[layer], steps[str(layer)].expand(4, -1), rtol=0, atol=1e-5)
        assert steps[str(layer)].abs().max() > 1e-2
    assert changes[1].std(dim=0).max() > 1e-2
