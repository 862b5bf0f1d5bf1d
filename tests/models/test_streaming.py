"""Pruning a checkpoint on disk: bit-equal to pruning in memory, without the model, and clear about what can't be."""

from __future__ import annotations

import json
import re
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from family_needs import needs
from family_zoo import NotBuiltError, build_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from shards_kit import Built, as_bytes, assert_same_weights, config_of, sharded, tensors_of

from striate.artifacts import Region, read_document, write_document
from striate.errors import ModelError
from striate.models.io.load import Loaded, load_model, load_weights
from striate.models.io.save import save_model
from striate.models.io.weights.safetensors_shards import (
    INDEX,
    WHOLE,
    Stored,
    by_file,
    parameter_count,
    read_file,
    read_shards,
    write_shards,
)
from striate.models.surgery.prune_checkpoint import prune_checkpoint
from striate.models.surgery.remove_layers import remove_layers
from striate.models.surgery.roundtrip_check import self_test

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "gemma3", "idefics3", "smolvlm", "paligemma", "internvl")
REMOVED = (1, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bit_equal_to_the_path_in_memory(
    family: str, dtype: torch.dtype, family_builder: Callable[[str], Built], tmp_path: Path
) -> None:
    model, _ = family_builder(family)
    model = model.to(dtype)
    model.save_pretrained(tmp_path / "whole", max_shard_size="30KB")
    model.generation_config.save_pretrained(tmp_path / "whole")

    pruned = prune_checkpoint(tmp_path / "whole", REMOVED, tmp_path / "streamed")

    reloaded = load_weights(tmp_path / "whole", device=torch.device("cpu"), dtype=dtype)
    assert remove_layers(reloaded, REMOVED) == pruned.old_to_new == {0: 0, 2: 1, 4: 2, 5: 3}
    save_model(reloaded, None, tmp_path / "memory")
    assert_same_weights(tmp_path / "streamed", tmp_path / "memory")
    assert config_of(tmp_path / "streamed") == config_of(tmp_path / "memory")
    assert pruned.parameters_after == sum(tensor.numel() for tensor in tensors_of(tmp_path / "memory").values())
    assert pruned.parameters_before > pruned.parameters_after


def test_running_statistics_are_no_parameters() -> None:
    stored = {name: Stored(Path("x"), "F32", (3,), 0, 12) for name in ("bn.weight", "bn.running_mean", "running_var")}
    assert parameter_count(stored) == 3


# Blocks of layers inside one tensor; a list beside the stack; layers of a decoder known by another name; experts.
UNUSUAL = ("gemma4", "idefics", "kosmos-2", "blip-2", "llama4", "qwen3_vl_moe", "glm4v_moe", "mllama", "pix2struct")


@pytest.mark.parametrize("family", UNUSUAL)
def test_unusual_stacks_are_bit_equal_too(family: str, tmp_path: Path) -> None:
    needs(family)
    try:
        model = build_model(family)
    except NotBuiltError as reason:
        pytest.skip(str(reason))
    model.save_pretrained(tmp_path / "whole", max_shard_size="200KB")
    reloaded = load_weights(tmp_path / "whole", device=torch.device("cpu"), dtype=model.dtype)
    for removed in ((2, 5), (2,), (5,), (6,), (3, 7)):
        try:
            kept = remove_layers(reloaded, removed)
        except ModelError as in_memory:
            with pytest.raises(ModelError, match=re.escape(in_memory.given)):
                prune_checkpoint(tmp_path / "whole", removed, tmp_path / "streamed")
            continue
        assert prune_checkpoint(tmp_path / "whole", removed, tmp_path / "streamed").old_to_new == kept
        save_model(reloaded, None, tmp_path / "memory")
        assert_same_weights(tmp_path / "streamed", tmp_path / "memory")
        assert config_of(tmp_path / "streamed") == config_of(tmp_path / "memory")
        return
    raise AssertionError("no layer of this family could go")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm"])
def test_the_result_reloads_and_answers_like_the_pruned_model(
    family: str, family_builder: Callable[[str], Built], tmp_path: Path
) -> None:
    model, inputs = family_builder(family)
    model.save_pretrained(tmp_path / "whole", max_shard_size="30KB")
    prune_checkpoint(tmp_path / "whole", REMOVED, tmp_path / "streamed")
    remove_layers(model, REMOVED)
    proof = self_test(model, tmp_path / "streamed", inputs)
    assert proof.max_logit_difference == 0
    assert proof.cached_equals_uncached


def test_tied_embeddings_stay_one_tensor(llava_builder: Callable[..., Loaded], tmp_path: Path) -> None:
    folder = sharded(llava_builder(tie_embeddings=True), tmp_path / "tied")
    prune_checkpoint(folder, [2], tmp_path / "out")
    assert not any("lm_head" in name for name in tensors_of(tmp_path / "out"))
    model = load_model(tmp_path / "out").model
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_names_as_in_memory_load_too(tiny_llava: Loaded, tmp_path: Path) -> None:
    folder = sharded(tiny_llava, tmp_path / "plain", "1GB")
    weights = {name: tensor.contiguous() for name, tensor in tiny_llava.model.state_dict().items()}
    save_file(weights, folder / WHOLE, {"format": "pt"})
    prune_checkpoint(folder, [0, 2], tmp_path / "out")
    remove_layers(tiny_llava.model, [0, 2])
    ours = load_model(tmp_path / "out").model.state_dict()
    assert all(torch.equal(tensor, ours[name]) for name, tensor in tiny_llava.model.state_dict().items())
    assert {name.split(".")[0] for name in tensors_of(tmp_path / "out")} == {"model", "lm_head"}


def test_small_files_come_along_and_the_region_is_renumbered(tiny_llava: Loaded, tmp_path: Path) -> None:
    folder = sharded(tiny_llava, tmp_path / "whole")
    (folder / "LICENSE").write_text("free")
    (folder / "optimizer.pt").write_bytes(b"0")
    (folder / "prune.json").write_text("{}")
    write_document(folder / "region.json", Region(layers=(0, 3), num_layers=4, spec="ids:0,3", selector="ids"))
    prune_checkpoint(folder, [1, 2], tmp_path / "out")
    copied = {file.name for file in folder.iterdir() if ".safetensors" not in file.name}
    written = {file.name for file in (tmp_path / "out").iterdir() if ".safetensors" not in file.name}
    assert written == copied - {"optimizer.pt", "prune.json"}
    for name in written - {"config.json", "region.json"}:
        assert (folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    region = read_document(tmp_path / "out" / "region.json", Region)
    assert (region.layers, region.num_layers) == ((0, 1), 2)
    assert load_model(tmp_path / "out").processor.image_token == "<image>"


def test_shards_keep_their_split_and_the_index_is_true(tiny_llava: Loaded, tmp_path: Path) -> None:
    folder = sharded(tiny_llava, tmp_path / "whole")
    prune_checkpoint(folder, [1], tmp_path / "out")
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    tensors = tensors_of(tmp_path / "out")
    assert set(index["weight_map"]) == set(tensors)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in tensors.values())
    for file in files:
        with safe_open(tmp_path / "out" / file, "pt") as stored:
            assert set(stored.keys()) == {name for name, place in index["weight_map"].items() if place == file}
            assert stored.metadata() == {"format": "pt"}


def test_removing_nothing_copies_the_model(tiny_llava: Loaded, tmp_path: Path) -> None:
    folder = sharded(tiny_llava, tmp_path / "whole")
    pruned = prune_checkpoint(folder, [], tmp_path / "out")
    assert pruned.old_to_new == {layer: layer for layer in range(4)}
    assert_same_weights(folder, tmp_path / "out")
    assert load_model(tmp_path / "out").model.config.text_config.num_hidden_layers == 4


def test_memory_stays_far_below_one_shard(llava_builder: Callable[..., Loaded], tmp_path: Path) -> None:
    folder = sharded(llava_builder(num_layers=8), tmp_path / "whole", "1GB")
    weights = load_file(folder / WHOLE)
    # The same names with wide feed-forward matrices: 8 layers of 19 MiB in four shards.
    config = config_of(folder)
    config["text_config"]["intermediate_size"] = wide = 51_200
    (folder / "config.json").write_text(json.dumps(config))
    for name, tensor in weights.items():
        if ".layers." in name and ".mlp." in name and name.startswith("language_model"):
            weights[name] = torch.zeros((tensor.shape[0], wide) if "down" in name else (wide, tensor.shape[1]))
    _save_in_four(weights, folder)
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert total > 140e6
    prune_checkpoint(folder, [], tmp_path / "warm")
    tracemalloc.start()
    prune_checkpoint(folder, [1, 4, 6], tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < total / 20
    assert len(read_shards(tmp_path / "out")) < len(weights)


def _save_in_four(weights: dict[str, torch.Tensor], folder: Path) -> None:
    (folder / WHOLE).unlink()
    names = sorted(weights)
    step = -(-len(names) // 4)
    files = [f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)]
    placed = {name: files[place // step] for place, name in enumerate(names)}
    for file in files:
        save_file({name: weights[name] for name in names if placed[name] == file}, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))


def test_the_original_is_not_touched(tiny_llava: Loaded, tmp_path: Path) -> None:
    folder = sharded(tiny_llava, tmp_path / "whole")
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    prune_checkpoint(folder, [1], tmp_path / "out")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_blocks_of_a_tensor_are_cut_along_any_axis(tmp_path: Path) -> None:
    tensor = torch.arange(2 * 12 * 3, dtype=torch.bfloat16).reshape(2, 12, 3)
    save_file({"a": tensor, "b": tensor.flatten().clone()}, tmp_path / "a.safetensors")
    found = read_file(tmp_path / "a.safetensors")
    groups = [{"a": found["a"].only(1, (0, 2, 5), 6), "b": found["b"].only(0, (1,), 4)}]
    write_shards(tmp_path, groups)
    cut = load_file(tmp_path / WHOLE)
    assert torch.equal(cut["a"], tensor[:, [0, 1, 4, 5, 10, 11]])
    assert torch.equal(cut["b"], tensor.flatten()[18:36])


def test_every_dtype_code_is_copied_as_it_is(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(6, dtype=torch.float64).reshape(2, 3),
        "b": torch.randn(4).to(torch.float8_e4m3fn),
        "c": torch.tensor(3, dtype=torch.int16),
        "d": torch.tensor([True, False, True]),
        "e": torch.empty(0, 5),
    }
    save_file(tensors, tmp_path / "a.safetensors")
    found = read_file(tmp_path / "a.safetensors")
    assert {name: entry.shape for name, entry in found.items()} == {name: tuple(t.shape) for name, t in tensors.items()}
    (tmp_path / "out").mkdir()
    write_shards(tmp_path / "out", by_file(found, {"a": "x", "b": "b", "d": "z", "e": "e"}))
    copied = load_file(tmp_path / "out" / WHOLE)
    assert sorted(copied) == ["b", "e", "x", "z"]
    assert torch.equal(copied["x"], tensors["a"])
    assert as_bytes(copied["b"]) == as_bytes(tensors["b"])
    assert torch.equal(copied["z"], tensors["d"])
    shutil.rmtree(tmp_path / "out")
