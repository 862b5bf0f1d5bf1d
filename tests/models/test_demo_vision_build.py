"""The built-in LVLM put together from a tiny LLM folder and made-up vision weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from striate.demo.assets import LLM, VISION
from striate.demo.build import CHAT_TEMPLATE, IMAGE_TOKEN, build
from striate.demo.places import builtin_model
from striate.demo.vision import EfficientNetLiteConfig, EfficientNetLiteModel
from striate.errors import ModelError
from striate.models.io.card.card_metadata import license_of
from striate.progress import Silent

WORDS = ["What", "colour", "is", "the", "square", "?", "red", "green", "blue", "user", "assistant"]


def save_llm(folder: Path, unknown: str | None = "<unk>") -> Path:
    """Write a random Llama of hidden size 32 and a word tokenizer without an image token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<unk>", "<|im_start|>", "<|im_end|>", *WORDS]
    core = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token=unknown, bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def public_name(name: str) -> str:
    """Return the public checkpoint's name of one of our tensors."""
    norms = {"expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}
    parts = name.split(".")
    if parts[0] != "blocks":
        return ".".join([{"stem": "_conv_stem", "stem_norm": "_bn0"}[parts[0]], parts[1]])
    return ".".join(["_blocks", parts[1], norms.get(parts[2], f"_{parts[2]}_conv"), parts[3]])


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An LLM folder and a vision checkpoint."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(1)
    encoder = EfficientNetLiteModel(EfficientNetLiteConfig())
    torch.save({public_name(name): tensor for name, tensor in encoder.state_dict().items()}, folder / "lite0.pth")
    return save_llm(folder / "llm"), folder / "lite0.pth"


@pytest.fixture(scope="module")
def built(parts: tuple[Path, Path]) -> tuple[Any, Any]:
    """The LVLM made of them, without the aligned weights, which need the real LLM's hidden size."""
    return build(*parts, aligned=False)


def asked(processor: Any) -> Any:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What colour is the square ?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    return processor(images=[Image.new("RGB", (300, 200), "red")], text=[text], return_tensors="pt")


def test_parts_keep_their_weights(built: tuple[Any, Any], parts: tuple[Path, Path]) -> None:
    from safetensors.torch import load_file

    model, _ = built
    public = torch.load(parts[1], weights_only=True)
    for name, tensor in model.model.vision_tower.state_dict().items():
        assert torch.equal(tensor, public[public_name(name)]), name
    stored = load_file(parts[0] / "model.safetensors")
    ours = model.model.language_model.state_dict()
    for name, tensor in stored.items():
        found = ours[name.removeprefix("model.")]
        assert torch.equal(found[: len(tensor)], tensor), name
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight


def test_image_token_gets_a_zero_row(built: tuple[Any, Any], parts: tuple[Path, Path]) -> None:
    model, processor = built
    token = processor.tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
    assert token == len(WORDS) + 3 == model.config.image_token_index
    rows = model.get_input_embeddings().weight
    assert len(rows) == len(processor.tokenizer)
    assert not rows[token].any()


def test_stock_processor_makes_49_image_tokens(built: tuple[Any, Any]) -> None:
    model, processor = built
    inputs = asked(processor)
    assert inputs["pixel_values"].shape == (1, 3, 224, 224)
    assert int((inputs["input_ids"] == model.config.image_token_index).sum()) == 49 == model.config.image_seq_length
    # Red is (255, 0, 0): (x - 127) / 128 gives 1 and -127/128.
    torch.testing.assert_close(inputs["pixel_values"][0, :, 0, 0], torch.tensor([1.0, -127 / 128, -127 / 128]))


def test_answers_depend_on_the_picture(built: tuple[Any, Any]) -> None:
    model, processor = built
    inputs = asked(processor)
    with torch.inference_mode():
        one = model(**inputs).logits
        other = model(**{**inputs, "pixel_values": -inputs["pixel_values"]}).logits
        kept = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        fresh = model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=False)
    assert one.shape[-1] == len(processor.tokenizer)
    assert not torch.equal(one, other)
    assert torch.equal(kept, fresh)


