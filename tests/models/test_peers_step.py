"""The benchmark of other tools' training steps: samples of one size, arms that fail, and the table."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import peers_step
import pytest
import torch
from peers_arms import ARMS, measured
from peers_trl import processor_of, rows_of
from published_shapes import IMAGE_ID, SHAPES, tiny
from training_rungs import RUNGS
from true_shapes import make_batch, shape_of

GIVEN = Namespace(tiny=True, steps=2, warmup=1, backend="eager")


def test_samples_are_of_the_size_of_the_others_batch() -> None:
    pytest.importorskip("datasets", reason="needs datasets (the extra `dev`)")
    collators = pytest.importorskip("trl.trainer.sft_trainer", reason="needs trl (the extra `dev`)")
    config = tiny(SHAPES["llava-1.5-7b"]())
    collator = collators.DataCollatorForVisionLanguageModeling(processor_of(config), completion_only_loss=True)
    batch = collator(rows_of(config, 2, 16))
    other = make_batch(config, shape_of(config), 2, 16, "cpu")
    for key in ("input_ids", "attention_mask", "pixel_values", "labels"):
        assert batch[key].shape == other[key].shape, key
    assert torch.equal(batch["input_ids"] == IMAGE_ID, other["input_ids"] == IMAGE_ID)
    assert torch.equal(batch["labels"] == -100, other["labels"] == -100)
    assert batch["attention_mask"].all()


def test_arms_are_of_both_regions_and_name_rungs_that_there_are() -> None:
    rungs = {rung.name: rung for rung in RUNGS}
    for name, arm in ARMS.items():
        assert arm.tool == "striate" or arm.region == ("uniform:25%" if name.endswith("25") else "all")
        assert not arm.rung or rungs[arm.rung].region == arm.region
    assert {arm.rung for arm in ARMS.values()} >= {"exact", "fp8", "fast", "all exact"}


@pytest.mark.parametrize("name", ["peft-25", "trl-all-checkpointed", "striate-exact"])
def test_a_step_is_measured(name: str) -> None:
    if name.startswith("trl"):
        pytest.importorskip("trl", reason="needs trl (the extra `dev`)")
    line = measured(name, GIVEN)
    assert (line["name"], line["tokens"], len(line["steps_ms"])) == (name, 40, 2)
    assert min(line["steps_ms"]) == pytest.approx(line["ms_min"], abs=0.1)
    assert line["tokens_per_s"] == pytest.approx(40_000 / line["ms"], rel=0.02)
    assert line["trainable_m"] == (0.559 if "all" in name else 0.141)
    # Untrained, of a thousand words.
    assert line["loss"] == pytest.approx(6.9, abs=0.3)
    assert ("trl" in line["versions"]) is name.startswith("trl")


def test_an_arm_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lines.jsonl"
    began: list[list[str]] = []

    def apart(name: str, command: list[str], limit: float) -> dict[str, Any]:
        began.append(command[1:])
        if name.startswith("liger"):
            return {"name": name, "error": "ImportError: no | kernels"}
        return measured(name, GIVEN)

    monkeypatch.setattr(peers_step, "run_apart", apart)
    arms = ["reference", "liger-25", "peft-25"]
    flags = ["--tiny", "--steps", "2", "--warmup", "1", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["peers_step.py", *arms, *flags])
    peers_step.main()
    assert began == [[name, "--one", *flags] for name in arms]
    printed = capsys.readouterr().out.splitlines()
    lines: list[dict[str, Any]] = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["name"] for line in lines] == arms
    assert lines[1]["error"] == "ImportError: no | kernels"
    assert lines[0]["of_reference"] == 1.0
    assert lines[2]["of_reference"] == pytest.approx(lines[2]["ms"] / lines[0]["ms"], abs=0.001)
    rows = [line for line in printed if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows] == ["| arm", "| reference", "| liger-25", "| peft-25"]
    assert "no / kernels" in rows[2]
    assert {row.count("|") for row in rows} == {len(peers_step.COLUMNS) + 2}


def test_an_unknown_arm_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["peers_step.py", "peft-24"])
    with pytest.raises(SystemExit):
        peers_step.main()
    assert "no such arm: peft-24; there are reference, peft-25" in capsys.readouterr().err
