"""A packed row has the loss and the gradients of its samples alone, in the decoder families that packing knows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_inputs import make_inputs
from family_needs import needs
from family_rows import ROWS, Row
from family_zoo import build_model

from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.label_mask import IGNORED
from striate.data.packing import Batch
from striate.errors import TrainingError
from striate.models.visual_token_skipping import skipped_layer
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.training.loss import answer_loss
from striate.training.packing.packed_attention import packed_attention
from striate.training.packing.packing_check import Packing, check_packing

DECODERS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 5},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2},
    "qwen3": {},
    "gemma2": {"sliding_window": 5, "attn_logit_softcapping": 0.5, "head_dim": 8},
    "gemma3_text": {"sliding_window": 5, "head_dim": 8},
    "phi3": {"sliding_window": 5},
    "cohere2": {"sliding_window": 5},
    "olmo2": {},
    "mixtral": {"num_local_experts": 2},
}
LVLMS = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "gemma3", "paligemma", "idefics3", "llava_next", "internvl", "mistral3"]


class Joiner(Collator):
    """Joins items that are encoded already."""

    def __init__(self) -> None:
        self._fill = {"input_ids": 0, "labels": IGNORED}


def llava_of(kind: str, **more: Any) -> Any:
    """Return a tiny LLaVA with a language model of the kind."""
    from transformers import AutoConfig, CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    sizes: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0}
    text = AutoConfig.for_model(kind, **sizes, initializer_range=0.2, **(DECODERS[kind] | more))
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=60)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(config).eval()
    if kind == "gemma2":
        # The plain kernel leaves the cap out.
        model.set_attn_implementation("eager")
    return model


def llava_items(lengths: tuple[int, ...] = (14, 9, 17)) -> list[Encoded]:
    """Return samples of some text tokens; the second has no picture."""
    generator = torch.Generator().manual_seed(1)
    items = []
    for index, length in enumerate(lengths):
        ids = torch.randint(3, 50, (1, length), generator=generator)
        pixels = torch.randn(1, 3, 28, 28, generator=generator)
        pictures = {} if index == 1 else {"pixel_values": pixels}
        if pictures:
            ids[:, 2:6] = 60
        items.append(labelled({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, pictures))
    return items


def labelled(tokens: Batch, pictures: Batch) -> Encoded:
    """Return a sample whose last four tokens are its answer."""
    labels = tokens["input_ids"].clone()
    labels[:, :-4] = IGNORED
    return Encoded({**tokens, "labels": labels}, pictures)


def zoo_items(model: Any, kind: str) -> list[Encoded]:
    """Return three samples from the two rows of the zoo's inputs, of different lengths."""
    inputs = make_inputs(model, ROWS.get(kind, Row()))
    shape = inputs["input_ids"].shape
    aligned = {
        name for name, value in inputs.items() if value.shape[:2] == shape and not name.startswith(("pixel", "image"))
    }
    items = []
    for row in (0, 1, 0):
        tokens = {name: inputs[name][row : row + 1, : shape[1] - row] for name in aligned}
        halves = {name: value.chunk(2)[row] for name, value in inputs.items() if name not in aligned}
        items.append(labelled(tokens, halves))
    return items


def gradients(model: Any) -> dict[str, torch.Tensor | None]:
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return found


def assert_equal_alone_and_packed(model: Any, items: list[Encoded]) -> None:
    joiner, packing = Joiner(), Packing(model)
    answers = sum(int((item.tokens["labels"][:, 1:] != IGNORED).sum()) for item in items)
    alone = []
    for item in items:
        loss = answer_loss(model, joiner.join([item]), answers)
        loss.backward()
        alone.append(loss.detach())
    wanted = gradients(model)
    row = packing.prepared(joiner.pack(items))
    with packing.serving(row, row) as inputs:
        loss = answer_loss(model, inputs)
        loss.backward()
    torch.testing.assert_close(loss.detach(), sum(alone), rtol=1e-5, atol=1e-6)
    off = whole = 0.0
    for name, gradient in gradients(model).items():
        expected = wanted[name]
        if gradient is None or expected is None:
            assert gradient is expected, name
            continue
        difference = float((gradient - expected).norm())
        assert difference <= 5e-5 * float(expected.norm()) + 1e-6, name
        off, whole = off + difference**2, whole + float(expected.norm()) ** 2
    # Rounding of float32 in random layers with wide weights.
    assert off**0.5 <= 2e-5 * whole**0.5
    assert check_packing(model, packing, joiner, items, 64).startswith("packing: 3 samples in one row")