def test_template_of_turns(built: tuple[Any, Any]) -> None:
    _, processor = built
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "I."},
        {"role": "user", "content": [{"type": "text", "text": "Why?"}]},
    ]
    assert processor.chat_template == CHAT_TEMPLATE
    assert processor.apply_chat_template(chat, add_generation_prompt=True) == (
        "<|im_start|>user\n<image>\nWho?<|im_end|>\n<|im_start|>assistant\nI.<|im_end|>\n"
        "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_resolution_is_a_setting(parts: tuple[Path, Path]) -> None:
    model, processor = build(*parts, image_size=320, aligned=False)
    inputs = asked(processor)
    assert inputs["pixel_values"].shape == (1, 3, 320, 320)
    assert int((inputs["input_ids"] == model.config.image_token_index).sum()) == 100
    with torch.inference_mode():
        assert torch.isfinite(model(**inputs).logits).all()


def test_resolution_that_does_not_fit(parts: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError) as caught:
        build(*parts, image_size=250, aligned=False)
    assert str(caught.value).startswith("image size 250 is not a multiple of 32")


def test_padding_token_is_never_the_end_of_turn(parts: tuple[Path, Path], tmp_path: Path) -> None:
    _, processor = build(save_llm(tmp_path / "llm", unknown=None), parts[1], aligned=False)
    assert processor.tokenizer.pad_token not in (None, processor.tokenizer.eos_token)


def test_aligned_weights_of_another_size_are_refused(parts: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError) as caught:
        build(*parts)
    assert str(caught.value).startswith("the aligned weights don't fit this model: ")
    assert "use the LLM and vision encoder that the weights were made for" in str(caught.value)


@pytest.mark.parametrize(
    ("llm", "vision", "text"),
    [
        ("none", "lite0.pth", "/none': there is no such folder"),
        ("empty", "lite0.pth", "/empty holds no LLM\n  allowed: a .gguf file, or a folder with config.json"),
        ("lite0.pth", "lite0.pth", "/lite0.pth holds no LLM"),
        ("llm", "none.pth", "no vision weights at "),
        ("llm", "text.pth", "text.pth does not hold EfficientNet-Lite0"),
        ("llm", "other.pth", "other.pth does not hold EfficientNet-Lite0"),
        ("broken", "lite0.pth", "/broken can't be used as the LLM: "),
    ],
)
def test_wrong_parts(parts: tuple[Path, Path], tmp_path: Path, llm: str, vision: str, text: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("not weights")
    torch.save({"_fc.weight": torch.zeros(1), "_blocks.0.strange.weight": torch.zeros(1)}, tmp_path / "other.pth")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"')
    shutil.copytree(parts[0], tmp_path / "llm")
    shutil.copy(parts[1], tmp_path / "lite0.pth")
    with pytest.raises(ModelError) as caught:
        build(tmp_path / llm, tmp_path / vision, aligned=False)
    assert text in str(caught.value)
    assert caught.value.next_step


@pytest.fixture
def unaligned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """`builtin_model` without the aligned weights, in a cache of its own."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("striate.demo.build.load_aligned", lambda model: None)
    return lambda llm, vision: builtin_model(llm, vision, Silent())


def test_built_once_and_loads_like_any_lvlm(
    parts: tuple[Path, Path], unaligned: Callable[..., Path], tmp_path: Path
) -> None:
    from striate.models.io.load import load_model

    place = unaligned(*parts)
    assert place.parent == tmp_path / "cache" / "models"
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    assert unaligned(*parts) == place
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before
    loaded = load_model(place, device="cpu")
    assert asked(loaded.processor)["pixel_values"].shape == (1, 3, 224, 224)
    other = Path(shutil.copytree(parts[0], tmp_path / "other"))
    assert unaligned(other, parts[1]) == place
    save_llm(other)
    (other / "tokenizer_config.json").write_text((other / "tokenizer_config.json").read_text() + "\n")
    assert unaligned(other, parts[1]) != place
    assert [path.name for path in place.parent.iterdir() if path.name.startswith(".")] == []


def test_wrong_local_copy_leaves_nothing(
    parts: tuple[Path, Path], unaligned: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="/none"):
        unaligned(tmp_path / "none", parts[1])
    assert not (tmp_path / "cache").exists() or list((tmp_path / "cache").rglob("*.safetensors")) == []


@pytest.mark.parametrize("local", [False, True])
def test_what_is_built_of_public_parts_names_their_licence(
    local: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = SimpleNamespace(save_pretrained=lambda folder: None)
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("striate.demo.places.fetch", lambda package, progress: tmp_path / package.name)
    monkeypatch.setattr("striate.demo.build.build", lambda llm, vision: (part, part))
    folder = builtin_model(tmp_path / "own.gguf" if local else None, None, Silent())
    # The card of whatever is made from it looks there.
    assert license_of(str(folder)) == (None if local else "apache-2.0")
    assert {LLM.licence, VISION.licence} == {"Apache-2.0"}
