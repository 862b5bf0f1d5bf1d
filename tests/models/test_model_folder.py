"""A model's folder runs no code, names no files of elsewhere, and asks for nothing that builds for ever."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from striate.errors import ModelError
from striate.models.convert.legacy.importing import import_checkpoint
from striate.models.convert.legacy.legacy_sources import shard_files
from striate.models.io.components import load_encoder, load_llm
from striate.models.io.load import load_model, load_processor, read_config
from striate.models.io.model_folder import check_source
from striate.models.io.weight_files import check_weights_whole
from striate.models.io.weights.safetensors_shards import INDEX, WHOLE, read_shards
from striate.models.io.weights.stored_matrices import StoredMatrices
from striate.models.structure.meta_model import blueprint
from striate.models.surgery.prune_checkpoint import prune_checkpoint

CODE = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\nclass Mine:\n    pass\n"
AUTO_MAPS: dict[str, Any] = {
    "processor_config.json": {"auto_map": {"AutoProcessor": "mine.Mine"}},
    "preprocessor_config.json": {"auto_map": {"AutoImageProcessor": "mine.Mine"}},
    "video_preprocessor_config.json": {"auto_map": {"AutoVideoProcessor": "mine.Mine"}},
    "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, "mine.Mine"]}},
    "a part of processor_config.json": {
        "image_processor": {"auto_map": {"AutoImageProcessor": "owner/name--mine.Mine"}}
    },
}


def spoil(folder: Path, name: str, **settings: Any) -> None:
    """Change settings of a JSON file, which is made where there is none."""
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**content, **settings}))


@pytest.fixture(autouse=True)
def nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(*_: object) -> str:
        raise AssertionError("a person was asked whether to run code")

    monkeypatch.setattr("builtins.input", answer)


@pytest.mark.parametrize(
    "load", [load_model, load_processor, read_config, blueprint, load_llm], ids=lambda load: load.__name__
)
@pytest.mark.parametrize("place", AUTO_MAPS)
def test_code_of_the_folder_is_refused_and_never_run(
    place: str, load: Callable[[str], Any], tiny_llava_dir: Path
) -> None:
    name = place.rpartition(" ")[2]
    (tiny_llava_dir / "mine.py").write_text(CODE)
    spoil(tiny_llava_dir, name, **AUTO_MAPS[place])
    with pytest.raises(
        ModelError, match=rf"{name} asks for code of its own under 'auto_map', which was not run"
    ) as caught:
        load(str(tiny_llava_dir))
    assert "striate runs no code that comes with a model" in caught.value.allowed
    assert not (tiny_llava_dir / "ran").exists()


def test_code_of_an_encoder_is_refused_too(tiny_llava_dir: Path) -> None:
    spoil(tiny_llava_dir, "preprocessor_config.json", auto_map={"AutoImageProcessor": "mine.Mine"})
    with pytest.raises(ModelError, match="asks for code of its own"):
        load_encoder(tiny_llava_dir, dtype=torch.float32)


@pytest.mark.parametrize("model_type", ["llava", "mine"])
def test_code_that_the_config_names_is_never_run(model_type: str, tiny_llava_dir: Path) -> None:
    (tiny_llava_dir / "mine.py").write_text(CODE)
    names = {"AutoConfig": "mine.Mine", "AutoModelForImageTextToText": "mine.Mine", "AutoProcessor": "mine.Mine"}
    spoil(tiny_llava_dir, "config.json", model_type=model_type, auto_map=names)
    if model_type == "llava":
        assert type(load_model(str(tiny_llava_dir), device="cpu").model).__module__.startswith("transformers.")
    else:
        with pytest.raises(ModelError, match=r"config\.json can't be used: The repository "):
            load_model(str(tiny_llava_dir), device="cpu")
    assert not (tiny_llava_dir / "ran").exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
@pytest.mark.parametrize("inside", [True, False])
def test_kernels_of_the_hub_are_code_too(key: str, inside: bool, tiny_llava_dir: Path) -> None:
    setting: dict[str, Any] = {key: "owner/kernel@main:attention"}
    spoil(tiny_llava_dir, "config.json", **({"text_config": setting} if inside else setting))
    with pytest.raises(ModelError, match=rf"config.json asks for code of its own under '{key}'"):
        read_config(tiny_llava_dir)


def test_modules_that_an_adapter_names_are_not_imported(tmp_path: Path) -> None:
    spoil(tmp_path, "adapter_config.json", megatron_core="megatron.core", megatron_config=None, r=128)
    check_source(str(tmp_path))
    spoil(tmp_path, "adapter_config.json", megatron_core="mine", megatron_config={"x": 1})
    with pytest.raises(ModelError, match=r"adapter_config.json asks for code of its own under 'megatron_config'"):
        check_source(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("config.json", {"text_config": {"model_type": "llama", "num_hidden_layers": 100_000}}),
        ("config.json", {"num_hidden_layers": 1025}),
        ("config.json", {"vision_config": {"num_hidden_layers": 10**9}}),
        ("config.json", {"vision_config": {"depths": [2, 2, 100_000]}}),
        ("config.json", {"text_config": {"num_local_experts": 10**6}}),
        ("config.json", {"text_config": {"num_hidden_layers": 1e300}}),
        ("processor_config.json", {"num_additional_image_tokens": 10**9}),
        ("preprocessor_config.json", {"crop_size": 10**6}),
        ("config.json", {"vision_config": {"image_size": 10**8}}),
        ("adapter_config.json", {"r": 10**9}),
        ("preprocessor_config.json", {"size": {"height": 10**6, "width": 336}}),
    ],
    ids=str,
)
def test_settings_that_build_for_ever_are_refused(name: str, settings: dict[str, Any], tiny_llava_dir: Path) -> None:
    spoil(tiny_llava_dir, name, **settings)
    with pytest.raises(ModelError, match=rf"{name} has \w+ [\d.e+]+\n  allowed: at most \d+\n"):
        blueprint(str(tiny_llava_dir))


def test_originals_are_checked_too(tmp_path: Path) -> None:
    spoil(tmp_path, "config.json", model_type="llava_llama", mm_vision_tower="x", num_hidden_layers=100_000)
    with pytest.raises(ModelError, match=r"config.json has num_hidden_layers 100000"):
        import_checkpoint(tmp_path, tmp_path / "out")


def test_the_largest_models_there_are_pass(tmp_path: Path) -> None:
    sizes = {
        "num_hidden_layers": 256,
        "num_attention_heads": 256,
        "n_routed_experts": 1024,
        "vision_feature_layer": [-2],
    }
    spoil(tmp_path, "config.json", text_config=sizes, vocab_size=10**6, max_position_embeddings=10**7)
    spoil(tmp_path, "preprocessor_config.json", size={"shortest_edge": 3136, "longest_edge": 12_845_056})
    check_source(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "config.json", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["fifo", "device"])
def test_what_is_no_file_is_refused(name: str, kind: str, tiny_llava_dir: Path) -> None:
    (tiny_llava_dir / name).unlink(missing_ok=True)
    os.mkfifo(tiny_llava_dir / name) if kind == "fifo" else (tiny_llava_dir / name).symlink_to("/dev/zero")
    with pytest.raises(ModelError, match=rf"{name} is neither a file nor a folder"):
        load_model(str(tiny_llava_dir), device="cpu")


@pytest.fixture
def sharded(tiny_llava_dir: Path) -> Path:
    """The tiny LLaVA with an index, and beside its folder weights that are nobody's business."""
    shutil.copy(tiny_llava_dir / WHOLE, tiny_llava_dir.parent / "secret.safetensors")
    (tiny_llava_dir / WHOLE).rename(tiny_llava_dir / "model-1.safetensors")
    write_index(tiny_llava_dir, "model-1.safetensors")
    return tiny_llava_dir


