"""Models of any nonsense: configs, weights, processors and templates that can't be used are one error each, by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.errors import DataError, ModelError
from striate.models.io.load import load_model, load_processor
from striate.models.io.sane_model import check_image_token, check_special_tokens
from striate.models.structure.image_tokens import image_tokens
from striate.models.structure.meta_model import blueprint

if TYPE_CHECKING:
    from striate.data.samples import Sample
    from striate.models.io.load import Loaded

NUMBERS = ("abc", "0x10", 0, -1, 3.5, None, [], {}, True, 10**6)
FIELDS = (
    ("text_config", "num_attention_heads"),
    ("text_config", "num_hidden_layers"),
    ("text_config", "hidden_size"),
    ("text_config", "head_dim"),
    ("text_config", "vocab_size"),
    ("text_config", "pad_token_id"),
    ("text_config", "rms_norm_eps"),
    ("text_config", "rope_parameters"),
    ("text_config", "rope_parameters", "rope_type"),
    ("text_config", "rope_parameters", "rope_theta"),
    ("text_config", "hidden_act"),
    ("vision_config", "patch_size"),
    ("vision_config", "image_size"),
    ("vision_config", "num_hidden_layers"),
    ("vision_config",),
    ("text_config",),
    ("image_token_index",),
    ("vision_feature_layer",),
    ("vision_feature_select_strategy",),
    ("projector_hidden_act",),
    ("dtype",),
    ("tie_word_embeddings",),
    ("model_type",),
    ("architectures",),
)


def edited(folder: Path, *keys: str, value: Any) -> None:
    """Set one value of the folder's config; the key is taken out where `value` is `...`."""
    file = folder / "config.json"
    config = part = json.loads(file.read_text())
    for key in keys[:-1]:
        part = part.setdefault(key, {})
    part[keys[-1]] = value
    if value is ...:
        del part[keys[-1]]
    file.write_text(json.dumps(config))


def refused(read: Callable[[], Any]) -> str:
    """Return the error of `read`, or nothing where it does not mind."""
    try:
        read()
    except ModelError as error:
        lines = str(error).split("\n")
        assert max(map(len, lines[:1])) <= 300
        assert [line[:11] for line in lines[1:]] == ["  allowed: ", "  next:    "]
        return lines[0]
    return ""


@pytest.mark.attack
@pytest.mark.parametrize("keys", FIELDS, ids=".".join)
def test_no_value_of_a_config_escapes(tiny_llava_dir: Path, keys: tuple[str, ...]) -> None:
    before = (tiny_llava_dir / "config.json").read_text()
    for value in (*NUMBERS, ...):
        (tiny_llava_dir / "config.json").write_text(before)
        edited(tiny_llava_dir, *keys, value=value)
        refused(lambda: blueprint(str(tiny_llava_dir)))
        refused(lambda: load_model(tiny_llava_dir, device="cpu"))


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (("text_config", "num_attention_heads"), 0, "config.json can't be used: "),
        (("text_config", "hidden_size"), -32, "Trying to create tensor with negative dimension -32"),
        (
            ("text_config", "hidden_size"),
            "abc",
            "config.json can't be used: Validation error for field 'hidden_size': ",
        ),
        (("text_config", "head_dim"), 0, "no model can be built from the config of "),
        (("text_config", "rope_parameters"), {"rope_type": "nonsense"}, "no model can be built from the config of "),
        (("dtype",), "abc", "config.json can't be used: "),
        (("image_token_index",), -5, "config.json has image_token_index -5"),
        (("text_config", "rms_norm_eps"), float("nan"), "config.json has text_config.rms_norm_eps nan"),
        (("text_config", "rms_norm_eps"), -1e-5, "config.json has text_config.rms_norm_eps -1e-05"),
        (("vision_config", "layer_norm_eps"), float("inf"), "config.json has vision_config.layer_norm_eps inf"),
        (("text_config", "rope_parameters"), {"rope_type": "default", "rope_theta": float("nan")}, "rope_theta nan"),
    ],
)
def test_what_is_wrong_is_said(tiny_llava_dir: Path, keys: tuple[str, ...], value: Any, said: str) -> None:
    edited(tiny_llava_dir, *keys, value=value)
    assert said in refused(lambda: blueprint(str(tiny_llava_dir)))


def test_a_config_without_its_parts_is_not_filled_up(tiny_llava_dir: Path) -> None:
    edited(tiny_llava_dir, "text_config", value=...)
    said = refused(lambda: load_model(tiny_llava_dir, device="cpu"))
    assert "config.json describes 7," in said or "config.json describes 6," in said
    assert "parameters, and its weights have " in said


