"""Checkpoints that can't be pruned on disk: what the errors say, and that nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from shards_kit import Built, config_of, sharded

from striate.artifacts import Region, write_document
from striate.errors import ArtifactError, ModelError
from striate.models.io.load import Loaded
from striate.models.io.weights.safetensors_shards import INDEX
from striate.models.surgery.prune_checkpoint import prune_checkpoint

# Bad input: each row breaks a good checkpoint in one way, and names what the error must say.


def _drop_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[1].unlink()


def _cut_shard(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[1]
    file.write_bytes(file.read_bytes()[:-100])


def _text_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].write_text("version https://git-lfs.github.com/spec/v1 oid sha256:0123")


def _header_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].write_bytes((8).to_bytes(8, "little") + b"not json")


def _swap_shards(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two)
    second.write_bytes(one)


def _lose_tensor(folder: Path) -> None:
    file = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(file)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, file)


def _forget_tensor(folder: Path) -> None:
    index = json.loads((folder / INDEX).read_text())
    name = next(name for name in index["weight_map"] if "layers.2.mlp.up_proj" in name and "language" in name)
    file = folder / index["weight_map"].pop(name)
    (folder / INDEX).write_text(json.dumps(index))
    save_file({key: value for key, value in load_file(file).items() if key != name}, file)


def _break_index(folder: Path) -> None:
    (folder / INDEX).write_text('{"weight_map": ')


def _list_index(folder: Path) -> None:
    (folder / INDEX).write_text("[]")


def _remove_weights(folder: Path) -> None:
    for file in folder.glob("*.safetensors*"):
        file.unlink()


def _bin_weights(folder: Path) -> None:
    _remove_weights(folder)
    (folder / "pytorch_model.bin").write_bytes(b"0")


def _edit(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    config = config_of(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def _deeper_config(folder: Path) -> None:
    _edit(folder, lambda config: config["text_config"].update(num_hidden_layers=6))


def _shallower_config(folder: Path) -> None:
    _edit(folder, lambda config: config["text_config"].update(num_hidden_layers=3))


def _wider_config(folder: Path) -> None:
    _edit(folder, lambda config: config["text_config"].update(intermediate_size=96))


def _quantised(folder: Path) -> None:
    _edit(folder, lambda config: config.update(quantization_config={"quant_method": "bitsandbytes"}))


def _text_config_only(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config_of(folder)["text_config"]))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _other_region(folder: Path) -> None:
    write_document(folder / "region.json", Region(layers=(0, 31), num_layers=32, spec="ids:0,31", selector="ids"))


def _region_of_layer_1(folder: Path) -> None:
    write_document(folder / "region.json", Region(layers=(1,), num_layers=4, spec="ids:1", selector="ids"))


def _adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "half a checkpoint": (_drop_shard, r"lacks 1 of \d+ shards, for example model-00002-of"),
    "a shard cut short": (_cut_shard, r"00002-of-\d+.safetensors is damaged: its header speaks of \d+ bytes"),
    "a pointer instead of a shard": (_text_shard, r"is damaged: a header of \d+ bytes in a file of 58 bytes"),
    "a header that is not JSON": (_header_shard, "is damaged: its header can't be read"),
    "shards swapped": (_swap_shards, f"but {INDEX} places it in model-0000"),
    "a tensor lost from its shard": (_lose_tensor, rf"lacks \S+, which {INDEX} places there"),
    "a tensor lost from shard and index": (_forget_tensor, r"lacks 1 tensors .*layers.2.mlp.up_proj.*disagree"),
    "an index cut short": (_break_index, f"{INDEX} is damaged"),
    "an index that is a list": (_list_index, f"{INDEX} is damaged"),
    "no weights": (_remove_weights, "has no safetensors weights"),
    "only .bin weights": (_bin_weights, "has no safetensors weights.*\n.*\n.*save it again with save_pretrained"),
    "a config of more layers": (_deeper_config, r"lacks 18 tensors \(for example .*layers.4"),
    "a config of fewer layers": (_shallower_config, r"holds 9 tensors of layers beyond its config"),
    "a config of other sizes": (_wider_config, r"has shape \(.*64.*\), and config.json asks for \(.*96"),
    "a quantised checkpoint": (_quantised, "is quantised"),
    "a config without vision": (_text_config_only, "is a text-only model"),
    "no config": (_no_config, "has no config.json"),
    "a region of another depth": (_other_region, "is of a model with 32 decoder layers, and this one has 4"),
    "a layer of the region": (_region_of_layer_1, "layer 1 lies in the region that this model was trained on"),
    "an adapter": (_adapter, "is an adapter: it has no decoder layers of its own"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_checkpoint_is_refused_and_nothing_is_written(case: str, tiny_llava: Loaded, tmp_path: Path) -> None:
    damage, text = BROKEN[case]
    folder = sharded(tiny_llava, tmp_path / "whole")
    damage(folder)
    with pytest.raises(ModelError) as caught:
        prune_checkpoint(folder, [1], tmp_path / "out")
    assert re.search(text, str(caught.value), re.DOTALL)
    assert caught.value.allowed
    assert caught.value.next_step
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


@pytest.mark.parametrize(
    ("remove", "text"),
    [([4], "no decoder layer 4"), ([1, 1], "name one twice"), ([0, 1, 2, 3], "leaves no model"), ([-1], "no decoder")],
)
def test_layers_that_can_not_go_are_refused(remove: list[int], text: str, tiny_llava_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=text):
        prune_checkpoint(tiny_llava_dir, remove, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_family_that_needs_its_first_layers_says_so(family_builder: Callable[[str], Built], tmp_path: Path) -> None:
    family_builder("qwen3_vl")[0].save_pretrained(tmp_path / "whole")
    with pytest.raises(ModelError, match="adds features of the vision encoder to its first 2 decoder layers"):
        prune_checkpoint(tmp_path / "whole", [1], tmp_path / "out")


def test_no_folder_and_a_full_one_are_refused(tiny_llava_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model folder at"):
        prune_checkpoint(tmp_path / "nowhere", [1], tmp_path / "out")
    with pytest.raises(ArtifactError, match="exists already"):
        prune_checkpoint(tiny_llava_dir, [1], tiny_llava_dir)
