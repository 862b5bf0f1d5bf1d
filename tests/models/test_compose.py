"""New LVLMs from an encoder and a language model: what they compute, that they save, and how stage 1 aligns them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compose_kit import ENCODERS, LLMS, ROWS, write_encoder, write_llm
from PIL import Image
from torch.nn import functional
from transformers import AutoModelForCausalLM

from striate.artifacts import Region
from striate.config import MachineSection, TrainSection
from striate.data.reading import read_samples
from striate.errors import TrainingError
from striate.models.convert.compose import compose
from striate.models.io.components import load_encoder, load_llm
from striate.models.io.load import Loaded, load_model
from striate.models.io.save import save_model
from striate.stages.train import train


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
    with pytest.raises(TrainingError, match=r"the projector alone trains with train.projector=lora"):
        align(loaded, "lora", pack_dir, tmp_path)
