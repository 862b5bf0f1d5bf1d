from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from altered_kit import ALTERED, BLIND, batches_of, expected, last_tokens
from planted_kit import Still, plant

from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.errors import ModelError
from striate.models.interventions.layer_replay import LayerReplay
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.scorers.knock_out import KNOCK_OUT
from striate.scorers.layer_contribution import LAYER_CONTRIBUTION_IMAGE, LAYER_CONTRIBUTION_TEXT
from striate.scorers.runners.altered import run_altered
from striate.scorers.streaming.batches import Batches

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

Built = tuple[Any, dict[str, Any]]


def ignore(count: int) -> None:
    """Take no notice of samples that are done."""


def counted(modules: list[torch.nn.Module]) -> list[int]:
    """Return a list that holds the number of calls of all of `modules` so far."""
    calls = [0]

    def count(*_: object) -> None:
        calls[0] += 1

    for module in modules:
        module.register_forward_hook(count)
    return calls


def scores(loaded: Loaded, samples: Any, size: int) -> dict[str, np.ndarray]:
    """Return each scorer's score (L,) on `samples`."""
    batches = Batches(samples, Collator(loaded.processor, 512, train=True), size)
    found = run_altered(loaded.model, find_anatomy(loaded.model), batches, ALTERED, ignore)
    return {name: parts.sums.sum(0) / parts.counts.sum() for name, part in found.items() for parts in part.values()}


def test_equals_whole_passes_with_hooks_and_numpy_in_every_family(family: Built) -> None:
    model, inputs = family
    anatomy = find_anatomy(model)
    labels = last_tokens(inputs)
    labels[1, -2] = -100
    scorers = BLIND if anatomy.cross_attends else ALTERED
    found = run_altered(model, anatomy, batches_of(inputs, labels), scorers, ignore)
    wanted = expected(model, inputs, labels)
    for scorer in scorers:
        part = found[scorer.name][scorer.skips]
        np.testing.assert_allclose(part.sums, wanted[scorer.name], atol=1e-4)
        assert part.counts.tolist() == [2, 1]
    assert np.abs(found["knock-out"]["answer"].sums).min() > 1e-3