def write_index(folder: Path, shard: str, index: str = INDEX) -> None:
    names = list(read_shards_names(folder))
    (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))


def read_shards_names(folder: Path) -> list[str]:
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        return list(file.keys())


@pytest.mark.parametrize("way", ["../secret.safetensors", "ROOT/secret.safetensors", "a/../../secret.safetensors"])
def test_an_index_names_no_weights_elsewhere(way: str, sharded: Path, tmp_path: Path) -> None:
    shard = way.replace("ROOT", str(sharded.parent))
    write_index(sharded, shard)
    for use in (
        lambda: load_model(str(sharded), device="cpu"),
        lambda: prune_checkpoint(sharded, [1], tmp_path / "pruned"),
        lambda: read_shards(sharded),
        lambda: StoredMatrices(sharded),
    ):
        with pytest.raises(ModelError, match=rf"{INDEX} places tensors in '.*' leaves the model folder"):
            use()
    assert not (tmp_path / "pruned").exists()


def test_a_whole_file_beside_an_old_index_is_what_is_read(tiny_llava_dir: Path) -> None:
    """A folder that a smaller model, or one of larger shards, was saved to again: as transformers reads it."""
    write_index(tiny_llava_dir, "model-00001-of-00002.safetensors")
    assert load_model(str(tiny_llava_dir), device="cpu").model
    assert {tensor.file for tensor in read_shards(tiny_llava_dir).values()} == {tiny_llava_dir / WHOLE}
    check_weights_whole(tiny_llava_dir)


def test_an_index_of_bin_files_names_none_elsewhere_either(sharded: Path) -> None:
    write_index(sharded, "../secret.bin", "pytorch_model.bin.index.json")
    (sharded / INDEX).unlink()
    with pytest.raises(ModelError, match=r"places tensors in '../secret.bin' leaves the model folder"):
        shard_files(sharded)
    with pytest.raises(ModelError, match=r"places tensors in '../secret.bin' leaves the model folder"):
        load_model(str(sharded), device="cpu")


@pytest.mark.parametrize("name", ["model-1.safetensors", "README.md"])
def test_a_pruned_model_takes_nothing_with_it_by_a_link(name: str, sharded: Path, tmp_path: Path) -> None:
    (sharded / name).unlink(missing_ok=True)
    (sharded / name).symlink_to(sharded.parent / "secret.safetensors")
    with pytest.raises(ModelError, match=rf"'{name}' leaves the model folder"):
        prune_checkpoint(sharded, [1], tmp_path / "pruned")
    assert not (tmp_path / "pruned").exists()


def test_links_of_the_hubs_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "0123"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(sharded.iterdir())):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    assert prune_checkpoint(snapshot, [1], tmp_path / "pruned").old_to_new == {0: 0, 2: 1, 3: 2}
    assert (tmp_path / "pruned" / "tokenizer.json").is_file()
