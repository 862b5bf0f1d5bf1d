"""New LVLMs from an encoder and a language model: what they compute, that they save, and how stage 1 aligns them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from striate.artifacts import Region
from striate.config import MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.demo.register import register_with_transformers
from striate.demo.vision import EfficientNetLiteConfig, EfficientNetLiteModel
from striate.errors import ModelError, TrainingError
from striate.models.compose import compose
from striate.models.loading import Loaded, load_model, save_model
from striate.models.parts import load_encoder, load_llm
from striate.stages.train import train

ROWS = 320
LLM: dict[str, Any] = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
ENCODERS = ("clip", "clip-alone", "siglip", "dinov2", "vit", "efficientnet_lite")
LLMS = ("llama", "qwen2-tied", "phi3", "qwen3-bf16")
TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def write_tokenizer(folder: Path, *, template: str | None = None, size: int = 300) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat, and what colour is the square in the picture"], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    fast.save_pretrained(folder)


def write_llm(folder: Path, name: str, **change: Any) -> Path:
    kind = name.partition("-")[0]
    settings = {**LLM, **({"head_dim": 8} if kind == "qwen3" else {}), "tie_word_embeddings": "tied" in name, **change}
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **settings))
    if "bf16" in name:
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    write_tokenizer(folder, template=TEMPLATE if "qwen" in name else None)
    return folder


def write_encoder(folder: Path, name: str) -> Path:
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPVisionConfig,
        CLIPVisionModel,
        Dinov2Config,
        Dinov2Model,
        SiglipVisionConfig,
        SiglipVisionModel,
        ViTConfig,
        ViTModel,
    )

    register_with_transformers()
    torch.manual_seed(2)
    model: Any
    if name == "clip":
        text = {**SIZES, "vocab_size": 50, "max_position_embeddings": 16, "eos_token_id": 1}
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=SIZES, projection_dim=16))
    elif name == "clip-alone":
        model = CLIPVisionModel(CLIPVisionConfig(**SIZES))
    elif name == "siglip":
        model = SiglipVisionModel(SiglipVisionConfig(**SIZES))
    elif name == "dinov2":
        model = Dinov2Model(Dinov2Config(**SIZES))
    elif name == "vit":
        model = ViTModel(ViTConfig(**SIZES))
    else:
        stages = [[3, 2, 2, 4, 1], [3, 2, 2, 6, 1], [3, 2, 2, 8, 1], [3, 2, 2, 8, 1], [3, 1, 2, 8, 1]]
        model = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=64, stem_channels=4, stages=stages))
    model.save_pretrained(folder)
    return folder


def prompt(loaded: Loaded, question: str = "what colour is the square?") -> dict[str, Any]:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    text = loaded.processor.apply_chat_template(chat, add_generation_prompt=True)
    picture = Image.effect_noise((40, 24), 90).convert("RGB")
    return dict(loaded.processor(images=[picture], text=[text], return_tensors="pt"))


def hand_made_logits(loaded: Loaded, encoder: Any, llm: Any, inputs: dict[str, Any], layer: int) -> torch.Tensor:
    """Encoder, projector, splice and language model, each called on its own."""
    states = encoder(inputs["pixel_values"].to(llm.dtype), output_hidden_states=True).hidden_states[layer]
    ids = inputs["input_ids"][0]
    image = ids == loaded.processor.image_token_id
    features = states[:, states.shape[1] - int(image.sum()) :]
    parts = loaded.model.model.multi_modal_projector
    hidden = functional.gelu(functional.linear(features, parts.linear_1.weight, parts.linear_1.bias))
    hidden = functional.linear(hidden, parts.linear_2.weight, parts.linear_2.bias)
    embeddings = llm.get_input_embeddings()(ids.masked_fill(image, 0)).clone()
    embeddings[image] = hidden[0]
    return llm(inputs_embeds=embeddings[None]).logits


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_of_any_kind_joins(name: str, tmp_path: Path) -> None:
    vision, llm = write_encoder(tmp_path / "vision", name), write_llm(tmp_path / "llm", "llama")
    loaded = compose(vision, llm)
    save_model(loaded.model, loaded.processor, tmp_path / "out")
    reloaded = load_model(tmp_path / "out")
    inputs = prompt(reloaded)
    tokens = int((inputs["input_ids"] == reloaded.processor.image_token_id).sum())
    assert tokens == 4 == reloaded.model.config.image_seq_length
    encoder, _ = load_encoder(vision, dtype=torch.float32)
    plain = AutoModelForCausalLM.from_pretrained(llm)
    layer = -1 if name == "efficientnet_lite" else -2
    with torch.no_grad():
        ours = reloaded.model(**inputs).logits
        assert torch.equal(ours, loaded.model(**inputs).logits)
        theirs = hand_made_logits(reloaded, encoder, plain, inputs, layer)
    assert (ours[..., :ROWS] - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert reloaded.model.config.vision_feature_select_strategy == (
        "full" if name in ("siglip", "efficientnet_lite") else "default"
    )


@pytest.mark.parametrize("name", LLMS)
def test_a_language_model_of_any_kind_joins(name: str, tmp_path: Path) -> None:
    vision, llm = write_encoder(tmp_path / "vision", "siglip"), write_llm(tmp_path / "llm", name)
    loaded = compose(vision, llm)
    dtype = torch.bfloat16 if "bf16" in name else torch.float32
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    save_model(loaded.model, loaded.processor, tmp_path / "out")
    reloaded = load_model(tmp_path / "out", dtype=str(dtype).removeprefix("torch."))
    inputs = prompt(reloaded)
    with torch.no_grad():
        assert torch.equal(reloaded.model(**inputs).logits, loaded.model(**inputs).logits)
    generated = reloaded.model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert generated.shape[1] > inputs["input_ids"].shape[1]
    tied = reloaded.model.lm_head.weight is reloaded.model.model.language_model.embed_tokens.weight
    assert tied == ("tied" in name)
    template = reloaded.processor.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True
    )
    assert template == ("[user] hello</s>[assistant]" if "qwen" in name else template)
    assert ("ASSISTANT:" in template) == ("qwen" not in name)


def test_a_model_without_room_gets_mean_rows(tmp_path: Path) -> None:
    vision = write_encoder(tmp_path / "vision", "siglip")
    for name in ("llama", "qwen2-tied"):
        llm = write_llm(tmp_path / name, name)
        tokens = len(load_llm(llm)[1])
        llm = write_llm(tmp_path / f"{name}-tight", name, vocab_size=tokens)
        model = compose(vision, llm).model
        plain = AutoModelForCausalLM.from_pretrained(llm)
        rows = -(-(tokens + 1) // 64) * 64
        assert model.config.text_config.vocab_size == rows
        for ours, theirs in (
            (model.get_input_embeddings().weight, plain.get_input_embeddings().weight),
            (model.lm_head.weight, plain.lm_head.weight),
        ):
            assert ours.shape[0] == rows
            assert torch.equal(ours[:tokens], theirs)
            torch.testing.assert_close(ours[tokens:], theirs.mean(0).expand(rows - tokens, -1))


def test_the_projector_follows_the_seed_and_nothing_else(tmp_path: Path) -> None:
    vision, llm = write_encoder(tmp_path / "vision", "clip"), write_llm(tmp_path / "llm", "llama")
    before = torch.random.get_rng_state()
    first, second, third = compose(vision, llm), compose(vision, llm), compose(vision, llm, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    one, two, three = (loaded.model.state_dict() for loaded in (first, second, third))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert {name.split(".")[1] for name in one if not torch.equal(one[name], three[name])} == {"multi_modal_projector"}


def test_layer_and_fit_can_be_chosen(tmp_path: Path) -> None:
    vision, llm = write_encoder(tmp_path / "vision", "clip"), write_llm(tmp_path / "llm", "llama")
    loaded = compose(vision, llm, layer=-3, fit="crop")
    assert loaded.model.config.vision_feature_layer == -3
    assert loaded.processor.image_processor.do_center_crop
    assert not loaded.processor.image_processor.do_pad


def align(loaded: Loaded, method: Any, pack: Path, folder: Path) -> Any:
    """Stage-1 alignment: region `none` through the ordinary train stage."""
    return train(
        loaded.model,
        loaded.processor,
        Region(layers=(), num_layers=3, spec="none", selector="none"),
        read_samples(pack),
        TrainSection(method=method, batch_size=4, projector_lr=1e-2, warmup_ratio=0, max_length=200, max_steps=4),
        MachineSection(micro_batch=2),
        seed=0,
        out=folder / "aligned",
        work_dir=folder / "work",
        log=folder / "train_log.jsonl",
        base_path=str(folder / "composed"),
    )


def test_region_none_trains_the_projector_only(tmp_path: Path, pack_dir: Path) -> None:
    vision, llm = write_encoder(tmp_path / "vision", "siglip"), write_llm(tmp_path / "llm", "llama")
    loaded = compose(vision, llm)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    record = align(loaded, "full", pack_dir, tmp_path)
    counts = {row.component: row.trainable for row in record.trainable.components if row.trainable}
    assert counts == {"projector": sum(t.numel() for n, t in before.items() if "multi_modal_projector" in n)}
    after = load_model(tmp_path / "aligned").model.state_dict()
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert moved == {name for name in before if "multi_modal_projector" in name}
    assert record.last_loss < record.first_loss


def test_region_none_has_nothing_for_lora(tmp_path: Path, pack_dir: Path) -> None:
    loaded = compose(write_encoder(tmp_path / "vision", "siglip"), write_llm(tmp_path / "llm", "llama"))
    with pytest.raises(TrainingError, match=r"the projector alone trains with train.method=full and region none"):
        align(loaded, "lora", pack_dir, tmp_path)


# Bad input: each row spoils one part, and names what the error must say.


def _spoil(file: str, **change: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(config | change))

    return spoil


def _delete(*names: str) -> Callable[[Path], None]:
    def delete(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return delete


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])


def _as_llama(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "llama"}')


def _no_statistics(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text('{"size": 28}')


LLM_ROWS: dict[str, tuple[str, Callable[[Path], None] | dict[str, Any], str]] = {
    "no config": ("llama", _delete("config.json"), "llm holds no LLM"),
    "no weights": ("llama", _delete("model.safetensors"), "can't be used as the LLM"),
    "weights cut short": ("llama", _cut, "can't be used as the LLM"),
    "more layers than weights": ("llama", _spoil("config.json", num_hidden_layers=4), "lacks 9 tensors"),
    "no tokenizer": ("llama", _delete("tokenizer.json", "tokenizer_config.json"), "can't be used as the LLM"),
    "an LM head with bias": ("phi", {}, "the LM head of PhiForCausalLM is not a plain matrix"),
    "logits bounded after the head": ("gemma2", {"head_dim": 8, "final_logit_softcapping": 1.0}, "inside LLaVA's form"),
    "logits scaled after the head": ("granite", {"logits_scaling": 4.0}, "GraniteForCausalLM.* inside LLaVA's form"),
    "too few positions": ("llama", {"max_position_embeddings": 4}, "takes 4 image tokens, .* has 4 positions"),
    "a tokenizer of another model": ("llama", {"vocab_size": 100}, r"has \d+ tokens, and its embeddings 100 rows"),
    "a masked language model": ("t5", {"d_model": 32, "d_ff": 32, "num_layers": 1}, "can't be used as the LLM"),
}
VISION_ROWS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "no config": ("clip-alone", _delete("config.json"), "holds no vision encoder"),
    "weights cut short": ("clip-alone", _cut, "can't be used as the vision encoder"),
    "no weights": ("clip-alone", _delete("model.safetensors"), "can't be used as the vision encoder"),
    "more layers than weights": ("clip-alone", _spoil("config.json", num_hidden_layers=5), "lacks 32 tensors"),
    "an unknown type": ("vit", _spoil("config.json", model_type="eyes"), "config.json can't be used"),
    "a language model": ("vit", _as_llama, "is no vision encoder of square pictures"),
    "pictures of unknown statistics": ("siglip", _no_statistics, "holds no image_mean and image_std"),
}


@pytest.mark.parametrize("case", LLM_ROWS)
def test_a_language_model_that_can_not_join_is_refused(case: str, tmp_path: Path) -> None:
    name, spoil, text = LLM_ROWS[case]
    vision = write_encoder(tmp_path / "vision", "siglip")
    if name == "t5":
        from transformers import T5Config, T5ForConditionalGeneration

        T5ForConditionalGeneration(T5Config(vocab_size=ROWS, **spoil)).save_pretrained(tmp_path / "llm")
        write_tokenizer(tmp_path / "llm")
    else:
        write_llm(tmp_path / "llm", name, **(spoil if isinstance(spoil, dict) else {}))
    if not isinstance(spoil, dict):
        spoil(tmp_path / "llm")
    with pytest.raises(ModelError) as caught:
        compose(vision, tmp_path / "llm")
    assert re.search(text, str(caught.value), re.DOTALL), str(caught.value)
    assert caught.value.allowed
    assert caught.value.next_step


@pytest.mark.parametrize("case", VISION_ROWS)
def test_an_encoder_that_can_not_join_is_refused(case: str, tmp_path: Path) -> None:
    name, spoil, text = VISION_ROWS[case]
    llm = write_llm(tmp_path / "llm", "llama")
    spoil(write_encoder(tmp_path / "vision", name))
    with pytest.raises(ModelError) as caught:
        compose(tmp_path / "vision", llm)
    assert re.search(text, str(caught.value), re.DOTALL), str(caught.value)
    assert caught.value.allowed
    assert caught.value.next_step


def test_missing_paths_layers_and_registers_are_refused(tmp_path: Path) -> None:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    vision, llm = write_encoder(tmp_path / "vision", "clip"), write_llm(tmp_path / "llm", "llama")
    with pytest.raises(ModelError, match="no LLM at '/nowhere'"):
        compose(vision, "/nowhere")
    with pytest.raises(ModelError, match="no vision encoder at '/nowhere'"):
        compose("/nowhere", llm)
    with pytest.raises(ModelError, match=r"config.json holds no LLM"):
        compose(vision, llm / "config.json")
    with pytest.raises(ModelError, match="has 4 hidden states, and layer 9 was asked for"):
        compose(vision, llm, layer=9)
    registers = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4))
    registers.save_pretrained(tmp_path / "registers")
    with pytest.raises(ModelError, match=r"hidden states of shape \(1, 9, 16\) of a picture of 4 patches"):
        compose(tmp_path / "registers", llm)
