"""What a rule for image tokens costs the start model: what that is, what it leaves alone, what is said of too much."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from striate.artifacts import Region
from striate.config import TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.errors import TrainingError
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.models.visual_token_skipping.rule import VisualTokenSkipping, skipping_of
from striate.models.visual_token_skipping.rule_check import put_back
from striate.models.visual_token_skipping.shift import Shift
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.training import image_check
from striate.training.approximations import begin_skipping
from striate.training.image_check import WIDER, Checked, check_cost
from striate.training.loss import answer_loss

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(1,), num_layers=4, spec="ids:1")
COMPUTE = VisualCompute(layers=(1,), num_layers=4)


@pytest.fixture
def strong(tiny_llava: Loaded) -> Loaded:
    """A model whose layers do something."""
    for layer in decoder_layers(tiny_llava.model):
        layer.mlp.down_proj.weight.data.mul_(20)
        layer.self_attn.o_proj.weight.data.mul_(20)
    return tiny_llava


@pytest.fixture
def checked(strong: Loaded, pack_dir: Path) -> Checked:
    pictured = [sample for sample in read_samples(pack_dir) if sample.images][:6]
    collator = Collator(strong.processor, 96, train=True)
    return Checked([collator(pictured[:4]), collator(pictured[4:])], len(pictured), held_out=False)


def settings(allowed: float | None) -> TrainSection:
    return TrainSection(image_tokens="region", image_check=allowed, max_length=96)


def test_it_is_the_answers_cross_entropy_with_image_tokens_put_back(strong: Loaded, checked: Checked) -> None:
    model, ids = strong.model, torch.tensor(find_anatomy(strong.model).image_token_ids)
    sums: dict[bool, float] = {}
    tokens = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in checked.batches)
    for ruled in (False, True):
        sums[ruled] = 0.0
        for batch in checked.batches:
            skipped = COMPUTE.skipped if ruled else ()
            with torch.no_grad(), put_back(decoder_layers(model), skipped, torch.isin(batch["input_ids"], ids)):
                sums[ruled] += float(answer_loss(model.eval(), batch, 1))
    found = check_cost(VisualTokenSkipping(model, COMPUTE), model, REGION, settings(1000), checked)
    assert found is not None
    assert (found.whole, found.ruled) == pytest.approx((sums[False] / tokens, sums[True] / tokens), rel=1e-5)
    assert abs(found.rise) > 0.01
    assert (found.samples, found.answer_tokens, found.held_out, found.allowed) == (6, tokens, False, 1000)


def test_measuring_changes_nothing(strong: Loaded, checked: Checked) -> None:
    model = strong.model.train()
    rule = VisualTokenSkipping(model, COMPUTE)
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    check_cost(rule, model, REGION, settings(1000), checked)
    assert torch.equal(torch.rand(1), expected)
    assert model.training
    assert not rule.whole
    assert skipping_of(model) is rule
    assert all(parameter.grad is None for parameter in model.parameters())


def costly(strong: Loaded, checked: Checked) -> tuple[Shift, float]:
    """Steps by which the rule costs something: of a random model most changes help as often as not."""
    for seed in range(20):
        torch.manual_seed(seed)
        shift = {0: 5 * torch.randn(strong.model.config.get_text_config().hidden_size)}
        with VisualTokenSkipping(strong.model, COMPUTE, shift) as rule:
            found = check_cost(rule, strong.model, REGION, settings(1000), checked)
        assert found is not None
        if found.rise > 0.02:
            return shift, found.rise
    pytest.fail("no rule costs anything")


def test_more_than_is_allowed_is_refused_and_the_rule_is_off(strong: Loaded, checked: Checked) -> None:
    shift, rise = costly(strong, checked)
    rule = VisualTokenSkipping(strong.model, COMPUTE, shift)
    assert check_cost(rule, strong.model, REGION, settings(rise * 1.01), checked)
    with pytest.raises(TrainingError) as caught:
        check_cost(rule, strong.model, REGION, settings(rise * 0.99), checked)
    assert skipping_of(strong.model) is None
    text = str(caught.value)
    assert "with image tokens in the layers that train alone the answers' loss of the start model rises from" in text
    assert f"nats a token, by {rise:.2f} (6 training samples with pictures)" in text
    assert f"a rise of at most {rise * 0.99:g} (train.image_check)" in text
    assert "--set train.image_check=null trains all the same" in text
    also = settings(rise * 0.99).model_copy(update={"image_also": "bottom:1"})
    with pytest.raises(TrainingError, match=r"the layers that train and those of train\.image_also alone"):
        check_cost(VisualTokenSkipping(strong.model, COMPUTE, shift), strong.model, REGION, also, checked)


def test_what_is_advised_is_the_fewest_layers_that_help(
    strong: Loaded, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, ...]] = []
    whole, tokens = 100.0, 50.0

    def sums(enough: int) -> Any:
        def measured(rule: VisualTokenSkipping, *_: Any) -> tuple[float, float, float]:
            tried.append(rule.compute.layers)
            return whole, whole + (0.1 if len(rule.compute.layers) >= enough else 5.0) * tokens, tokens

        return measured

    def advice(enough: int) -> str:
        tried.clear()
        monkeypatch.setattr(image_check, "_sums", sums(enough))
        with pytest.raises(TrainingError) as caught:
            check_cost(VisualTokenSkipping(strong.model, COMPUTE), strong.model, REGION, settings(1.0), checked)
        return caught.value.next_step

    said = advice(2)
    added = [layer for layer in tried[-1] if layer not in REGION]
    assert f"use train.image_also=ids:{','.join(map(str, added))}, where it changes by +0.10" in said
    assert len(added) == 1
    assert "no 25% or 50% of further layers that were tried help enough (at best" in advice(4)
    sizes = list(map(len, tried[1:]))
    assert sizes == sorted(sizes)
    assert len(set(tried)) == len(tried) <= 1 + len(WIDER)
    assert "use train.image_tokens=all" in advice(4)


def test_what_can_not_be_measured_is_not(strong: Loaded, pack_dir: Path) -> None:
    texts = [sample for sample in read_samples(pack_dir) if not sample.images]
    collator = Collator(strong.processor, 96, train=True)
    assert begin_skipping(strong.model, REGION, texts, collator, settings(0)) is None
    rule = skipping_of(strong.model)
    assert rule is not None
    rule.remove()
    samples = read_samples(pack_dir)
    assert begin_skipping(strong.model, REGION, samples, collator, settings(None)) is None
    # It follows the rule already.
    assert begin_skipping(strong.model, REGION, samples, collator, settings(0)) is None


def test_a_loss_that_is_no_number_is_too_much(
    strong: Loaded, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_check, "_sums", lambda *_: (1.0, float("nan"), 1.0))
    with pytest.raises(TrainingError, match="to nan nats a token"):
        check_cost(VisualTokenSkipping(strong.model, COMPUTE), strong.model, REGION, settings(1000), checked)
