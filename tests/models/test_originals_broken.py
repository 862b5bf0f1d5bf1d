"""Original checkpoints that are broken in one way each: what the errors say, and that nothing is written."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from original_kit import (
    BUNNY_PHI3,
    CLIP,
    LLAVA,
    LLM,
    Weights,
    whole_weights,
    write_base,
    write_lora,
    write_original,
    write_shards,
)
from safetensors import SafetensorError
from safetensors.torch import load_file

from striate.errors import ArtifactError, ModelError
from striate.models.convert.legacy import write_checkpoint as writing
from striate.models.convert.legacy.importing import import_checkpoint
from striate.models.convert.legacy.tower import CLIP_NAME
from striate.models.io import load as loading
from striate.models.io.load import load_model, load_processor, read_config

# Bad input: each row breaks a good LLaVA checkpoint and its tower in one way, and names what the error must say.


def _edit(folder: Path, **change: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))


def _rewrite(folder: Path, change: Callable[[Weights], None]) -> None:
    weights = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    change(weights)
    write_shards(weights, folder)


def _drop_shard(source: Path, _: Path) -> None:
    (source / "model-00002-of-00003.safetensors").unlink()


def _cut_shard(source: Path, _: Path) -> None:
    file = source / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-4])


def _no_weights(source: Path, _: Path) -> None:
    for file in source.glob("model*"):
        file.unlink()


def _half(source: Path, _: Path) -> None:
    _rewrite(source, lambda weights: [weights.pop(n) for n in list(weights) if "layers.2." in n] and None)


def _no_projector(source: Path, _: Path) -> None:
    _rewrite(source, lambda weights: [weights.pop(n) for n in list(weights) if "mm_projector" in n] and None)


def _wrong_projector(source: Path, _: Path) -> None:
    _rewrite(source, lambda weights: weights.update({"model.mm_projector.0.weight": torch.zeros(32, 24)}))


def _newline(source: Path, _: Path) -> None:
    _rewrite(source, lambda weights: weights.update({"model.image_newline": torch.zeros(32)}))


def _short_vocabulary(source: Path, _: Path) -> None:
    _edit(source, vocab_size=320)


def _tiny_vocabulary(source: Path, _: Path) -> None:
    _edit(source, vocab_size=200)


def _no_tokenizer(source: Path, _: Path) -> None:
    for file in source.glob("token*"):
        file.unlink()


def _slow_tokenizer(source: Path, _: Path) -> None:
    _no_tokenizer(source, source)
    (source / "tokenizer.model").write_bytes(b"not sentencepiece")


def _no_ending(source: Path, _: Path) -> None:
    file = source / "tokenizer.json"
    file.write_text(file.read_text().replace("</s>", "<end>"))
    settings = source / "tokenizer_config.json"
    settings.write_text(settings.read_text().replace("</s>", "<end>"))


def _no_tower_config(_: Path, tower: Path) -> None:
    (tower / "config.json").unlink()


def _text_tower(_: Path, tower: Path) -> None:
    (tower / "config.json").write_text(json.dumps({**LLM, "model_type": "llama"}))


def _other_tower(_: Path, tower: Path) -> None:
    settings = {"model_type": "dinov2", "hidden_size": 16, "image_size": 28, "patch_size": 14}
    (tower / "config.json").write_text(json.dumps(settings))


def _wide_tower(_: Path, tower: Path) -> None:
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": CLIP | {"hidden_size": 24}}))


def _shallow_tower(_: Path, tower: Path) -> None:
    deeper = CLIP | {"num_hidden_layers": 6}
    (tower / "config.json").write_text(json.dumps({"model_type": "clip", "vision_config": deeper}))


def _no_tower_weights(_: Path, tower: Path) -> None:
    (tower / "model.safetensors").unlink()


def _code(source: Path, _: Path) -> None:
    _no_weights(source, source)

    class Surprise:
        def __reduce__(self) -> tuple[Callable[[str], Path], tuple[str]]:
            return Path, ("/",)

    torch.save({"model.norm.weight": Surprise()}, source / "pytorch_model.bin")


def _list_of_tensors(source: Path, _: Path) -> None:
    _no_weights(source, source)
    torch.save([torch.ones(2)], source / "pytorch_model.bin")


def _no_config(source: Path, _: Path) -> None:
    (source / "config.json").unlink()


def _hf_config(source: Path, _: Path) -> None:
    (source / "config.json").write_text('{"model_type": "llava", "vision_config": {}}')


def _llama_config(source: Path, _: Path) -> None:
    (source / "config.json").write_text(json.dumps({**LLM, "model_type": "llama"}))


def _setting(**change: Any) -> Callable[[Path, Path], None]:
    return lambda source, _: _edit(source, **change)


BROKEN: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "half a checkpoint": (_half, "lacks 9 tensors, for example the language model's model.language_model.layers.2"),
    "a shard missing": (_drop_shard, "lacks 1 of 3 shards, for example model-00002-of-00003.safetensors"),
    "a shard cut short": (_cut_shard, "00002-of-00003.safetensors is damaged"),
    "no weights": (_no_weights, "llava has no weights"),
    "no projector": (_no_projector, "lacks 4 tensors, for example the projector's linear_1.weight"),
    "a projector of another shape": (_wrong_projector, r"projector's linear_1.weight .* \(32, 24\).*\(32, 16\)"),
    "a tensor of another layout": (_newline, "holds model.image_newline, which no layout of LLaVA-1.5 has"),
    "weights of another vocabulary": (_short_vocabulary, "has 330 rows, .* a vocab_size of 320"),
    "a tokenizer of another model": (_tiny_vocabulary, r"has 3\d\d tokens, and its embeddings 200 rows"),
    "no tokenizer": (_no_tokenizer, "has no tokenizer"),
    "a tokenizer that needs a package": (_slow_tokenizer, "can't be read: .*next: +pip install sentencepiece"),
    "a tokenizer without the ending": (_no_ending, "has no token '</s>', which ends each answer"),
    "a tower without config": (_no_tower_config, "holds no vision encoder: it has no config.json"),
    "a language model as tower": (_text_tower, "is no vision encoder of square pictures"),
    "an unknown tower": (_other_tower, "unknown vision tower .*: its config is of type dinov2"),
    "a tower of another size": (_wide_tower, "features of size 24, and the checkpoint was made for 16"),
    "a tower that is not whole": (_shallow_tower, "lacks 32 tensors, for example the vision tower's"),
    "a tower without weights": (_no_tower_weights, "clip has no weights"),
    "a .bin file with code": (_code, "was not read: it is damaged, or holds more than tensors"),
    "a .bin file without names": (_list_of_tensors, "holds no table of tensors"),
    "no config": (_no_config, "can't read .*config.json: No such file"),
    "a model of transformers": (_hf_config, "is no original checkpoint.*use it as it is"),
    "a config without vision": (_llama_config, "is no original checkpoint: its config names no mm_vision_tower"),
    "an unknown model type": (_setting(model_type="bunny-phi"), "it has model type 'bunny-phi'.*did you mean"),
    "one linear as projector": (_setting(mm_projector_type="linear"), "it has a projector of type 'linear'"),
    "pictures at several scales": (_setting(model_type="bunny-llama", use_s2=True), "pictures at several scales"),
    "tokens round pictures": (_setting(mm_use_im_start_end=True), "tokens round each picture"),
    "tiles": (_setting(image_aspect_ratio="anyres"), "pictures cut into tiles"),
    "a dtype that is none": (_setting(torch_dtype="int4"), "names the unknown dtype 'int4'"),
    "no vocabulary size": (_setting(vocab_size=None), "names no vocab_size"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_original_is_refused_and_nothing_is_written(case: str, clip: Path, tmp_path: Path) -> None:
    damage, text = BROKEN[case]
    source = write_original(tmp_path / "llava", LLAVA, whole_weights(LLAVA))
    damage(source, clip)
    with pytest.raises(ModelError) as caught:
        import_checkpoint(source, tmp_path / "out", vision=clip)
    assert re.search(text, str(caught.value), re.DOTALL), str(caught.value)
    assert caught.value.allowed
    assert caught.value.next_step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llava", "towers"]


def _change_adapter(folder: Path, change: Callable[[Weights], None]) -> None:
    factors = torch.load(folder / "adapter_model.bin", weights_only=True)
    change(factors)
    torch.save(factors, folder / "adapter_model.bin")


def _deeper_adapter(folder: Path) -> None:
    def deepen(factors: Weights) -> None:
        for name in [name for name in factors if ".layers.2." in name]:
            factors[name.replace(".layers.2.", ".layers.7.")] = factors.pop(name)

    _change_adapter(folder, deepen)


def _wider_adapter(folder: Path) -> None:
    _change_adapter(folder, lambda f: f.update({n: torch.zeros(2, 99) for n in f if "q_proj.lora_A" in n}))


def _lone_factor(folder: Path) -> None:
    _change_adapter(folder, lambda f: [f.pop(n) for n in list(f) if "layers.1.self_attn.q_proj.lora_B" in n] and None)


def _other_tensor(folder: Path) -> None:
    _change_adapter(folder, lambda f: f.update({"base_model.model.model.norm.weight": torch.ones(2)}))


def _dora(folder: Path) -> None:
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))


def _no_rank(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "../llama"}')


LORA: dict[str, tuple[Callable[[Path], None], str]] = {
    "an adapter of a deeper model": (_deeper_adapter, r"trained on another model: 2 of its 6 matrices .*layers.7"),
    "an adapter of a wider model": (_wider_adapter, r"trained on another model: \S*q_proj.weight is \(32, 32\)"),
    "one of two factors": (_lone_factor, "layers.1.self_attn.q_proj.weight has only one of its two factors"),
    "a tensor that is no factor": (_other_tensor, "model.norm.weight, which is no LoRA factor"),
    "another kind of adapter": (_dora, "can't be merged here: use_dora=True"),
    "an adapter config without rank": (_no_rank, "adapter_config.json can't be used"),
    "no non_lora_trainables.bin": (
        lambda f: (f / "non_lora_trainables.bin").unlink(),
        "has no non_lora_trainables.bin",
    ),
    "no adapter weights": (lambda f: (f / "adapter_model.bin").unlink(), "has no adapter_model.safetensors"),
}


@pytest.mark.parametrize("case", LORA)
def test_a_broken_lora_is_refused(case: str, siglip: Path, tmp_path: Path) -> None:
    damage, text = LORA[case]
    write_base(tmp_path / "llama")
    source = write_lora(tmp_path / "lora", "../llama")
    damage(source)
    with pytest.raises(ModelError) as caught:
        import_checkpoint(source, tmp_path / "out", vision=siglip)
    assert re.search(text, str(caught.value), re.DOTALL), str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_missing_base_tower_or_source_is_named(clip: Path, siglip: Path, tmp_path: Path) -> None:
    lora = write_lora(tmp_path / "lora", "/nowhere/llama")
    with pytest.raises(ModelError, match="no base language model at '/nowhere/llama'"):
        import_checkpoint(lora, tmp_path / "out", vision=siglip)
    with pytest.raises(ModelError, match="no original checkpoint at '/nowhere'"):
        import_checkpoint("/nowhere", tmp_path / "out", vision=clip)
    source = write_original(tmp_path / "llava", LLAVA, whole_weights(LLAVA))
    with pytest.raises(ModelError, match="no vision tower at '/nowhere/clip'"):
        import_checkpoint(source, tmp_path / "out", vision="/nowhere/clip")
    with pytest.raises(ModelError, match=f"no vision tower at '{CLIP_NAME}'(.|\n)*--vision"):
        import_checkpoint(source, tmp_path / "out")
    with pytest.raises(ModelError, match=r"--base .* has no effect"):
        import_checkpoint(source, tmp_path / "out", vision=clip, base=lora)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ArtifactError, match="exists already"):
        import_checkpoint(source, tmp_path / "out", vision=clip)


def test_striate_names_the_verb_for_original_checkpoints(tmp_path: Path) -> None:
    source = write_original(tmp_path / "llava", LLAVA, whole_weights(LLAVA))
    bunny = write_original(tmp_path / "bunny", BUNNY_PHI3, whole_weights(BUNNY_PHI3))
    lora = write_lora(tmp_path / "lora", "../llama")
    for folder, kind in ((source, "LlavaLlamaForCausalLM"), (bunny, "BunnyPhi3ForCausalLM"), (lora, "BunnyLlama")):
        for ask_for in (load_model, read_config, load_processor):
            with pytest.raises(ModelError) as caught:
                ask_for(folder)
            assert "is an original checkpoint" in str(caught.value)
            assert kind in str(caught.value)
            assert f"striate import {folder} --vision" in str(caught.value)


def test_striate_names_the_verb_for_hub_ids_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_original(tmp_path / "bunny", BUNNY_PHI3, whole_weights(BUNNY_PHI3))

    def cached(_: str, name: str, **__: Any) -> str | None:
        return str(source / name) if (source / name).is_file() else None

    monkeypatch.setattr(loading, "cached_file", cached)
    with pytest.raises(ModelError, match="striate import BAAI/Bunny-Phi3-mini-4B-V --vision"):
        load_model("BAAI/Bunny-Phi3-mini-4B-V")


def test_a_full_disk_leaves_nothing_behind(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise SafetensorError("I/O error: No space left on device")

    source = write_original(tmp_path / "llava", LLAVA, whole_weights(LLAVA))
    monkeypatch.setattr(writing, "save_file", full)
    with pytest.raises(ArtifactError, match=r"can't write .*/out: I/O error: No space left on device"):
        import_checkpoint(source, tmp_path / "out", vision=clip)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llava", "towers"]
