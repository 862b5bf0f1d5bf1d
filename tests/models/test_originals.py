"""Original checkpoints of LLaVA-1.5 and Bunny, made small with their published names, imported and asked."""

from __future__ import annotations

import gc
import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional

from striate.errors import ArtifactError, ModelError
from striate.models.loading import load_model, load_processor, read_config
from striate.models.originals import importing
from striate.models.originals.configs import published_model
from striate.models.originals.importing import import_checkpoint
from striate.models.originals.names import llava_name, plain_name
from striate.models.originals.published import CLIP_NAME, PUBLISHED, SIGLIP_NAME, TOWERS

Weights = dict[str, torch.Tensor]
ROWS = 330
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 16,
}
SIGLIP = {**{key: CLIP[key] for key in CLIP if key != "projection_dim"}, "model_type": "siglip_vision_model"}
LLM = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "hidden_act": "silu",
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 3,
    "tie_word_embeddings": False,
}
COMMON = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_hidden_size": 16,
    "image_aspect_ratio": "pad",
    "mm_use_im_start_end": False,
    "torch_dtype": "float32",
    "transformers_version": "4.31.0",
}
LLAVA = {
    **LLM,
    **COMMON,
    "model_type": "llava",
    "architectures": ["LlavaLlamaForCausalLM"],
    "mm_vision_tower": CLIP_NAME,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
}
BUNNY_LLAMA = {
    **LLM,
    **COMMON,
    "model_type": "bunny-llama",
    "architectures": ["BunnyLlamaForCausalLM"],
    "mm_vision_tower": SIGLIP_NAME,
    "use_s2": False,
    "unfreeze_vision_tower": True,
    "auto_map": {"AutoConfig": "configuration_bunny_llama.BunnyLlamaConfig"},
}
BUNNY_PHI3 = {**BUNNY_LLAMA, "model_type": "bunny-phi3", "architectures": ["BunnyPhi3ForCausalLM"]}


def write_tokenizer(folder: Path) -> None:
    """A byte-level tokenizer without an image token, that knows the three ends of answers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "</s>", "<|end_of_text|>", "<|endoftext|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat", SYSTEM], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def build_llm(config: dict[str, Any]) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    kind = "phi3" if config["model_type"] == "bunny-phi3" else "llama"
    fields = {key: config[key] for key in LLM}
    torch.manual_seed(1)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **fields)).eval()


def build_tower(settings: dict[str, Any]) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(2)
    fields = {key: value for key, value in settings.items() if key != "model_type"}
    if settings["model_type"] == "clip_vision_model":
        tower = CLIPVisionModel(CLIPVisionConfig(**fields)).eval()
    else:
        tower = SiglipVisionModel(SiglipVisionConfig(**fields)).eval()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(std=0.3)
    return tower


def build_projector(seed: int = 3) -> Weights:
    """The projector's two linears under their published names, without the `model.` that stands before them."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"0.weight": (32, 16), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    return {f"mm_projector.{name}": torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def tower_weights(tower: Any) -> Weights:
    """The tower's tensors under their published names (`vision_model. ...`)."""
    state = {name.removeprefix("vision_model."): tensor.clone() for name, tensor in tower.state_dict().items()}
    return {f"vision_model.{name}": tensor for name, tensor in state.items()}


