"""Inputs for any LVLM by the names that its forward takes: two rows, one picture each."""

from __future__ import annotations

import inspect
import os
import traceback
from typing import Any

import torch
from family_rows import Row

Batch = dict[str, Any]


class NotBuiltError(Exception):
    """This model type does not build here; the text says why."""


def make_inputs(model: Any, row: Row) -> Batch:
    """Return inputs that `model` takes; pictures by trial, image tokens by counting its image features."""
    names = set(inspect.signature(type(model).forward).parameters)
    failures = []
    for pictures in _candidates(model, names, row):
        try:
            count = row.image_tokens or _image_tokens(model, pictures)
            inputs = {**_rows(model, count), **pictures}
            _add_kinds(inputs, names, row)
            with torch.no_grad():
                model(**inputs)
        except Exception as error:
            if os.environ.get("ZOO_TRACE"):
                traceback.print_exc()
            failures.append(f"{ {k: tuple(v.shape) for k, v in pictures.items()} }: {type(error).__name__}: {error}")
        else:
            return inputs
    raise RuntimeError("no inputs found: " + " | ".join(failures))


def _vision(config: Any) -> Any:
    for name in ("vision_config", "vq_config"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return config


def _side(value: Any, default: int) -> int:
    value = value if value is not None else default
    return int(value[0] if isinstance(value, list | tuple) else value)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _candidates(model: Any, names: set[str], row: Row) -> list[Batch]:
    vision = _vision(model.config)
    size = _side(getattr(vision, "image_size", None), 32)
    patch = _side(getattr(vision, "patch_size", None), 8)
    channels = getattr(vision, "in_channels", None) or getattr(vision, "num_channels", None) or 3
    flat = channels * patch * patch
    pictures = [(2, 3, size, size), (2, 1, 3, size, size), (2, 2, 3, size, size)]
    patches = [(32, 2 * flat), (32, flat), (32, channels, patch, patch), (2, 16, flat), (1, 3, patch, 32 * patch)]
    shapes = [row.pixels] if row.pixels else patches + pictures if names & _GRIDS else pictures + patches
    by_name = {name: value for name, value in _by_name(size).items() if name in names}
    by_name |= {name: torch.tensor(value) for name, value in row.extra.items()}
    if row.pixel_name == "flattened_patches":
        return [{"flattened_patches": _flattened(vision.patch_embed_hidden_size), **_flat_sides(names)}]
    found = []
    for shape in shapes:
        batch: Batch = {_pixel_name(names, row): _random(*shape), **by_name}
        found.append(batch)
        if "image_sizes" in names:
            found.append({**batch, "image_sizes": torch.tensor([[size, size]] * 2)})
    return found


def _pixel_name(names: set[str], row: Row) -> str:
    """Return the name of the input that takes the picture; it has another one in older transformers."""
    found = next((name for name in (row.pixel_name, "pixel_values_images") if name in names), None)
    if found is None:
        raise NotBuiltError(f"its forward takes no {row.pixel_name}")
    return found


def _flattened(width: int) -> torch.Tensor:
    """Return patches of two pictures of 4 x 4, each after its row and column, counted from 1."""
    places = torch.cartesian_prod(torch.arange(1.0, 5.0), torch.arange(1.0, 5.0))
    return torch.cat([places.expand(2, 16, 2), _random(2, 16, width)], dim=-1)


def _flat_sides(names: set[str]) -> Batch:
    return {name: torch.tensor([4, 4]) for name in ("width", "height") if name in names}


_GRIDS = {"image_grid_thw", "image_grid_hw", "spatial_shapes", "target_sizes", "image_position_ids"}


def _by_name(size: int) -> Batch:
    return {
        "image_grid_thw": torch.tensor([[1, 4, 4]] * 2),
        "image_grid_hw": torch.tensor([[4, 4]] * 2),
        "spatial_shapes": torch.tensor([[4, 4]] * 2),
        "target_sizes": torch.tensor([[4, 4]] * 2),
        "image_position_ids": torch.cartesian_prod(torch.arange(4), torch.arange(4)).expand(2, 16, 2),
        "image_merge_sizes": torch.tensor([2, 2]),
        "high_res_pixel_values": _random(2, 3, size, size),
        "qformer_input_ids": torch.tensor([[1, 3, 4, 5]] * 2),
    }


def _image_tokens(model: Any, pictures: Batch) -> int:
    find = getattr(model.base_model, "get_image_features", None) or getattr(model, "get_image_features", None)
    if find is None:
        return 1
    wanted = inspect.signature(find).parameters
    if "args" in wanted:
        wanted = inspect.signature(model.get_image_features).parameters
    if "vision_feature_select_strategy" in wanted and "vision_feature_layer" not in wanted:
        pictures = {**pictures, "vision_feature_select_strategy": "default"}
    with torch.no_grad():
        output = find(**{key: value for key, value in pictures.items() if key in wanted})
    features = getattr(output, "pooler_output", None) if not isinstance(output, torch.Tensor | list | tuple) else output
    if features is None:
        features = output.last_hidden_state
    return _count(features) // 2


def _count(features: Any) -> int:
    if isinstance(features, torch.Tensor):
        return features.numel() // features.shape[-1]
    return sum(_count(feature) for feature in features)


def _rows(model: Any, count: int) -> Batch:
    config = model.config
    token = next(
        (
            getattr(config, name)
            for name in ("image_token_id", "image_token_index")
            if isinstance(getattr(config, name, None), int)
        ),
        60,
    )
    image = [token] * count
    ids = torch.tensor([[1, 61, *image, 62, 7, 8, 9, 10], [1, 61, *image, 62, 11, 12, 13, 14]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _add_kinds(inputs: Batch, names: set[str], row: Row) -> None:
    ids = inputs["input_ids"]
    pictures = ids == ids[0, 2]
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in names:
            inputs[name] = pictures.long() if row.kinds else torch.zeros_like(ids)
    if "image_embeds_position_mask" in names:
        inputs["image_embeds_position_mask"] = pictures
    if "bbox" in names:
        inputs["bbox"] = torch.tensor([0.1, 0.2, 0.5, 0.6]).expand(*ids.shape, 4)
    if "encoder_outputs" in names:
        inputs["decoder_input_ids"] = torch.tensor([[1, 5, 6, 7, 8], [1, 9, 10, 11, 12]])
        if "input_ids" not in names:
            del inputs["input_ids"], inputs["attention_mask"]
