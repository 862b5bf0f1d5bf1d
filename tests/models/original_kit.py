"""Original checkpoints made small: the published key names, configs and files of LLaVA-1.5 and Bunny."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional

from striate.models.convert.legacy.tower import CLIP_NAME, SIGLIP_NAME
from striate.models.io.load import load_model

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
