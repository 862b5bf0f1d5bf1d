from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from altered_kit import batches_of, last_tokens
from peft import LoraConfig, get_peft_model

from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.errors import ModelError
from striate.models.structure.anatomy import decoder_layers, find_anatomy, layer_of, unwrap
from striate.scorers.runners.gradients import FISHER, GRADIENT_NORM, run_gradients
from striate.scorers.streaming.batches import Batches

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

Built = tuple[Any, dict[str, Any]]
BOTH = (GRADIENT_NORM, FISHER)


def ignore(count: int) -> None:
    """Take no notice of samples that are done."""


def expected(model: Any, inputs: dict[str, Any], labels: torch.Tensor) -> np.ndarray:
    """Return the norm of the answer loss's gradient in each layer (L,), by autograd over the whole model at once."""
    logits = model(**inputs, use_cache=False).logits[:, :-1]
    log_p = logits.log_softmax(-1)
    answered = labels[:, 1:] != -100
    picked = log_p.gather(-1, labels[:, 1:].clamp_min(0)[..., None])[..., 0][answered]
    anatomy = find_anatomy(model)
    chosen = [(name, one) for name, one in model.named_parameters() if layer_of(anatomy, name) is not None]
    gradients = torch.autograd.grad(-picked.mean(), [one for _, one in chosen], allow_unused=True)
    squares = np.zeros(anatomy.num_layers)
    for (name, _), gradient in zip(chosen, gradients, strict=True):
        if gradient is not None:
            squares[layer_of(anatomy, name)] += (gradient.numpy().astype(np.float64) ** 2).sum()
    return np.sqrt(squares)


def test_equals_autograd_in_every_family(family: Built) -> None:
    model, inputs = family
    labels = last_tokens(inputs)
    found = run_gradients(model, find_anatomy(model), batches_of(inputs, labels), BOTH, ignore)
    # The batch is made by hand: whatever sample is asked for, it holds both rows.
    wanted = expected(model, inputs, labels)
    for row in range(2):
        np.testing.assert_allclose(found["gradient-norm"]["answer"].sums[row], wanted, rtol=1e-4)
        np.testing.assert_allclose(found["fisher"]["answer"].sums[row], wanted**2, rtol=1e-4)
    assert found["fisher"]["answer"].counts.tolist() == [1, 1]


def test_rows_are_samples_whatever_the_batch_size(tiny_llava: Loaded, pack_dir: Path) -> None:
    model, anatomy = tiny_llava.model, find_anatomy(tiny_llava.model)
    samples = read_samples(pack_dir / "train.json")[:4]
    collate = Collator(tiny_llava.processor, 512, train=True)
    found = run_gradients(model, anatomy, Batches(samples, collate, 4), BOTH, ignore)
    for row, sample in enumerate(samples):
        batch = collate([sample])
        labels = batch.pop("labels")
        np.testing.assert_allclose(
            found["gradient-norm"]["answer"].sums[row], expected(model, batch, labels), rtol=1e-4
        )


def test_an_answer_of_no_tokens_counts_nothing(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    labels = torch.full_like(inputs["input_ids"], -100)
    found = run_gradients(model, find_anatomy(model), batches_of(inputs, labels), BOTH, ignore)
    assert found["fisher"]["answer"].counts.tolist() == [0, 0]
    assert np.abs(found["fisher"]["answer"].sums).max() == 0


def test_never_more_than_one_gradient_is_held(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    held: list[int] = []
    for parameter in decoder_layers(model).parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda _: held.append(sum(one.grad is not None for one in model.parameters()))
        )
    run_gradients(model, find_anatomy(model), batches_of(inputs, last_tokens(inputs)), BOTH, ignore)
    assert held
    assert max(held) == 1


@pytest.mark.parametrize("broken", [False, True])
def test_flags_gradients_and_hooks_are_put_back(family_builder: Callable[[str], Built], broken: bool) -> None:
    model, inputs = family_builder("llava")
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 > 0)
        parameter.grad = torch.full_like(parameter, index) if index % 3 == 1 else None
    before = [(one.requires_grad, one.grad) for one in model.parameters()]
    batches = batches_of(inputs, last_tokens(inputs))

    def stop(count: int) -> None:
        if broken:
            raise KeyboardInterrupt

    if broken:
        with pytest.raises(KeyboardInterrupt):
            run_gradients(model, find_anatomy(model), batches, BOTH, stop)
    else:
        with torch.no_grad():
            run_gradients(model, find_anatomy(model), batches, BOTH, stop)
    for (required, gradient), parameter in zip(before, model.parameters(), strict=True):
        assert parameter.requires_grad == required
        assert parameter.grad is gradient
        assert not parameter._post_accumulate_grad_hooks
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_adapters_count_as_part_of_the_weights(tiny_llava: Loaded, pack_dir: Path) -> None:
    samples = read_samples(pack_dir / "train.json")[:2]
    collate = Collator(tiny_llava.processor, 512, train=True)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = get_peft_model(tiny_llava.model, config).eval()
    core = unwrap(wrapped)
    adapted = run_gradients(core, find_anatomy(wrapped), Batches(samples, collate, 2), BOTH, ignore)
    trained = {name for name, one in wrapped.named_parameters() if one.requires_grad}
    assert trained == {name for name, _ in wrapped.named_parameters() if ".lora_" in name}
    merged = wrapped.merge_and_unload()
    plain = run_gradients(merged, find_anatomy(merged), Batches(samples, collate, 2), BOTH, ignore)
    for name in adapted:
        np.testing.assert_allclose(adapted[name]["answer"].sums, plain[name]["answer"].sums, rtol=1e-4)


def test_quantised_weights_are_refused_in_words(family_builder: Callable[[str], Built]) -> None:
    model, inputs = family_builder("llava")
    module = decoder_layers(model)[1].mlp.up_proj
    module.weight = torch.nn.Parameter(torch.zeros(8, 1, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError) as caught:
        run_gradients(model, find_anatomy(model), batches_of(inputs, last_tokens(inputs)), BOTH, ignore)
    assert str(caught.value) == (
        "model.language_model.layers.1.mlp.up_proj.weight is quantised: its numbers are packed, and have neither "
        "gradients nor singular values\n"
        "  allowed: weights in bfloat16, float16 or float32\n"
        "  next:    analyse the model as it was before it was quantised"
    )
