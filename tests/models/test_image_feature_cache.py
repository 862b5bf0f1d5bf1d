"""Features of a picture that is shown again come from memory, and are the ones that the model would compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from striate.models.interventions.image_feature_cache import METHOD, cached_image_features
from striate.models.interventions.prefix_cache import why_not_continued

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

Built = tuple[Any, dict[str, Any]]


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def pictures(inputs: dict[str, Any]) -> int:
    grid = inputs.get("image_grid_thw")
    return len(inputs["pixel_values"]) if grid is None else len(grid)


def test_logits_are_the_same_with_and_without_memory(family: Built) -> None:
    model, inputs = family
    plain = logits(model, inputs)
    with cached_image_features(model) as cache:
        if cache is None:
            pytest.skip("this family has no get_image_features")
        for _ in range(3):
            cache.expect([f"picture {index}" for index in range(pictures(inputs))])
            torch.testing.assert_close(logits(model, inputs), plain, atol=1e-4, rtol=1e-4)
            cache.settle()
        # Qwen3-VL hands features of several depths to its decoder.
        if model.config.model_type == "qwen3_vl":
            assert cache.why_not == "the features of a batch can't be told apart"
            return
        assert cache.why_not == ""
        assert (cache.encoded, cache.reused) == (pictures(inputs), 2 * pictures(inputs))
    assert all(METHOD not in module.__dict__ for module in model.modules())


def test_only_new_pictures_go_into_the_encoder(tiny_llava: Loaded) -> None:
    from striate.models.structure.anatomy import find_anatomy

    model = tiny_llava.model
    rows: list[int] = []
    encoder = model.get_submodule(find_anatomy(model).vision_names[0])
    encoder.register_forward_hook(
        lambda module, args, kwargs, output: rows.append(_rows(args, kwargs)), with_kwargs=True
    )
    shown = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    owner = model.model
    with cached_image_features(model) as cache:
        assert cache is not None
        cache.expect(["a", "b"])
        owner.get_image_features(pixel_values=shown[:2])
        rows.clear()
        cache.expect(["b", "c", "b", "a"])
        found = owner.get_image_features(pixel_values=shown[[1, 2, 1, 0]])
        assert rows == [1]
        assert (cache.encoded, cache.reused) == (3, 3)
    plain = owner.get_image_features(pixel_values=shown)
    for index, part in zip([1, 2, 1, 0], getattr(found, "pooler_output", found), strict=True):
        torch.testing.assert_close(part, getattr(plain, "pooler_output", plain)[index])


def _rows(args: Any, kwargs: Any) -> int:
    return len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0])


def test_memory_is_bounded_and_forgets_the_picture_unused_for_longest(
    tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    from striate.models.interventions import image_feature_cache as image_feature_cache

    shown = torch.randn(3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    # Room for the 4 image tokens of width 32 of two pictures.
    monkeypatch.setattr(image_feature_cache, "CPU_BYTES", 2 * 4 * 32 * 4)
    with cached_image_features(tiny_llava.model) as cache:
        assert cache is not None
        for name, index in (("a", 0), ("b", 1), ("a", 0), ("c", 2), ("a", 0)):
            cache.expect([name])
            tiny_llava.model.model.get_image_features(pixel_values=shown[index : index + 1])
        assert (cache.encoded, cache.reused) == (3, 2)
        cache.expect(["b"])
        tiny_llava.model.model.get_image_features(pixel_values=shown[1:2])
        assert cache.encoded == 4


def test_features_that_depend_on_the_batch_are_left_to_the_model(tiny_llava: Loaded) -> None:
    model = tiny_llava.model
    model.model.multi_modal_projector.register_forward_hook(lambda module, args, output: output - output.mean(0))
    shown = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    plain = model.model.get_image_features(pixel_values=shown)
    with cached_image_features(model) as cache:
        assert cache is not None
        cache.expect(["a"])
        model.model.get_image_features(pixel_values=shown[:1])
        cache.expect(["a", "b"])
        found = model.model.get_image_features(pixel_values=shown)
        assert cache.why_not == "its features depend on more than the picture"
    for one, other in zip(found.pooler_output, plain.pooler_output, strict=True):
        torch.testing.assert_close(one, other)


def test_a_model_that_does_not_ask_for_features_is_noticed(tiny_llava: Loaded) -> None:
    with cached_image_features(tiny_llava.model) as cache:
        assert cache is not None
        cache.expect(["a"])
        cache.settle()
        assert cache.why_not == "its forward pass does not call get_image_features"


def test_prompts_are_continued_only_where_positions_are_plain(family_builder: Callable[[str], Built]) -> None:
    reasons = {
        name: why_not_continued(family_builder(name)[0], ["input_ids", "attention_mask"])
        for name in ("llava", "qwen2_vl")
    }
    assert reasons == {"llava": "", "qwen2_vl": "it counts positions along several axes"}
    assert why_not_continued(family_builder("llava")[0], ["input_ids", "token_type_ids"]) == (
        "its prompts carry token_type_ids"
    )