def _pickle(folder: Path) -> None:
    """Leave a pickle that would run a program alone as weights."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "can't be loaded"),
    "cut": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000]),
        "can't be loaded",
    ),
    "a header of nonsense": (
        lambda folder: (folder / "model.safetensors").write_bytes(b"\x05" + b"\0" * 7 + b"{{{{{"),
        "can't be loaded",
    ),
    "none": (lambda folder: (folder / "model.safetensors").unlink(), "has a config.json, but no weights"),
    "a pickle that is a program": (_pickle, "can't be loaded"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_are_none(tiny_llava_dir: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    damage, said = WEIGHTS[case]
    monkeypatch.chdir(tiny_llava_dir)
    damage(tiny_llava_dir)
    assert said in refused(lambda: load_model(tiny_llava_dir, device="cpu"))
    assert not Path("owned").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_that_are_no_numbers(tiny_llava_dir: Path, value: float, dtype: str) -> None:
    weights = load_file(tiny_llava_dir / "model.safetensors")
    name = next(name for name in weights if "layers.1.mlp.up_proj" in name)
    weights[name][3, 5] = value
    save_file(weights, tiny_llava_dir / "model.safetensors", {"format": "pt"})
    said = refused(lambda: load_model(tiny_llava_dir, device="cpu", dtype=dtype))
    assert "hold values that are infinite or no numbers, for example in " in said
    assert "layers.1.mlp.up_proj" in said


def test_a_processor_of_another_model(tiny_llava_dir: Path) -> None:
    edited(tiny_llava_dir, "image_token_index", value=7)
    assert "the model reads pictures at token 7, and its processor writes 4" in refused(
        lambda: load_model(tiny_llava_dir, device="cpu")
    )


FILES = ("processor_config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json")
CONTENTS = (
    b"",
    b"{",
    b"[]",
    b"{}",
    b"null",
    b"\xff\xfe{",
    b'{"a": ' + b"[" * 5000,
    b'{"patch_size": "abc"}',
    b"9" * 5000,
)


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_a_processor_escapes(tiny_llava: Loaded, tiny_llava_dir: Path, name: str) -> None:
    def read() -> None:
        if name == "generation_config.json":
            load_model(tiny_llava_dir, device="cpu")
            return
        processor = load_processor(tiny_llava_dir)
        check_image_token(tiny_llava.model, processor, name)
        check_special_tokens(tiny_llava.model, processor, name)

    for content in CONTENTS:  # Those that transformers can read are no error.
        (tiny_llava_dir / name).write_bytes(content)
        refused(read)


TEMPLATES = {
    "raises": ("{{ raise_exception('no system turns') }}", "the model's chat template refuses it: no system turns"),
    "takes another form": ("{{ messages[0]['content'].strip() }}", "the model's chat template refuses it: "),
    "divides by nothing": ("{{ 1 // 0 }}", "the model's chat template refuses it: integer division or modulo by zero"),
    "is no template": ("{% for %}", "the model's chat template refuses it: "),
    "knows no pictures": (
        "{% for m in messages %}{{ m.role }}: {% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
        "{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        "LlavaProcessor refuses it: The total number of <image> tokens in the prompts",
    ),
    "drops answers": ("{{ messages[0].role }}", "the model's chat template changes or drops the answer"),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_templates_that_can_not_be_used_name_the_sample(
    tiny_llava: Loaded, saved_pack: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template, said = TEMPLATES[case]
    sample: Sample = replace(read_samples(saved_pack)[0], id="s7")
    monkeypatch.setattr(tiny_llava.processor, "chat_template", template)
    with pytest.raises(DataError) as caught:
        Collator(tiny_llava.processor, 512, train=True)([sample])
    assert str(caught.value).startswith(f"sample 's7': {said}")


def test_a_processor_that_does_not_mind_pictures_without_a_token(
    tiny_llava: Loaded, saved_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = type(tiny_llava.processor).__call__

    def careless(self: Any, images: Any = None, **more: Any) -> Any:
        return real(self, **{**more, "text": [more["text"][0].replace("<image>", "")]})

    monkeypatch.setattr(type(tiny_llava.processor), "__call__", careless)
    with pytest.raises(DataError, match="sample 's7': the model's chat template leaves its pictures out"):
        Collator(tiny_llava.processor, 512, train=True)([replace(read_samples(saved_pack)[0], id="s7")])


def test_settings_of_a_processor_that_raise_name_the_sample(
    tiny_llava: Loaded, saved_pack: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_llava.processor, "patch_size", 0)
    with pytest.raises(DataError, match=r"sample 's7': LlavaProcessor refuses it: integer division or modulo by zero"):
        Collator(tiny_llava.processor, 512, train=True)([replace(read_samples(saved_pack)[0], id="s7")])
    assert torch.is_grad_enabled()


def test_image_tokens_that_can_not_be_counted(tiny_llava_dir: Path) -> None:
    plan = blueprint(str(tiny_llava_dir))
    plan.model.config.vision_config.spatial_merge_size = 2
    plan.model.config.vision_config.patch_size = 0
    assert "the image tokens of a picture can't be counted from the config of this llava" in refused(
        lambda: image_tokens(plan.model)
    )


def test_a_padding_token_without_an_embedding_is_refused(tiny_llava_dir: Path) -> None:
    file = tiny_llava_dir / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "<nobody knows>"}))
    said = refused(lambda: load_model(str(tiny_llava_dir), device="cpu"))
    assert "the tokenizer's pad_token '<nobody knows>' is token 360, and the model has embeddings of 360 tokens" in said
