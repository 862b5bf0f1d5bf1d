"""The verbs through the real command line: one after another they equal `run`, and each says what it did."""

from __future__ import annotations

import gc
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from striate.cli import app
from striate.cli.console import ERR, OUT
from striate.data import reading

VERBS = ["analyze", "select", "train", "prune", "evaluate", "report"]
SAME = ["config.yaml", "scores.json", "region.json", "checkpoint/adapter_model.safetensors"]
SAME += ["pruned/model.safetensors", "eval/retention.json", "eval/start.predictions.jsonl"]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> str:
    shown = call(*arguments)
    assert shown.exit_code == 0, shown.output
    return shown.stdout


@pytest.fixture(scope="module")
def made(shared_run_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A run made by the single verbs, and what each printed; only the first is given the config. To be read only."""
    out = tmp_path_factory.mktemp("made") / "verbs"
    said = {"analyze": done("--verbose", "analyze", shared_run_yaml, "--out", out)}
    said |= {verb: done(verb, "--out", out) for verb in VERBS[1:]}
    # A folder is held as long as what took it lives.
    gc.collect()
    return out, said


@pytest.fixture
def verbs(made: tuple[Path, dict[str, str]], tmp_path: Path) -> Path:
    """A folder of its own with that run."""
    return Path(shutil.copytree(made[0], tmp_path / "verbs"))


def test_single_verbs_equal_run(made: tuple[Path, dict[str, str]], run_yaml: Path, tmp_path: Path) -> None:
    out, _ = made
    shown = done("run", run_yaml, "--out", tmp_path / "run")
    assert [name for name in SAME if (out / name).read_bytes() != (tmp_path / "run" / name).read_bytes()] == []
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "run").iterdir()}
    assert shown.strip().splitlines()[-1].startswith(f"report  {tmp_path / 'run' / 'report.html'}  (")
    assert "train: up to date" in done("run", "--out", tmp_path / "run")
    again = done("run", out / "config.yaml", "--out", tmp_path / "again")
    assert "up to date" not in again
    assert [name for name in SAME if (out / name).read_bytes() != (tmp_path / "again" / name).read_bytes()] == []


def test_verbs_say_what_they_did(made: tuple[Path, dict[str, str]], verbs: Path) -> None:
    out, said = made
    lines = said["analyze"].splitlines()
    assert any(re.match(r"layer +block-influence +modality-block-influence", line) for line in lines)
    assert any(re.match(r"\d samples: score and 95% interval \(of fewer than 10 none holds\)", line) for line in lines)
    row = r" *[0-3]  [█▏▎▍▌▋▊▉ ]{8} +\d\.\d{4}  "
    # Three tables of four layers.
    assert sum(bool(re.match(row, line)) for line in lines) == 12
    assert "█░█░  2 of 4 layers" in said["select"]
    assert re.search(r"4 steps in \d+ s, loss \d\.\d{3} -> \d\.\d{3}", said["train"])
    removed = json.loads((out / "prune.json").read_text())["removed"]
    assert f"prune: removed layer {removed[0]}, ranked by " in said["prune"]
    assert "  1 layer removed\n" in said["prune"]
    assert re.search(r"[\d,]+ -> [\d,]+ parameters; reloaded and compared", said["prune"])
    assert "tuned   visual: start " in said["evaluate"]
    assert said["report"].strip() == str(out / "report.html")
    assert "select: up to date" in done("select", "--out", verbs)


def test_without_verbose_scores_take_a_screen(verbs: Path) -> None:
    lines = done("analyze", "--out", verbs).splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 120
    assert any(re.match(r"block-influence: highest in layers [0-3](, [0-3]){3}", line) for line in lines)
    assert sum(bool(re.fullmatch(r"  [▁▂▃▄▅▆▇█]{4}", line)) for line in lines) == 2
    assert "  █░█░" in lines


@pytest.mark.parametrize(
    "words",
    [
        "analyze",
        "--verbose analyze",
        "select --beside top:1 --beside scores:block-influence:50%",
        "train",
        "prune",
        "evaluate",
        "evaluate --differences",
        "report",
        "run config.yaml",
        "check config.yaml",
        "inspect pruned --region uniform:25% --remove 1",
        "ask . picture.png What? --all --max-new-tokens 2",
    ],
)
def test_a_terminal_of_80_columns_has_whole_words(
    verbs: Path, saved_pack: Path, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line is longer, but one that is a word by itself, such as a path."""
    monkeypatch.chdir(verbs)
    verb = words.removeprefix("--verbose ").split()[0]
    command = [str(next(saved_pack.rglob("*.png"))) if word == "picture.png" else word for word in words.split()]
    if verb not in ("inspect", "ask"):
        command += ["--out", "."]
    for shown in (OUT, ERR):
        monkeypatch.setattr(shown, "_force_terminal", True)
        monkeypatch.setattr(shown, "_width", 80)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", done(*command)).replace("\r", "\n").splitlines()
    assert any(lines)
    assert [line for line in lines if len(line.rstrip()) > 80 and " " in line.strip()] == []


@pytest.mark.parametrize(
    ("verb", "keys"),
    [
        ("analyze", {"scorers", "num_layers", "samples"}),
        ("select", {"region", "beside"}),
        ("train", {"steps", "seconds", "last_loss"}),
        ("prune", {"prune", "heal"}),
        ("evaluate", {"models", "retention", "suites", "gate"}),
        ("report", {"report"}),
        ("run", {"report", "seconds", "retention", "prune", "gate"}),
    ],
)
def test_json_is_all_that_standard_output_has(verbs: Path, verb: str, keys: set[str]) -> None:
    shown = call(verb, *([verbs / "config.yaml"] if verb == "run" else []), "--out", verbs, "--json")
    assert shown.exit_code == 0, shown.output
    told = json.loads(shown.stdout)
    assert keys <= set(told)
    if verb == "evaluate":
        assert {"start", "tuned", "pruned"} == set(told["models"])
    # What happens is told beside it.
    assert ("up to date" in shown.stderr) == (verb != "report")


def test_settings_of_a_verb(run_yaml: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    done("select", run_yaml, "--out", out, "--set", "select.region=ids:1,3")
    assert json.loads((out / "region.json").read_text())["layers"] == [1, 3]
    shown = call("select", "--out", out, "--set", "select.region=top:1")
    assert shown.exit_code == 1
    assert "holds a run of another config: select.region: ids:1,3 -> top:1" in shown.stderr
    assert "█" in done("select", "--out", out, "--set", "select.region=top:1", "--overwrite")
    assert json.loads((out / "region.json").read_text())["layers"] == [3]


def test_region_file_of_another_run(run_yaml: Path, tmp_path: Path) -> None:
    done("select", run_yaml, "--out", tmp_path / "one")
    setting = f"select.region={tmp_path / 'one' / 'region.json'}"
    done("select", run_yaml, "--out", tmp_path / "two", "--set", setting)
    assert json.loads((tmp_path / "two" / "region.json").read_text())["layers"] == [0, 2]
    text = (tmp_path / "one" / "region.json").read_text()
    (tmp_path / "one" / "region.json").write_text(text.replace("2\n  ]", "1\n  ]"))
    shown = call("select", "--out", tmp_path / "two")
    assert shown.exit_code == 1
    assert "region.json was made from other inputs than select has now" in shown.stderr
    done("select", "--out", tmp_path / "two", "--overwrite")
    assert json.loads((tmp_path / "two" / "region.json").read_text())["layers"] == [0, 1]


def test_a_region_without_scores_reads_no_data(run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("the data is read")

    monkeypatch.setattr(reading, "parse_sample", refuse)
    assert "of 4 layers" in done("select", run_yaml, "--out", tmp_path / "run")


def test_check_needs_no_model_and_writes_nothing(run_yaml: Path) -> None:
    before = sorted(run_yaml.parent.rglob("*"))
    lines = done("check", run_yaml).splitlines()
    assert [line.split()[0] for line in lines][:4] == ["region", "scorers", "model", "data"]
    notes = [line for line in lines if line.startswith("note      ")]
    kinds = [line.split()[0] for line in lines]
    assert kinds[kinds.index("pack") :] == ["pack", "prompts", *["note"] * len(notes), "ready"]
    assert lines[-1].startswith("ready     training takes about ")
    told = json.loads(done("check", run_yaml, "--json"))
    assert [row["part"] for row in told] == kinds
    assert "prune     1 of 4 layers, ranked by modality-block-influence, after tuning" in lines
    percent = done("check", run_yaml, "--set", "prune={remove: 50%, scorer: answer-loss, when: before}")
    assert (
        "prune     2 of 4 layers, ranked by answer-loss, compensated by refit where layers allow it, before tuning"
        in percent.splitlines()
    )
    hub = ("--set", "model.path=owner/name", "--set", "prune.remove=30%")
    unreached = call("check", run_yaml, *hub)
    assert "prune     30% of the layers, ranked by modality-block-influence, after" in unreached.stdout
    assert (unreached.exit_code, "not ready: the model 'owner/name'" in unreached.stderr) == (1, True)
    assert "items are in the training data, same picture and question" in notes[0]
    assert sorted(run_yaml.parent.rglob("*")) == before


def test_inspect_tells_what_is_left_without_layers(tiny_llava_dir: Path, tiny_llava: Any) -> None:
    layers = tiny_llava.model.model.language_model.layers
    total = sum(tensor.numel() for tensor in tiny_llava.model.parameters())
    left = total - 2 * sum(tensor.numel() for tensor in layers[0].parameters())
    share = 100 * (1 - left / total)
    line = (
        f"without 2 of 4 layers: {total:,} -> {left:,} parameters ({share:.1f}% fewer); the layers that are left take"
    )
    for remove in ("2", "37.5%"):
        assert f"{line} 1/2.00 of the time" in done("inspect", tiny_llava_dir, "--remove", remove)
    shown = call("inspect", tiny_llava_dir, "--region", "uniform:75%", "--remove", "50%")
    assert "2 layers to remove, but 1 of 4 lie outside region 'uniform:75%'" in shown.stderr


def test_inspect_counts_what_would_train(tiny_llava_dir: Path, run_yaml: Path, tmp_path: Path) -> None:
    shown = done("inspect", tiny_llava_dir, "--region", "uniform:50%")
    assert "4 decoder layers at model.language_model.layers" in shown
    assert "█░█░  2 of 4 layers" in shown
    out = tmp_path / "run"
    for verb in ("select", "train"):
        done(verb, run_yaml, "--out", out, "--set", "train.method=full", "--set", "train.max_steps=1")
    trained = json.loads((out / "train.json").read_text())["trainable"]["components"]
    count = sum(row["trainable"] for row in trained)
    assert f"{count:,}" in shown


def test_report_of_a_part(run_yaml: Path, tmp_path: Path) -> None:
    done("select", run_yaml, "--out", tmp_path / "run")
    page = Path(done("report", "--out", tmp_path / "run").replace("\n", ""))
    assert page.read_text(encoding="utf-8").strip().endswith("</html>")


def test_record_keeps_the_command(run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/striate", "select", "run me.yaml", "--set", "report.title=a b"])
    done("select", run_yaml, "--out", tmp_path / "run")
    command = json.loads((tmp_path / "run" / "run.json").read_text())["command"]
    assert command == "striate select 'run me.yaml' --set 'report.title=a b'"
