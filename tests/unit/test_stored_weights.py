"""Files of weights, without torch: which are read of a folder, and that what is copied is of finite numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from striate.errors import ModelError
from striate.models.io.weight_files import check_weights_whole
from striate.models.io.weights import safetensors_shards
from striate.models.io.weights.finite_bytes import all_finite
from striate.models.io.weights.safetensors_shards import check_finite_file, read_shards, weights_of, write_shards

LARGEST = {"F64": 1.79e308, "F32": 3.4e38, "F16": 65504.0}


def in_bytes(code: str, value: float) -> bytes:
    if code == "BF16":
        return np.float32(value).tobytes()[2:]
    return np.array(value, {"F64": np.float64, "F32": np.float32, "F16": np.float16}[code]).tobytes()


@pytest.mark.parametrize("code", ["F64", "F32", "F16", "BF16"])
def test_what_is_no_finite_number_is_seen_in_every_format(code: str) -> None:
    fine = b"".join(in_bytes(code, value) for value in (0.0, -1.5, 1e-30, LARGEST.get(code, 3e38)))
    assert all_finite(code, fine)
    for value in (math.nan, math.inf, -math.inf):
        assert not all_finite(code, fine + in_bytes(code, value) + fine)


def test_eight_bits_have_their_own_and_whole_numbers_none() -> None:
    assert all_finite("F8_E4M3", bytes([0x7E, 0xFE, 0]))
    assert not all_finite("F8_E4M3", bytes([0, 0xFF]))
    assert all_finite("F8_E5M2", bytes([0x7B]))
    assert not all_finite("F8_E5M2", bytes([0x7C]))
    assert all_finite("I32", b"\xff" * 8)


def test_a_copy_is_refused_wherever_the_value_lies_and_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_shards, "_BUFFER", 64)
    weights = {"empty": np.zeros((0, 2), np.float32), "first": np.ones(40, np.float16), "second": np.ones((8, 30))}
    save_file(weights, tmp_path / "model.safetensors")
    check_finite_file(tmp_path / "model.safetensors")
    (tmp_path / "fine").mkdir()
    write_shards(tmp_path / "fine", [read_shards(tmp_path)])
    assert read_shards(tmp_path / "fine").keys() == weights.keys()
    weights["second"][7, 3] = math.nan
    save_file(weights, tmp_path / "model.safetensors")
    said = f"the weights in {tmp_path}/model.safetensors hold values that are infinite or no numbers, for example in "
    with pytest.raises(ModelError) as error:
        write_shards(tmp_path / "fine", [{"renamed": read_shards(tmp_path)["second"]}])
    assert error.value.given == f"{said}second"
    save_file(weights, tmp_path / "other.safetensors")
    with pytest.raises(ModelError, match="no numbers, for example in second"):
        check_finite_file(tmp_path / "other.safetensors")


def test_a_mask_of_zeros_and_minus_infinity_passes_and_nothing_like_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_shards, "_BUFFER", 64)
    file, name = tmp_path / "model.safetensors", "text.attn_mask"
    mask = np.triu(np.full((20, 20), -math.inf, np.float32), 1)
    for kind in (np.float64, np.float32, np.float16):
        save_file({name: mask.astype(kind)}, file)
        check_finite_file(file)
    (tmp_path / "copy").mkdir()
    write_shards(tmp_path / "copy", [read_shards(tmp_path)])
    assert (tmp_path / "copy/model.safetensors").read_bytes()[-800:] == file.read_bytes()[-800:]
    # Wherever it lies, before the infinite values or behind them.
    for place in ((0, 0), (19, 0)):
        for value in (1e-30, math.nan, math.inf):
            other = mask.copy()
            other[place] = value
            save_file({name: other}, file)
            with pytest.raises(ModelError, match=r"no numbers, for example in text\.attn_mask"):
                check_finite_file(file)


def test_the_file_that_config_json_names_is_the_one_that_is_read(tmp_path: Path) -> None:
    for name, value in (("model", 0.0), ("other", 1.0)):
        save_file({name: np.full(2, value, np.float32)}, tmp_path / f"{name}.safetensors")
    assert list(read_shards(tmp_path)) == ["model"]
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "other.safetensors"}))
    assert list(read_shards(tmp_path)) == ["other"]
    index = {"weight_map": {"other": "other.safetensors"}}
    (tmp_path / "it.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": "it.safetensors.index.json"}))
    assert list(read_shards(tmp_path)) == ["other"]
    check_weights_whole(tmp_path)
    index["weight_map"]["lost"] = "lost.safetensors"
    (tmp_path / "it.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"every shard that it\.safetensors\.index\.json names"):
        read_shards(tmp_path)
    with pytest.raises(ModelError, match=r"lacks 1 shards of its weights, such as 'lost.safetensors'"):
        check_weights_whole(tmp_path)


@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("lost.safetensors", "names 'lost.safetensors' as transformers_weights, which is no such file of safetensors"),
        ("config.json", "which is no such file of safetensors"),
        (7, "names '7' as transformers_weights"),
        ("../model.safetensors", "config.json names as transformers_weights '../model.safetensors' leaves the model"),
    ],
)
def test_a_name_that_leads_to_no_weights_is_refused(named: object, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for place in (folder, tmp_path):
        save_file({"a": np.zeros(2, np.float32)}, place / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"transformers_weights": named}))
    with pytest.raises(ModelError) as error:
        weights_of(folder)
    assert said in str(error.value)
