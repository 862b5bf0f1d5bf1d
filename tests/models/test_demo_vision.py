"""The built-in vision encoder against independent formulas: padding, norm, shapes, weight names, a round trip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from striate.demo.register import register_with_transformers
from striate.demo.vision import (
    EfficientNetLiteConfig,
    EfficientNetLiteModel,
    FixedNorm,
    InvertedResidual,
    SameConv2d,
    convert_imagenet_weights,
)

SMALL = [(3, 1, 1, 8, 1), (3, 2, 2, 8, 1), (3, 2, 2, 8, 1), (3, 2, 2, 8, 1), (5, 1, 2, 12, 2), (5, 2, 2, 16, 2)]
SMALL += [(3, 1, 2, 20, 1)]
# The published Lite0 has 4,652,008 parameters; its head (a convolution, a norm, 1000 classes) is not in the encoder.
STEM_AND_BLOCKS = 4_652_008 - 320 * 1280 - 2 * 1280 - (1280 + 1) * 1000


def original_names(model: EfficientNetLiteModel) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Yield (public package's name, ours, tensor): the package numbers a block's norms by their order."""
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        leaf = parts[-1]
        if parts[0] == "stem":
            yield "_conv_stem.weight", name, tensor
        elif parts[0] == "stem_norm":
            yield f"_bn0.{leaf}", name, tensor
        else:
            table = {"expand": "_expand_conv", "depthwise": "_depthwise_conv", "project": "_project_conv"}
            table |= {"expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}
            yield f"_blocks.{parts[1]}.{table[parts[2]]}.{leaf}", name, tensor


def same_convolution(image: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """Return TensorFlow's "SAME" convolution of one channel, tap by tap, in float64."""
    size, taps = image.shape[0], kernel.shape[0]
    out = math.ceil(size / stride)
    before = max((out - 1) * stride + taps - size, 0) // 2
    result = np.zeros((out, out))
    for row in range(out):
        for column in range(out):
            for i in range(taps):
                for j in range(taps):
                    y, x = row * stride + i - before, column * stride + j - before
                    if 0 <= y < size and 0 <= x < size:
                        result[row, column] += image[y, x] * kernel[i, j]
    return result


@pytest.mark.parametrize("size", [7, 8, 13])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("taps", [1, 3, 5])
def test_same_padding(size: int, stride: int, taps: int) -> None:
    torch.manual_seed(size * stride * taps)
    layer = SameConv2d(1, 1, taps, stride, bias=False).double()
    image = torch.randn(1, 1, size, size, dtype=torch.float64)
    found = layer(image)[0, 0].detach().numpy()
    expected = same_convolution(image[0, 0].numpy(), layer.weight[0, 0].detach().numpy(), stride)
    assert found.shape == (math.ceil(size / stride),) * 2
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_same_padding_of_unlike_sides() -> None:
    assert SameConv2d(1, 1, 5, 2, bias=False)(torch.zeros(1, 1, 9, 14)).shape == (1, 1, 5, 7)


def test_odd_padding_goes_to_the_end() -> None:
    layer = SameConv2d(1, 1, 3, 2, bias=False)
    nn.init.zeros_(layer.weight)
    layer.weight.data[0, 0, 0, 0] = 1.0
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Total padding is 1, all of it right and below: the first tap reads the pixels at even places.
    assert layer(image)[0, 0].tolist() == [[0.0, 2.0], [8.0, 10.0]]


@pytest.mark.parametrize("training", [False, True])
def test_fixed_norm_is_batch_norm_in_eval_mode(training: bool) -> None:
    torch.manual_seed(0)
    reference, ours = nn.BatchNorm2d(5, eps=1e-3).eval(), FixedNorm(5, 1e-3).train(training)
    for tensor in (reference.weight.data, reference.bias.data, reference.running_mean):
        nn.init.normal_(tensor)
    nn.init.uniform_(reference.running_var, 0.5, 2.0)
    stored = {name: tensor for name, tensor in reference.state_dict().items() if name != "num_batches_tracked"}
    ours.load_state_dict(stored)
    maps = torch.randn(3, 5, 4, 4)
    assert torch.equal(ours(maps), reference(maps))
    mean, variance = reference.running_mean[:, None, None], reference.running_var[:, None, None]
    formula = (maps - mean) / torch.sqrt(variance + 1e-3) * reference.weight[:, None, None]
    torch.testing.assert_close(ours(maps), formula + reference.bias[:, None, None])
    assert torch.equal(ours.running_mean, stored["running_mean"])


def test_block_adds_its_input_only_where_shapes_allow() -> None:
    same, wider, strided = (InvertedResidual(8, n, 3, s, 2, 1e-3) for n, s in ((8, 1), (12, 1), (8, 2)))
    assert (same.residual, wider.residual, strided.residual) == (True, False, False)
    nn.init.zeros_(same.project.weight)
    maps = torch.randn(1, 8, 6, 6)
    assert torch.equal(same(maps), maps)
    assert strided(maps).shape == (1, 8, 3, 3)


@pytest.mark.parametrize(("size", "tokens"), [(224, 49), (320, 100), (64, 4)])
def test_tokens_and_channels(size: int, tokens: int) -> None:
    config = EfficientNetLiteConfig(image_size=size)
    assert (config.num_image_tokens, config.hidden_size) == (tokens, 768)
    with torch.device("meta"):
        model = EfficientNetLiteModel(config)
        features = model(torch.zeros(2, 3, size, size)).last_hidden_state
    assert features.shape == (2, tokens, 768)


def test_size_of_lite0() -> None:
    with torch.device("meta"):
        model = EfficientNetLiteModel(EfficientNetLiteConfig())
    assert len(model.blocks) == 16
    assert sum(parameter.numel() for parameter in model.parameters()) == STEM_AND_BLOCKS


def test_token_order_and_fine_map() -> None:
    """Token 3 r + c is cell (r, c) of the coarse map, followed by the 2 x 2 fine cells that it covers."""
    torch.manual_seed(0)
    model = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=96, stages=SMALL)).eval()
    maps: dict[int, torch.Tensor] = {}
    for index in (model.fine_block, len(model.blocks) - 1):
        model.blocks[index].register_forward_hook(lambda *call, index=index: maps.update({index: call[2]}))
    tokens = model(torch.randn(1, 3, 96, 96)).last_hidden_state
    fine, coarse = maps[model.fine_block], maps[len(model.blocks) - 1]
    assert (fine.shape, coarse.shape, tokens.shape) == ((1, 12, 6, 6), (1, 20, 3, 3), (1, 9, 20 + 4 * 12))
    for row in range(3):
        for column in range(3):
            token = tokens[0, 3 * row + column]
            cells = fine[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(token[:20], coarse[0, :, row, column])
            assert torch.equal(token[20:], cells.reshape(-1))


def test_training_mode_changes_nothing() -> None:
    torch.manual_seed(0)
    model = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=64, stages=SMALL))
    picture = torch.randn(2, 3, 64, 64)
    assert torch.equal(model.eval()(picture).last_hidden_state, model.train()(picture).last_hidden_state)


