"""The script that keeps some pictures out of training."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "hold_out.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hold_out", SCRIPT)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(folder: Path, samples: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    (folder / "train.json").write_text(json.dumps(samples), encoding="utf-8")
    return folder


def test_no_picture_is_on_both_sides(script: ModuleType, tmp_path: Path) -> None:
    samples = [{"id": str(n), "image": f"{n // 3}.png"} for n in range(30)] + [{"id": f"t{n}"} for n in range(10)]
    folder = write(tmp_path / "pack", samples)
    assert script.split_folder(folder, 5) == (32, 8)
    kept, held_out = (
        json.loads((folder / name).read_text(encoding="utf-8")) for name in ("train.json", "held_out.json")
    )
    assert sorted(one["id"] for one in kept + held_out) == sorted(one["id"] for one in samples)
    assert not {one.get("image") for one in kept} & {one["image"] for one in held_out if "image" in one}


@pytest.mark.parametrize(
    ("samples", "named", "message"),
    [([{"id": "1", "image": "a"}], "pack", "has fewer than 5 pictures"), ([], "other", "no .*train.json")],
)
def test_refusals_change_nothing(
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    samples: list[dict[str, Any]],
    named: str,
    message: str,
) -> None:
    folder = write(tmp_path / "pack", samples)
    before = (folder / "train.json").read_bytes()
    monkeypatch.setattr(sys, "argv", ["hold_out.py", str(tmp_path / named), "--every", "5"])
    assert script.main() == 1
    error = capsys.readouterr().err
    assert re.search(message, error)
    assert (folder / "train.json").read_bytes() == before
    assert not (folder / "held_out.json").exists()


def test_a_second_split_is_refused(script: ModuleType, tmp_path: Path) -> None:
    folder = write(tmp_path / "pack", [{"id": str(n), "image": f"{n}.png"} for n in range(10)])
    script.split_folder(folder, 5)
    with pytest.raises(script.DataError, match="is there already"):
        script.split_folder(folder, 5)
