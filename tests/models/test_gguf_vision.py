"""LVLMs as a pair of GGUF files: llama.cpp, run for real, gives transformers' greedy answers about five pictures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf_kit import Family, build, pictures
from llama_kit import Answer, llama_server, needs_server

from striate.errors import ModelError
from striate.models.convert.gguf import write_language_model, write_vision_model

STEPS = 8
# In nats: random weights make of llama.cpp's own GELU and float16 keys what trained ones don't.
NEAR_TIE = 0.1
EXACT = (
    "llava-siglip",
    "llava-siglip-last",
    "idefics3",
    "smolvlm",
    "gemma3",
    "internvl",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
)
SIZES = {"idefics3": (112, 112), "smolvlm": (112, 112), "internvl": (112, 56), **dict.fromkeys(EXACT[-3:], (112, 84))}
BEFORE, AFTER = "What colour is", " the square?"


def export(family: Family, folder: Path) -> tuple[Path, Path]:
    language, vision = folder / "language.gguf", folder / "mmproj.gguf"
    write_language_model(family.model, family.processor, language, "float32")
    write_vision_model(family.model, family.processor, vision, "float32")
    return language, vision


def answer(family: Family, picture: Any) -> tuple[list[int], torch.Tensor]:
    """Return transformers' greedy answer, and the log probabilities of each step (steps, tokens)."""
    words, inputs = family.processor.tokenizer, family.inputs(picture)
    with torch.inference_mode():
        features = family.model.model.get_image_features(**inputs)
        found = getattr(features, "pooler_output", features)
        parts = found if isinstance(found, list | tuple) else [found]
        count = sum(part.numel() // part.shape[-1] for part in parts)
        text = BEFORE + family.around(count) + AFTER
        ids = words(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        kinds = (ids == words.convert_tokens_to_ids("<image>")).long()
        name = {"gemma3": "token_type_ids"}.get(family.model.config.model_type, "mm_token_type_ids")
        given = {name: kinds} if family.model.config.model_type[:4] in ("gemm", "qwen") else {}
        done = family.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            **inputs,
            **given,
            do_sample=False,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return done.sequences[0, ids.shape[1] :].tolist(), torch.log_softmax(torch.cat(done.logits), -1)


def agreed(theirs: Answer, ours: list[int], logits: torch.Tensor) -> int:
    """Return how many tokens are equal; where one differs, our two likeliest are a near tie, or the test fails."""
    for step, (one, other) in enumerate(zip(theirs.ids, ours, strict=True)):
        if one != other:
            best = logits[step].topk(2).values
            assert float(best[0] - best[1]) < NEAR_TIE, f"step {step}: {theirs.ids} for {ours}"
            return step
    return len(ours)


@needs_server
@pytest.mark.parametrize("name", EXACT)
def test_llama_cpp_answers_as_transformers_does(name: str, tmp_path: Path) -> None:
    family = build(name)
    with llama_server(*export(family, tmp_path)) as server:
        answers, equal = set(), 0
        for picture in pictures(5, SIZES.get(name, (56, 56))):
            ours, logits = answer(family, picture)
            theirs = server.answer(BEFORE, picture, AFTER, STEPS)
            equal += agreed(theirs, ours, logits)
            answers.add(tuple(ours))
            assert theirs.difference(logits[0]) < NEAR_TIE
    assert equal >= 0.75 * 5 * STEPS
    # Otherwise nothing would show that pictures are seen at all.
    assert len(answers) == 5


@needs_server
def test_clip_is_shifted_by_llama_cpp(tmp_path: Path) -> None:
    """What docs/serving.md says of CLIP: once llama.cpp computes it rightly, the note goes."""
    family = build("llava-clip")
    layout = write_vision_model(family.model, family.processor, tmp_path / "note.gguf")
    assert any("25814" in note for note in layout.notes())
    with llama_server(*export(family, tmp_path)) as server:
        same = [
            server.answer(BEFORE, picture, AFTER, STEPS).ids == answer(family, picture)[0] for picture in pictures(5)
        ]
    assert not any(same)


def test_what_the_vision_file_holds(tmp_path: Path) -> None:
    family = build("llava-siglip")
    write_vision_model(family.model, family.processor, tmp_path / "mmproj.gguf")
    reader = gguf.GGUFReader(tmp_path / "mmproj.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "clip"
    assert fields["clip.projector_type"] == "mlp"
    assert (fields["clip.vision.block_count"], fields["clip.vision.feature_layer"]) == (2, [2])
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    # The third block is behind the hidden state that is read.
    assert "v.blk.1.ffn_down.weight" in tensors
    assert not any(name.startswith(("v.blk.2", "v.post_ln", "v.head")) for name in tensors)
    assert tensors["mm.0.weight"].tensor_type == gguf.GGMLQuantizationType.F16
    assert tensors["v.position_embd.weight"].tensor_type == gguf.GGMLQuantizationType.F32
    linear = family.model.model.multi_modal_projector.linear_1.weight.detach().numpy()
    np.testing.assert_allclose(np.array(tensors["mm.0.weight"].data), linear, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llava-siglip", {"vision_feature_layer": [-2, -1]}, r"it reads the hidden states \[-2, -1\]"),
        ("llava-siglip", {"vision_feature_select_strategy": "default"}, "it takes the tokens 'default' of siglip"),
        ("llava-siglip", {"projector_hidden_act": "relu"}, "its projector's activation is 'relu'"),
        ("llava-siglip", {"vision_config.hidden_act": "relu"}, "its encoder's activation is 'relu'"),
        ("llava-siglip", {"vision_config.model_type": "dinov2"}, "no graph for the encoder 'dinov2'"),
        ("llava-siglip", {"model_type": "llava_next"}, "joins the tiles of a picture without the line ends"),
        ("llava-siglip", {"model_type": "florence2"}, "no layout that this knows to be its own"),
        ("qwen2_vl", {"vision_config.spatial_merge_size": 3}, "it joins 3 x 3 tokens"),
        ("qwen2_5_vl", {"vision_config.window_size": 56}, "its windows have 56 px"),
        ("qwen2_5_vl", {"vision_config.fullatt_block_indexes": [0, 3]}, r"blocks \[0, 3\] see all patches"),
        ("internvl", {"vision_config.norm_type": "rms_norm"}, "its norms are 'rms_norm'"),
    ],
)
def test_refusals(name: str, change: dict[str, Any], said: str, tmp_path: Path) -> None:
    family = build(name)
    for path, value in change.items():
        holder, _, key = path.rpartition(".")
        part = getattr(family.model.config, holder) if holder else family.model.config
        if key == "model_type":
            part.__class__ = type(part.__class__.__name__, (part.__class__,), {"model_type": value})
        object.__setattr__(part, key, value)
    with pytest.raises(ModelError, match=said) as refused:
        write_vision_model(family.model, family.processor, tmp_path / "mmproj.gguf")
    assert "--text-only; for the whole model try --to vllm or int8" in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_tiles_of_another_size_are_refused(tmp_path: Path) -> None:
    family = build("idefics3")
    family.processor.image_processor.max_image_size = {"longest_edge": 112}
    with pytest.raises(ModelError, match="tiles of 112 px for an encoder of 56 px"):
        write_vision_model(family.model, family.processor, tmp_path / "mmproj.gguf")
    whole = SimpleNamespace(**vars(family.processor))
    whole.image_processor.do_image_splitting = False
    with pytest.raises(ModelError, match="its processor cuts no tiles"):
        write_vision_model(family.model, whole, tmp_path / "mmproj.gguf")


@pytest.mark.parametrize(("asked", "tiles"), [({"crop_to_patches": False}, 1), ({"max_patches": 3}, 3), ({}, 4)])
def test_what_the_processors_class_asks_for_counts(asked: dict[str, Any], tiles: int, tmp_path: Path) -> None:
    family = build("internvl")

    class Processor(SimpleNamespace):
        images_kwargs = asked

    write_vision_model(family.model, Processor(**vars(family.processor)), tmp_path / "mmproj.gguf")
    field = gguf.GGUFReader(tmp_path / "mmproj.gguf").fields["clip.vision.preproc_max_tiles"]
    assert field.contents() == tiles
