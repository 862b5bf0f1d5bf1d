"""Original checkpoints of LLaVA-1.5 and Bunny, made small with their published names, imported and asked."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from original_kit import (
    BUNNY_LLAMA,
    BUNNY_PHI3,
    CLIP,
    LLAVA,
    ROWS,
    SIGLIP,
    SYSTEM,
    Weights,
    assert_imported,
    build_llm,
    build_projector,
    build_tower,
    inside,
    picture,
    tower_weights,
    whole_weights,
    write_base,
    write_lora,
    write_original,
    write_tower,
)
from PIL import Image
from safetensors.torch import load_file

from striate.models.convert.legacy import importing
from striate.models.convert.legacy.importing import import_checkpoint
from striate.models.io.load import load_model, load_processor


@pytest.mark.parametrize("binary", [False, True], ids=["safetensors", "bin"])
def test_llava_has_the_logits_of_its_parts(binary: bool, tmp_path: Path) -> None:
    source = write_original(tmp_path / "llava", LLAVA, whole_weights(LLAVA), binary=binary)
    tower = write_tower(tmp_path / "clip", CLIP, binary=binary)
    imported = import_checkpoint(source, tmp_path / "out", vision=tower)
    with torch.no_grad():
        pixels = load_processor(tmp_path / "out").image_processor(picture(), return_tensors="pt")["pixel_values"]
        hidden = build_tower(CLIP)(pixels, output_hidden_states=True).hidden_states
    # Layer -2 of 4 layers and an embedding, and no class token.
    assert len(hidden) == 5
    assert_imported(tmp_path / "out", LLAVA, build_llm(LLAVA), build_projector(), hidden[3][:, 1:])
    assert (imported.title, imported.image_tokens) == ("LLaVA-1.5", 4)
    stored = {name: t for file in (tmp_path / "out").glob("*.safetensors") for name, t in load_file(file).items()}
    assert imported.parameters == sum(tensor.numel() for tensor in stored.values())
    assert all(tensor.dtype == torch.float32 for tensor in stored.values())


@pytest.mark.parametrize("config", [BUNNY_LLAMA, BUNNY_PHI3], ids=["llama", "phi3"])
@pytest.mark.parametrize("place", ["apart", "inside", "inside-trimmed"])
def test_bunny_has_the_logits_of_its_parts(config: dict[str, Any], place: str, siglip: Path, tmp_path: Path) -> None:
    weights = whole_weights(config)
    tower = tower_weights(build_tower(SIGLIP))
    if place == "inside":
        weights |= inside(tower)
    if place == "inside-trimmed":
        # Bunny takes the last layer and the head off before it trains the tower.
        weights |= inside({name: t for name, t in tower.items() if ".layers.3." not in name and ".head." not in name})
    source = write_original(tmp_path / "bunny", config, weights)
    imported = import_checkpoint(source, tmp_path / "out", vision=siglip)
    with torch.no_grad():
        pixels = load_processor(tmp_path / "out").image_processor(picture(), return_tensors="pt")["pixel_values"]
        hidden = build_tower(SIGLIP)(pixels, output_hidden_states=True).hidden_states
    # Layer -2, before the final norm; SigLIP has no class token.
    assert_imported(tmp_path / "out", config, build_llm(config), build_projector(), hidden[3])
    assert imported.image_tokens == 4
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["vision_config"]["num_hidden_layers"] == (3 if place == "inside-trimmed" else 4)
    assert written["vision_feature_layer"] == (-1 if place == "inside-trimmed" else -2)


def test_code_of_the_original_is_not_asked_about(
    siglip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write_original(tmp_path / "bunny", BUNNY_LLAMA, whole_weights(BUNNY_LLAMA))
    import_checkpoint(source, tmp_path / "out", vision=siglip)
    assert "auto_map" in (source / "config.json").read_text()
    assert "auto_map" not in (tmp_path / "out" / "config.json").read_text()
    assert "custom code" not in "".join(capfd.readouterr())


def test_weights_inside_go_before_those_of_the_tower(siglip: Path, tmp_path: Path) -> None:
    changed = {name: tensor + 0.1 for name, tensor in tower_weights(build_tower(SIGLIP)).items()}
    source = write_original(tmp_path / "bunny", BUNNY_LLAMA, whole_weights(BUNNY_LLAMA) | inside(changed))
    import_checkpoint(source, tmp_path / "out", vision=siglip)
    ours = load_model(tmp_path / "out").model.model.vision_tower.state_dict()
    named = {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in ours.items()}
    assert all(torch.equal(named[name], tensor) for name, tensor in changed.items())


@pytest.mark.parametrize("binary", [True, False], ids=["bin", "safetensors"])
def test_lora_is_merged_as_peft_merges_it(binary: bool, siglip: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "llama")
    source = write_lora(tmp_path / "lora", "../llama", binary=binary)
    import_checkpoint(source, tmp_path / "out", vision=siglip)

    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict

    llm = get_peft_model(build_llm(BUNNY_LLAMA), LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"]))
    file = source / ("adapter_model.bin" if binary else "adapter_model.safetensors")
    result = set_peft_model_state_dict(llm, torch.load(file, weights_only=True) if binary else load_file(file))
    assert not result.unexpected_keys
    tower = build_tower(SIGLIP)
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.1
        pixels = load_processor(tmp_path / "out").image_processor(picture(), return_tensors="pt")["pixel_values"]
        hidden = tower(pixels, output_hidden_states=True).hidden_states
    assert_imported(tmp_path / "out", BUNNY_LLAMA, llm.eval(), build_projector(seed=8), hidden[3])
    assert base.is_dir()


def test_pictures_are_padded_as_in_the_original(clip: Path, tmp_path: Path) -> None:
    source = write_original(tmp_path / "llava", LLAVA, whole_weights(LLAVA))
    import_checkpoint(source, tmp_path / "out", vision=clip)
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    for size in ((40, 25), (25, 40), (30, 30)):
        wide = max(size)
        square = Image.new("RGB", (wide, wide), tuple(int(value * 255) for value in mean))
        square.paste(picture(*size), ((wide - size[0]) // 2, (wide - size[1]) // 2))
        small = np.asarray(square.resize((28, 28), Image.Resampling.BICUBIC), dtype=np.float64) / 255
        wanted = ((small - mean) / std).transpose(2, 0, 1)
        ours = load_processor(tmp_path / "out").image_processor(picture(*size), return_tensors="np")["pixel_values"][0]
        assert np.abs(ours - wanted).max() < 1e-5


def test_without_padding_the_towers_own_way_is_taken(siglip: Path, clip: Path, tmp_path: Path) -> None:
    plain = {"image_aspect_ratio": None}
    first = write_original(tmp_path / "llava", LLAVA | plain, whole_weights(LLAVA))
    second = write_original(tmp_path / "bunny", BUNNY_LLAMA | plain, whole_weights(BUNNY_LLAMA))
    (siglip / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}')
    import_checkpoint(first, tmp_path / "a", vision=clip)
    import_checkpoint(second, tmp_path / "b", vision=siglip)
    cropped, squeezed = (load_processor(tmp_path / name).image_processor for name in "ab")
    assert (cropped.do_pad, cropped.do_center_crop, dict(cropped.size)["shortest_edge"]) == (False, True, 28)
    assert (squeezed.do_pad, squeezed.do_center_crop, dict(squeezed.size)["height"]) == (False, False, 28)
    assert (list(squeezed.image_mean), list(squeezed.image_std)) == ([0.1, 0.2, 0.3], [0.5, 0.6, 0.7])


def test_conversations_are_those_of_the_original(clip: Path, siglip: Path, tmp_path: Path) -> None:
    import_checkpoint(write_original(tmp_path / "a", LLAVA, whole_weights(LLAVA)), tmp_path / "llava", vision=clip)
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is it 'red'?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}]},
        {"role": "user", "content": "And now?"},
    ]
    llava = load_processor(tmp_path / "llava")
    text = llava.apply_chat_template(chat, add_generation_prompt=True)
    assert text == f"{SYSTEM} USER: <image>\nIs it 'red'? ASSISTANT: yes</s>USER: And now? ASSISTANT:"
    system = [{"role": "system", "content": "Be brief."}, chat[2]]
    assert llava.apply_chat_template(system, add_generation_prompt=True) == "Be brief. USER: And now? ASSISTANT:"
    for config, ending in ((BUNNY_LLAMA, "<|end_of_text|>"), (BUNNY_PHI3, "<|endoftext|>")):
        name = config["model_type"]
        import_checkpoint(
            write_original(tmp_path / f"{name}-source", config, whole_weights(config)), tmp_path / name, vision=siglip
        )
        bunny = load_processor(tmp_path / name)
        assert bunny.apply_chat_template(chat[:2]).endswith(f"ASSISTANT: yes{ending}")
        ends = load_model(tmp_path / name).model.generation_config.eos_token_id
        assert bunny.tokenizer.convert_tokens_to_ids(ending) in ends


def test_rows_grow_only_where_they_must(clip: Path, tmp_path: Path) -> None:
    weights = whole_weights(LLAVA)
    import_checkpoint(write_original(tmp_path / "a", LLAVA, weights), tmp_path / "roomy", vision=clip)
    roomy = load_model(tmp_path / "roomy").model
    assert roomy.config.text_config.vocab_size == ROWS
    tokens = len(load_processor(tmp_path / "roomy").tokenizer) - 1
    assert roomy.config.image_token_id == tokens
    tight = {**LLAVA, "vocab_size": tokens}
    cut = {
        name: t[:tokens].clone() if "embed_tokens" in name or "lm_head" in name else t for name, t in weights.items()
    }
    import_checkpoint(write_original(tmp_path / "b", tight, cut), tmp_path / "tight", vision=clip)
    model = load_model(tmp_path / "tight").model
    assert model.config.text_config.vocab_size == -(-(tokens + 1) // 64) * 64
    head = model.lm_head.weight
    assert torch.equal(head[:tokens], cut["lm_head.weight"])
    assert torch.allclose(head[tokens], cut["lm_head.weight"].mean(dim=0), atol=1e-6)


def test_half_precision_is_kept(clip: Path, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        weights = {key: tensor.to(dtype) for key, tensor in whole_weights(LLAVA).items()}
        source = write_original(tmp_path / f"{name}-source", LLAVA | {"torch_dtype": name}, weights)
        import_checkpoint(source, tmp_path / name, vision=clip)
        stored = {n: t for file in (tmp_path / name).glob("*.safetensors") for n, t in load_file(file).items()}
        assert {tensor.dtype for tensor in stored.values()} == {dtype}
        assert torch.equal(stored["language_model.model.norm.weight"], weights["model.norm.weight"])
        assert json.loads((tmp_path / name / "config.json").read_text())["dtype"] == name


def test_one_shard_is_in_memory_at_a_time(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_original(tmp_path / "llava", LLAVA, whole_weights(LLAVA), binary=True)
    alive: list[weakref.ref[torch.Tensor]] = []
    most: list[int] = []
    real = importing.load_shard

    def watched(file: Path) -> Weights:
        gc.collect()
        most.append(sum(ref() is not None for ref in alive))
        tensors = real(file)
        alive.extend(weakref.ref(tensor) for tensor in tensors.values())
        return tensors

    monkeypatch.setattr(importing, "load_shard", watched)
    import_checkpoint(source, tmp_path / "out", vision=clip)
    assert len(most) == 6  # three shards, read for their names and then for their tensors
    assert max(most) == 0


def test_the_imported_model_trains_and_loses_layers(clip: Path, tmp_path: Path) -> None:
    from striate.models.surgery.prune_checkpoint import prune_checkpoint
    from striate.models.trainable.apply import apply_region
    from striate.stages.select import select

    import_checkpoint(write_original(tmp_path / "a", LLAVA, whole_weights(LLAVA)), tmp_path / "out", vision=clip)
    model = load_model(tmp_path / "out").model
    assert apply_region(model, select(3, "ids:1"), "full").trainable > 0
    prune_checkpoint(tmp_path / "out", [2], tmp_path / "pruned")
    assert len(load_model(tmp_path / "pruned").model.model.language_model.layers) == 2


def test_base_may_be_named(siglip: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "elsewhere")
    import_checkpoint(write_lora(tmp_path / "lora", "owner/gone"), tmp_path / "out", vision=siglip, base=base)
    assert load_model(tmp_path / "out").model.config.text_config.num_hidden_layers == 3