def test_imagenet_weights_fill_every_tensor() -> None:
    model = EfficientNetLiteModel(EfficientNetLiteConfig())
    rows = list(original_names(model))
    public = {old: tensor for old, _, tensor in rows}
    assert len(public) == len(rows)
    extras = {"_conv_head.weight": torch.zeros(1), "_bn1.weight": torch.zeros(1), "_fc.weight": torch.zeros(1)}
    extras |= {"_fc.bias": torch.zeros(1), "_bn0.num_batches_tracked": torch.zeros(1)}
    extras |= {"_blocks.0._bn1.num_batches_tracked": torch.zeros(1)}
    converted = convert_imagenet_weights(public | extras)
    assert converted.keys() == model.state_dict().keys()
    assert all(converted[ours] is public[old] for old, ours, _ in rows)


@pytest.fixture
def small_llava() -> Any:
    """A LLaVA whose vision encoder is a small EfficientNet-Lite."""
    from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    register_with_transformers()
    text = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    vision = EfficientNetLiteConfig(image_size=64, stages=SMALL)
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=39,
        image_seq_length=4,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    torch.manual_seed(0)
    return LlavaForConditionalGeneration(config).eval()


def test_round_trip_inside_a_llava(small_llava: Any, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    from striate.models.structure.anatomy import find_anatomy

    for name, buffer in small_llava.named_buffers():
        if "running_mean" in name:
            nn.init.normal_(buffer, std=0.1)
    small_llava.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert isinstance(again.config.vision_config, EfficientNetLiteConfig)
    before, after = small_llava.config.vision_config.to_dict(), again.config.vision_config.to_dict()
    assert {**after, "dtype": None} == {**before, "dtype": None}
    stored = small_llava.state_dict()
    assert stored.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in again.state_dict().items())
    inputs = {"input_ids": torch.tensor([[1, 39, 39, 39, 39, 5]]), "pixel_values": torch.randn(1, 3, 64, 64)}
    with torch.inference_mode():
        assert torch.equal(again(**inputs).logits, small_llava(**inputs).logits)
        other = again(**{**inputs, "pixel_values": -inputs["pixel_values"]}).logits
    assert not torch.equal(other, small_llava(**inputs).logits)
    assert find_anatomy(again).num_layers == 2


def test_no_weight_is_forgotten_by_initialisation(small_llava: Any) -> None:
    for name, tensor in small_llava.model.vision_tower.state_dict().items():
        assert torch.isfinite(tensor).all(), name
        if name.endswith(("_norm.weight", "running_var")):
            assert torch.equal(tensor, torch.ones_like(tensor)), name
        elif name.endswith(("_norm.bias", "running_mean")):
            assert not tensor.any(), name
        else:
            assert 0 < float(tensor.std()) < 2, name