def test_prefix_reuse_costs_half_a_pass_for_each_layer(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    layers = decoder_layers(model)
    depth = len(layers)
    per_layer = counted([layer.mlp for layer in layers])
    vision = counted([next(part for name, part in model.model.vision_tower.named_modules() if name.endswith("mlp"))])
    one = batches_of(inputs, last_tokens(inputs))
    three = Batches(one.samples * 3, one.collate, 2)
    run_altered(model, find_anatomy(model), three, [KNOCK_OUT, LAYER_CONTRIBUTION_TEXT], ignore)
    suffixes = depth * (depth - 1) // 2
    proof = depth + suffixes
    assert per_layer[0] == proof + 3 * (depth + 2 * suffixes)
    assert vision[0] == 3


def test_scorers_that_skip_the_same_tokens_share_their_passes(family_builder: Callable[[str], Built]) -> None:
    calls = []
    for scorers in (BLIND[:1], BLIND[:2]):
        model, inputs = family_builder("llava")
        calls.append(counted([layer.mlp for layer in decoder_layers(model)]))
        run_altered(model, find_anatomy(model), batches_of(inputs, last_tokens(inputs)), scorers, ignore)
    assert calls[0] == calls[1]


def test_layers_that_share_keys_and_values_take_whole_passes(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    layers = decoder_layers(model)
    shared: dict[str, torch.Tensor] = {}
    first, last = layers[0].forward, layers[5].forward

    def give(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        shared["bias"] = hidden_states.mean(1, keepdim=True)
        return first(hidden_states, *args, **kwargs)

    def take(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return last(hidden_states, *args, **kwargs) + shared["bias"]

    layers[0].forward, layers[5].forward = give, take
    model.register_forward_pre_hook(lambda *_: shared.clear())
    labels = last_tokens(inputs)
    calls = counted([layer.mlp for layer in layers])
    found = run_altered(model, find_anatomy(model), batches_of(inputs, labels), BLIND, ignore)
    assert calls[0] > 2 * 6 * 6
    wanted = expected(model, inputs, labels)
    for scorer in BLIND:
        np.testing.assert_allclose(found[scorer.name][scorer.skips].sums, wanted[scorer.name], atol=1e-4)
    assert layers[0].forward is give


def test_identity_layers_score_zero(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    for index in (0, 3):
        layer = decoder_layers(model)[index]
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    found = run_altered(model, find_anatomy(model), batches_of(inputs, last_tokens(inputs)), ALTERED, ignore)
    for scorer in ALTERED:
        sums = found[scorer.name][scorer.skips].sums
        assert np.abs(sums[:, [0, 3]]).max() == 0
    assert np.abs(found["knock-out"]["answer"].sums[:, [1, 2, 4, 5]]).min() > 1e-3


def test_the_last_layer_cannot_move_image_tokens_to_any_use(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    batches = batches_of(inputs, last_tokens(inputs))
    found = run_altered(model, find_anatomy(model), batches, [LAYER_CONTRIBUTION_IMAGE], ignore)
    sums = found["layer-contribution-image"]["image"].sums
    assert np.abs(sums[:, -1]).max() == 0
    assert sums[:, :-1].min() > 0


def test_planted_layers_that_move_image_tokens_come_first(llava_builder: Callable[..., Loaded], pack_dir: Path) -> None:
    loaded = llava_builder(num_layers=8)
    plant(loaded.model, Still, spared=(1, 4, 6))
    samples = [sample for sample in read_samples(pack_dir / "train.json") if sample.images]
    found = scores(loaded, samples, 4)
    image = found["layer-contribution-image"]
    assert set(np.argsort(-image)[:3]) == {1, 4, 6}
    assert np.abs(np.delete(image, [1, 4, 6])).max() == 0
    assert image[[1, 4, 6]].min() > 1e-4
    assert found["layer-contribution-text"].min() > 1e-4


def test_padding_batch_size_and_order_change_nothing(tiny_llava: Loaded, pack_dir: Path) -> None:
    samples = read_samples(pack_dir / "train.json")
    one, five, back = (
        scores(tiny_llava, some, size) for some, size in ((samples, 1), (samples, 5), (samples[::-1], 4))
    )
    for name in one:
        np.testing.assert_allclose(five[name], one[name], atol=1e-5)
        np.testing.assert_allclose(back[name], one[name], atol=1e-5)


def test_samples_without_pictures_have_no_image_part(tiny_llava: Loaded, pack_dir: Path) -> None:
    samples = read_samples(pack_dir / "train.json")
    batches = Batches(samples, Collator(tiny_llava.processor, 512, train=True), 5)
    found = run_altered(tiny_llava.model, find_anatomy(tiny_llava.model), batches, ALTERED, ignore)
    image = found["layer-contribution-image"]["image"]
    pictured = np.array([bool(sample.images) for sample in samples])
    assert not pictured.all()
    assert np.array_equal(image.counts > 0, pictured)
    assert np.abs(image.sums[~pictured]).max() == 0
    assert (found["knock-out"]["answer"].counts > 0).all()


def test_rows_without_answers_count_nothing(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    labels = torch.full_like(inputs["input_ids"], -100)
    found = run_altered(model, find_anatomy(model), batches_of(inputs, labels), ALTERED, ignore)
    for scorer in ALTERED:
        part = found[scorer.name][scorer.skips]
        assert part.sums.shape == (2, 6)
        assert np.abs(part.sums).max() == 0
        assert part.counts.tolist() == [0, 0]


def test_a_model_is_left_as_it_was_after_an_exception(tiny_llava: Loaded, pack_dir: Path) -> None:
    samples = read_samples(pack_dir / "train.json")
    collate = Collator(tiny_llava.processor, 512, train=True)
    model, done = tiny_llava.model, []

    def stop(count: int) -> None:
        done.append(count)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_altered(model, find_anatomy(model), Batches(samples, collate, 4), [KNOCK_OUT], stop)
    assert done == [4, 4]
    head = model.get_output_embeddings()
    assert not head._forward_pre_hooks
    assert all("forward" not in module.__dict__ for module in model.modules())


def test_states_of_another_shape_are_refused_in_words(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    anatomy = find_anatomy(model)
    layer = decoder_layers(model)[0]
    inner = layer.forward
    layer.forward = lambda hidden_states, **kwargs: inner(hidden_states, **kwargs).flatten(0, 1)[None]
    with pytest.raises(ModelError) as caught:
        run_altered(model, anatomy, batches_of(inputs, last_tokens(inputs)), [KNOCK_OUT], ignore)
    assert str(caught.value).startswith("single layers of this language model can't be altered: layer 0 has hidden")


def test_a_layer_that_runs_twice_is_refused(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    layer = decoder_layers(model)[2]
    layer.register_forward_hook(lambda module, args, kwargs, output: module.forward(output, **kwargs), with_kwargs=True)
    with pytest.raises(ModelError, match="layer 2 did not run exactly once, in order"):
        run_altered(model, find_anatomy(model), batches_of(inputs, last_tokens(inputs)), [KNOCK_OUT], ignore)


def test_a_model_that_changes_between_passes_is_refused(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    drift = torch.zeros(())

    def move(module: torch.nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        drift.add_(1)
        return output * drift

    model.model.language_model.norm.register_forward_hook(move)
    with pytest.raises(ModelError, match="running on behind a layer, with nothing altered, gives other logits"):
        run_altered(model, find_anatomy(model), batches_of(inputs, last_tokens(inputs)), [KNOCK_OUT], ignore)


def test_cross_attention_has_no_image_tokens(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("mllama")
    with pytest.raises(ModelError) as caught:
        run_altered(
            model, find_anatomy(model), batches_of(inputs, last_tokens(inputs)), [LAYER_CONTRIBUTION_IMAGE], ignore
        )
    assert str(caught.value) == (
        "mllama has no image tokens in its sequence: its decoder attends to the picture itself\n"
        "  allowed: an LVLM whose pictures become tokens between those of the text\n"
        "  next:    choose scorers that need no image tokens, such as knock-out"
    )


def test_memory_that_runs_out_halves_the_batch(family_builder: Callable[[str], Built]) -> None:
    sizes: list[int] = []

    def work(part: list[Any]) -> int:
        sizes.append(len(part))
        if len(part) > 2:
            raise torch.OutOfMemoryError("too much")
        return len(part)

    samples = batches_of({}, torch.zeros(2, 1)).samples * 4
    batches = Batches(samples, list, 7)
    done: list[int] = []
    assert batches.each(work, done.append) == [2, 2, 2, 2] == done
    assert sizes == [7, 4, 2, 2, 2, 2]
    assert batches.size == 2


def test_one_sample_that_does_not_fit_is_said(family_builder: Callable[[str], Built]) -> None:
    def work(part: list[Any]) -> int:
        raise torch.OutOfMemoryError("too much")

    with pytest.raises(ModelError) as caught:
        Batches(batches_of({}, torch.zeros(2, 1)).samples, list, 2).each(work, ignore)
    assert str(caught.value) == (
        "sample 'row 0' alone does not fit into the device's memory\n"
        "  allowed: a device with room for the model and one sample\n"
        "  next:    use a larger device, machine.dtype bfloat16, smaller pictures, or a smaller max_length"
    )


def test_half_precision_is_close(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    labels = last_tokens(inputs)
    exact = run_altered(model, find_anatomy(model), batches_of(inputs, labels), ALTERED, ignore)
    rough = run_altered(model.bfloat16(), find_anatomy(model), batches_of(inputs, labels), ALTERED, ignore)
    for scorer in (ALTERED[0], *ALTERED[2:]):
        one, other = (found[scorer.name][scorer.skips].sums for found in (rough, exact))
        np.testing.assert_allclose(one, other, atol=0.05 * np.abs(other).max())


def test_replay_is_replaceable_and_nests_nothing(family_builder: Callable[[str], Built]) -> None:
    model, _ = family_builder("llava")
    anatomy = find_anatomy(model)
    with pytest.raises(AttributeError), LayerReplay(model, replace(anatomy, vision_names=("model.no_such_part",))):
        pass
    assert all("forward" not in module.__dict__ for module in model.modules())