def whole_weights(config: dict[str, Any]) -> Weights:
    """Language model and projector under their published names."""
    llm = {name: tensor.clone() for name, tensor in build_llm(config).state_dict().items()}
    llm["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    return {**llm, **{f"model.{name}": tensor for name, tensor in build_projector().items()}}


def inside(weights: Weights) -> Weights:
    return {f"model.vision_tower.vision_tower.{name}": tensor for name, tensor in weights.items()}


def write_shards(weights: Weights, folder: Path, *, binary: bool = False, count: int = 3) -> None:
    names = sorted(weights)
    ending = "bin" if binary else "safetensors"
    stem = "pytorch_model" if binary else "model"
    files = [f"{stem}-{number:05d}-of-{count:05d}.{ending}" for number in range(1, count + 1)]
    placed = {name: files[place * count // len(names)] for place, name in enumerate(names)}
    for file in files:
        part = {name: weights[name] for name in names if placed[name] == file}
        torch.save(part, folder / file) if binary else save_file(part, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": placed}
    (folder / f"{stem}.{ending}.index.json").write_text(json.dumps(index))


def write_original(folder: Path, config: dict[str, Any], weights: Weights, *, binary: bool = False) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    # As published: a temperature without sampling, which transformers refuses to save.
    (folder / "generation_config.json").write_text('{"eos_token_id": 1, "temperature": 0.9, "top_p": 0.6}')
    write_tokenizer(folder)
    write_shards(weights, folder, binary=binary)
    return folder


def write_tower(folder: Path, settings: dict[str, Any], *, binary: bool = False) -> Path:
    """The vision half of a published pair: its config nested, its weights beside those of the text half."""
    folder.mkdir(parents=True)
    kind = "clip" if settings["model_type"] == "clip_vision_model" else "siglip"
    (folder / "config.json").write_text(json.dumps({"model_type": kind, "vision_config": settings}))
    weights = tower_weights(build_tower(settings))
    weights |= {"text_model.final_layer_norm.weight": torch.ones(4), "logit_scale": torch.tensor(1.0)}
    weights |= {"visual_projection.weight": torch.ones(4, 4)} if kind == "clip" else {"logit_bias": torch.tensor(0.0)}
    weights["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    if binary:
        torch.save(weights, folder / "pytorch_model.bin")
    else:
        save_file(weights, folder / "model.safetensors")
    return folder


def picture(width: int = 40, height: int = 25) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def expected_logits(
    llm: Any, projector: Weights, features: torch.Tensor, ids: list[int], image_token: int
) -> torch.Tensor:
    """The original's computation, by hand: projected features in place of the one image token."""
    hidden = functional.linear(features, projector["mm_projector.0.weight"], projector["mm_projector.0.bias"])
    hidden = functional.gelu(hidden)
    hidden = functional.linear(hidden, projector["mm_projector.2.weight"], projector["mm_projector.2.bias"])
    first = ids.index(image_token)
    after = ids[first + hidden.shape[1] :]
    assert image_token not in after
    embed = llm.get_input_embeddings()
    parts = [embed(torch.tensor([ids[:first]])), hidden, embed(torch.tensor([after]))]
    return llm(inputs_embeds=torch.cat(parts, dim=1)).logits


def ask(folder: Path, question: str = "What is on the mat?") -> tuple[Any, Any, dict[str, Any]]:
    loaded = load_model(folder, dtype="float32")
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = loaded.processor.apply_chat_template(chat, add_generation_prompt=True)
    return loaded.model, loaded.processor, dict(loaded.processor(images=[picture()], text=[text], return_tensors="pt"))


def assert_imported(out: Path, config: dict[str, Any], llm: Any, projector: Weights, features: torch.Tensor) -> None:
    model, processor, inputs = ask(out)
    token = processor.image_token_id
    ids = inputs["input_ids"][0].tolist()
    assert ids.count(token) == features.shape[1]
    with torch.no_grad():
        ours = model(**inputs).logits
        theirs = expected_logits(llm, projector, features, ids, token)
    scale = theirs.abs().max()
    # Rows were added for the image token: all others are as they were.
    assert (ours[..., : config["vocab_size"]] - theirs).abs().max() < 1e-5 * scale
    assert int(ours[0, -1].argmax()) < config["vocab_size"]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_tower(tmp_path / "towers" / "clip", CLIP)


@pytest.fixture
def siglip(tmp_path: Path) -> Path:
    return write_tower(tmp_path / "towers" / "siglip", SIGLIP)


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


def test_weights_inside_go_before_those_of_the_tower(siglip: Path, tmp_path: Path) -> None:
    changed = {name: tensor + 0.1 for name, tensor in tower_weights(build_tower(SIGLIP)).items()}
    source = write_original(tmp_path / "bunny", BUNNY_LLAMA, whole_weights(BUNNY_LLAMA) | inside(changed))
    import_checkpoint(source, tmp_path / "out", vision=siglip)
    ours = load_model(tmp_path / "out").model.model.vision_tower.state_dict()
    named = {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in ours.items()}
    assert all(torch.equal(named[name], tensor) for name, tensor in changed.items())


def write_lora(
    folder: Path, base: str, targets: tuple[str, ...] = ("q_proj", "down_proj"), *, binary: bool = True, **more: Any
) -> Path:
    """A LoRA checkpoint as published: adapter, non_lora_trainables.bin with projector and tower, config, tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(BUNNY_LLAMA))
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "base_model_name_or_path": base, **more}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(5)
    factors: Weights = {}
    for name, tensor in build_llm(BUNNY_LLAMA).state_dict().items():
        if any(f"{target}.weight" in name for target in targets):
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{stem}.lora_A.weight"] = torch.randn(2, tensor.shape[1], generator=generator) * 0.2
            factors[f"{stem}.lora_B.weight"] = torch.randn(tensor.shape[0], 2, generator=generator) * 0.2
    if binary:
        torch.save(factors, folder / "adapter_model.bin")
    else:
        save_file(factors, folder / "adapter_model.safetensors")
    full = {f"model.{name}": tensor for name, tensor in build_projector(seed=8).items()}
    full |= inside({name: tensor + 0.1 for name, tensor in tower_weights(build_tower(SIGLIP)).items()})
    torch.save(
        {f"base_model.model.{name}": tensor for name, tensor in full.items()}, folder / "non_lora_trainables.bin"
    )
    write_tokenizer(folder)
    return folder


def write_base(folder: Path) -> Path:
    """The language model under a LoRA checkpoint, as a plain one."""
    folder.mkdir(parents=True)
    llm = build_llm(BUNNY_LLAMA)
    (folder / "config.json").write_text(json.dumps({**LLM, "model_type": "llama"}))
    write_shards({name: tensor.clone() for name, tensor in llm.state_dict().items()}, folder)
    return folder


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
    from striate.models.streaming import prune_checkpoint
    from striate.models.trainability import apply_region
    from striate.stages.select import select

    import_checkpoint(write_original(tmp_path / "a", LLAVA, whole_weights(LLAVA)), tmp_path / "out", vision=clip)
    model = load_model(tmp_path / "out").model
    assert apply_region(model, select(3, "ids:1"), "full").trainable > 0
    prune_checkpoint(tmp_path / "out", [2], tmp_path / "pruned")
    assert len(load_model(tmp_path / "pruned").model.model.language_model.layers) == 2


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_published_models_have_their_parameters(published: Any) -> None:
    model = published_model(published)
    assert sum(tensor.numel() for tensor in model.parameters()) == published.parameters
    text = sum(tensor.numel() for tensor in model.model.language_model.parameters()) + model.lm_head.weight.numel()
    assert text == published.language_model
    layers = 40 if "13B" in published.name else 32
    assert len(model.model.language_model.layers) == layers
    assert model.config.image_seq_length == (576 if "LLaVA" in published.name else 729)
    assert all(tensor.device.type == "meta" for tensor in model.parameters())


def test_parameter_counts_follow_from_the_formulas() -> None:
    """The arithmetic of docs/original-checkpoints.md, from the configs alone."""
    for published in PUBLISHED:
        config, tower = published.config, TOWERS[published.config["mm_vision_tower"]]
        d, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
        keys = d * config["num_key_value_heads"] // config["num_attention_heads"]
        layer = 2 * d * d + 2 * d * keys + 3 * d * inner + 2 * d
        assert published.language_model == config["num_hidden_layers"] * layer + 2 * vocabulary * d + d
        v = tower["hidden_size"]
        projector = v * d + d + d * d + d
        assert published.parameters == published.language_model + projector + _tower_parameters(tower)


def _tower_parameters(tower: Any) -> int:
    v, inner, layers = tower["hidden_size"], tower["intermediate_size"], tower["num_hidden_layers"]
    patches = (tower["image_size"] // tower["patch_size"]) ** 2
    layer = 4 * (v * v + v) + 2 * v * inner + inner + v + 4 * v
    pixels = 3 * tower["patch_size"] ** 2 * v
    if tower["model_type"] == "clip_vision_model":
        return layers * layer + pixels + v + (patches + 1) * v + 4 * v
    pooling = v + 4 * (v * v + v) + 2 * v + 2 * v * inner + inner + v
    return layers * layer + pixels + v + patches * v + 2 * v + pooling


def test_names() -> None:
    assert llava_name("model.mm_projector.2.bias") == "multi_modal_projector.linear_2.bias"
    assert llava_name("model.mm_projector.1.weight") is None
    assert llava_name("model.mm_projector.weight") is None
    assert llava_name("model.image_newline") is None
    assert llava_name("lm_head.weight") == "language_model.lm_head.weight"
    tower = "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"
    assert llava_name(tower) == "vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias"
    assert plain_name("base_model.model.model.mm_projector.0.bias") == "model.mm_projector.0.bias"
    assert plain_name("module.base_model.model.model.layers.0.x") == "model.layers.0.x"


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
    "no config": (_no_config, "config.json can't be read"),
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


def test_base_may_be_named(siglip: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "elsewhere")
    import_checkpoint(write_lora(tmp_path / "lora", "owner/gone"), tmp_path / "out", vision=siglip, base=base)
    assert load_model(tmp_path / "out").model.config.text_config.num_hidden_layers == 3


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


def test_the_docs_say_these_numbers() -> None:
    text = (Path(__file__).parents[2] / "docs" / "original-checkpoints.md").read_text(encoding="utf-8")
    for published in PUBLISHED:
        tower = _tower_parameters(TOWERS[published.config["mm_vision_tower"]])
        projector = published.parameters - published.language_model - tower
        counts = (published.language_model, projector, tower, published.parameters)
        assert f"| {published.name} | " + " | ".join(f"{count:,}" for count in counts) + " |\n" in text
        assert text.count(f"{published.language_model:,}") == 2
