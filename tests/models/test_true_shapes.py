"""The benchmark of true shapes: its shapes, and a whole run of toys."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "true_shapes.py"
MEASURED = SCRIPT.parents[1] / "results" / "true-shapes-h100.jsonl"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    spec = importlib.util.spec_from_file_location("true_shapes", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up by name.
    sys.modules["true_shapes"] = module
    sys.path.insert(0, str(SCRIPT.parent))
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture(scope="module")
def shapes(script: ModuleType) -> dict[str, Any]:
    """The widths of every true shape, each read off one skeleton."""
    return {name: script.shape_of(config()) for name, config in script.SHAPES.items()}


@pytest.mark.parametrize(
    ("name", "layers", "image_tokens", "billions"),
    [
        ("llava-1.5-7b", 32, 576, 7.06),
        ("llava-1.5-13b", 40, 576, 13.35),
        ("bunny-llama-3-8b-v", 32, 729, 8.48),
        ("bunny-phi3-mini-4b-v", 32, 729, 4.26),
    ],
)
def test_shapes(shapes: dict[str, Any], name: str, layers: int, image_tokens: int, billions: float) -> None:
    shape = shapes[name]
    total = shape.other_parameters + shape.projector_parameters + sum(layer.parameters for layer in shape.layers)
    assert len(shape.layers) == layers
    assert shape.image_tokens == image_tokens
    assert total / 1e9 == pytest.approx(billions, abs=0.01)


def test_both_regions_run_at_one_batch_that_fits(script: ModuleType, shapes: dict[str, Any]) -> None:
    for name, shape in shapes.items():
        sizes = {
            script.choose_batch(shape, script.Case(name, region), 8, script.ACCELERATORS[0])
            for region in ("uniform:25%", "all")
        }
        assert len(sizes) == 1
        assert sizes <= {8, 4}


@pytest.mark.skipif(not MEASURED.is_file(), reason="the measurements are not in a package's sources")
def test_measured_steps(script: ModuleType, shapes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps measured on an H100: none but the references was used to fit the forecast."""
    monkeypatch.setattr(script, "find_spec", lambda name: True)
    rows = [json.loads(line) for line in MEASURED.read_text(encoding="utf-8").splitlines()]
    known = {case.name: case for case in script.cases(True)}
    found = [row for row in rows if row.get("name") in known and "ms" in row]
    assert len(found) >= 24
    for row in found:
        case = known[row["name"]]
        shape = shapes[case.model]
        settings = script.Settings(
            method=case.method,
            batch=row["batch"],
            checkpointing=case.checkpointing,
            masters=not case.reference,
            answers_only=not case.reference,
        )
        expected = script.forecast(shape, script.resolve(case.region, len(shape.layers)), settings)
        tolerance = 0.07 if case.method == "qlora" else 0.02
        assert expected.memory.peak_gib == pytest.approx(row["peak_gib"], rel=tolerance), case.name
        assert expected.milliseconds == pytest.approx(row["ms"], rel=0.15), case.name


def test_tiny_run(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "lines.jsonl"
    flags = ["--tiny", "--checkpointed", "--steps", "1", "--warmup", "1", "--batch", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["true_shapes.py", *flags])
    script.main()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert printed == [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    machine, *lines = printed
    assert machine["device"] == "CPU"
    by_name: dict[str, Any] = {line["name"]: line for line in lines}
    assert len(by_name) == len(lines) == 5 + 16 + 1
    assert all(line["ms"] > 0 and line["forecast_gib"] >= 0 and line["n"] == 1 for line in lines)
    proofs = [line["proof"] for line in lines if "reference" not in line["name"]]
    assert len(proofs) == 17
    assert all("received finite gradients" in proof for proof in proofs)
    one = by_name["llava-1.5-7b lora uniform:25%"]
    # The proof restores what it touches, and checkpointing changes no loss.
    assert one["loss"] == pytest.approx(by_name["llava-1.5-7b lora uniform:25% checkpointed"]["loss"], abs=0.02)
    assert one["trainable_m"] < by_name["llava-1.5-7b lora all"]["trainable_m"]