@pytest.mark.parametrize("kind", DECODERS)
def test_decoders(kind: str) -> None:
    assert_equal_alone_and_packed(llava_of(kind), llava_items())


@pytest.mark.parametrize("runs", [False, True])
def test_image_tokens_that_skip_layers(monkeypatch: pytest.MonkeyPatch, runs: bool) -> None:
    """Batches beside packed rows attend by runs of text too, where there is a kernel for them."""
    monkeypatch.setattr(skipped_layer, "kernel_runs", lambda *_: runs)
    model = llava_of("llama")
    items, packing = llava_items(), Packing(model)
    with VisualTokenSkipping(model, VisualCompute(layers=(1,), num_layers=4)), packing.installed():
        assert "packing: 3" in check_packing(model, packing, Joiner(), items, 64)


def test_attention_of_no_decoder_layer_stays_as_it_is() -> None:
    """A vision encoder's own ends of samples are not those of a row."""
    states = torch.randn(3, 1, 2, 6, 4)
    ends = torch.tensor([0, 2, 6], dtype=torch.int32)
    given = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 4, "max_length_k": 4, "is_causal": False}
    found, _ = packed_attention(torch.nn.Identity(), *states, None, **given)
    plain = torch.nn.functional.scaled_dot_product_attention(*states).transpose(1, 2)
    torch.testing.assert_close(found, plain)


@pytest.mark.parametrize("kind", LVLMS)
def test_lvlms(kind: str) -> None:
    model = build_model(kind)
    assert_equal_alone_and_packed(model, zoo_items(model, kind))


def test_pictures_of_gemma_see_themselves_whole() -> None:
    """The family's own mask lets image tokens see later ones of their picture: it must reach the packed row."""
    model = build_model("gemma3")
    items = zoo_items(model, "gemma3")
    kinds = torch.cat([item.tokens["token_type_ids"] for item in items], dim=1)
    assert bool(kinds.any())
    packing, joiner = Packing(model), Joiner()
    row = packing.prepared(joiner.pack(items))
    seen = []
    with torch.no_grad():
        for types in (row["token_type_ids"], torch.zeros_like(row["token_type_ids"])):
            with packing.serving({**row, "token_type_ids": types}, row) as inputs:
                seen.append(model(**{name: value for name, value in inputs.items() if name != "labels"}).logits)
    assert not torch.allclose(seen[0], seen[1], atol=1e-3)


def test_positions_of_three_axes_start_again_with_each_sample() -> None:
    model = build_model("qwen2_5_vl")
    items = zoo_items(model, "qwen2_5_vl")
    positions = Packing(model).prepared(Joiner().pack(items))["position_ids"]
    assert positions.shape[0] == 3
    starts = torch.tensor([0, *(item.length for item in items)]).cumsum(0)[:-1]
    assert not positions[..., starts].any()
    assert not torch.equal(positions[0], positions[1])


REFUSED = {
    "mllama": "its decoder layers attend to something else than the tokens of the row",
    "qwen3_5": "it has layers of linear attention",
    "llama4": "it has layers of chunked attention",
    "instructblip": "its forward pass takes no position_ids",
    "idefics": "its forward pass fails on a packed row",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals(kind: str) -> None:
    needs(kind)
    model = build_model(kind)
    with pytest.raises(TrainingError, match=f"train.packing does not work with this model: {REFUSED[kind]}") as caught:
        check_packing(model, Packing(model), Joiner(), zoo_items(model, kind), 64)
    assert "use train.packing=false" in str(caught.value)


def test_a_window_that_is_not_told_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.training.packing import packed_attention

    model = llava_of("gemma3_text")
    original = packed_attention.packed_attention
    monkeypatch.setitem(
        packed_attention.AttentionInterface._global_mapping,
        packed_attention.NAME,
        lambda *args, sliding_window=None, **kwargs: original(*args, **kwargs),
    )
    with pytest.raises(TrainingError, match="does not hand its sliding window of 5 tokens"):
        check_packing(model, Packing(model), Joiner(), llava_items(), 64)
    wide = llava_of("gemma3_text", sliding_window=64)
    assert "packing: 3" in check_packing(wide, Packing(wide), Joiner(), llava_items(), 64)
