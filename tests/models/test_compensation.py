"""Compensation of whole models, against the same sums made by plain hooks."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import striate
from striate import api
from striate.artifacts import Compensation, Region
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import ConfigError, DataError, ModelError, StriateError
from striate.models.io.load import Loaded
from striate.models.surgery.remove_layers import remove_layers
from striate.models.visual_token_skipping.rule import VisualTokenSkipping
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.progress import Silent
from striate.pruning.compensation import compensate as module
from striate.pruning.compensation.compensate import compensate, refit_if_possible
from striate.pruning.greedy_ranking import calibration
from striate.scorers.streaming.batches import longest_first

Seen = dict[str, Tensor]
LAYERS = 4
DOWN = "model.language_model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def samples(saved_pack: Path) -> list[Sample]:
    return [sample for sample in read_samples(saved_pack) if sample.images][:8]


def batches_of(loaded: Loaded, samples: list[Sample], size: int = 4) -> Any:
    return calibration(samples, Collator(loaded.processor, 128, True), size)


def in_order(samples: list[Sample]) -> list[Sample]:
    """The samples in the order in which calibration numbers them."""
    return [samples[index] for index in longest_first(samples)]


def layers_of(model: Any) -> Any:
    return model.model.language_model.layers


def tokens_of(loaded: Loaded, model: Any, sample: Sample, layer: int) -> dict[str, Tensor]:
    """One sample through a model: what enters and leaves `down_proj` of a layer, and what leaves the layer."""
    seen: dict[str, Tensor] = {}
    batch = Collator(loaded.processor, 128, True)([sample])
    labels, ids = batch.pop("labels")[0], batch["input_ids"][0]
    image = ids == model.config.image_token_index

    def projected(_: Any, args: Any, output: Tensor) -> None:
        seen["inputs"], seen["written"] = args[0][0].double(), output[0].double()

    hooks = [
        layers_of(model)[layer].mlp.down_proj.register_forward_hook(projected),
        layers_of(model)[layer].register_forward_hook(
            lambda _, args, output: seen.update(state=output[0].double() if output.ndim == 3 else output.double())
        ),
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return {**seen, "kind": torch.where(image, 0, torch.where(labels == -100, 1, 2))}


def by_kind(values: list[tuple[Tensor, Tensor]]) -> float:
    """The mean over kinds of the mean over tokens; a kind and a value for each token of each sample."""
    kinds, numbers = (torch.cat(column) for column in zip(*values, strict=True))
    return float(torch.stack([numbers[kinds == kind].mean() for kind in kinds.unique()]).mean())


def relative_errors(
    small: list[dict[str, Tensor]], start: list[dict[str, Tensor]], goals: list[dict[str, Tensor]]
) -> float:
    """Return |x* - x|^2 of states x over |x* - x0 + M0|^2, what `down_proj` should give, of the states x0 at first."""
    rows = zip(small, start, goals, strict=True)
    return by_kind(
        [
            (goal["kind"], (goal["state"] - one["state"]).square().sum(1) / wanted(first, goal).square().sum(1))
            for one, first, goal in rows
        ]
    )


def wanted(first: Seen, goal: Seen) -> Tensor:
    return goal["state"] - first["state"] + first["written"]


def cut(model: Any, removed: list[int]) -> Any:
    smaller = copy.deepcopy(model)
    remove_layers(smaller, removed)
    return smaller


def test_the_weight_before_a_gap_solves_the_ridge_regression_of_the_calibration_tokens(
    tiny_llava: Loaded, samples: list[Sample]
) -> None:
    whole = copy.deepcopy(tiny_llava.model)
    record = compensate(tiny_llava.model, batches_of(tiny_llava, samples), [2], how="refit")
    (gap,) = record.gaps
    assert (gap.layer, gap.removed, gap.changed) == (1, (2,), (DOWN.format(1),))
    fitted = [sample for number, sample in enumerate(in_order(samples)) if number % 4 != 1]
    first, goals = ([tokens_of(tiny_llava, whole, sample, layer) for sample in fitted] for layer in (1, 2))
    inputs, kind = (torch.cat([token[name] for token in first]) for name in ("inputs", "kind"))
    target = torch.cat([wanted(token, goal) for token, goal in zip(first, goals, strict=True)])
    weight = 1 / target.square().sum(1)
    for number in range(3):
        weight[kind == number] /= 3 * int((kind == number).sum())
    weighed = inputs * weight[:, None]
    gram = weighed.T @ inputs
    assert gap.ridge is not None
    damp = gap.ridge * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    former = layers_of(whole)[1].mlp.down_proj.weight.double()
    expected = torch.linalg.solve(gram + damp, (target.T @ weighed + former @ damp).T).T
    found = layers_of(tiny_llava.model)[1].mlp.down_proj.weight.double()
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-3)
    assert not torch.allclose(found, former, atol=1e-2)
    assert list(record.tokens.values()) == torch.bincount(kind).tolist()


def test_tokens_of_samples_without_a_picture_are_a_kind_of_their_own(
    tiny_llava: Loaded, samples: list[Sample], saved_pack: Path
) -> None:
    text = [sample for sample in read_samples(saved_pack) if not sample.images]
    record = compensate(tiny_llava.model, batches_of(tiny_llava, [*samples, *text * 3]), [2], how="refit")
    alone = Collator(tiny_llava.processor, 128, True)(text)["attention_mask"].sum()
    assert set(record.tokens) == {"image", "prompt", "answer", "text"}
    assert record.tokens["text"] + record.held_out.get("text", 0) == 3 * int(alone)


def test_errors_are_those_of_held_out_samples_in_the_cut_model(tiny_llava: Loaded, samples: list[Sample]) -> None:
    whole = copy.deepcopy(tiny_llava.model)
    (gap,) = compensate(tiny_llava.model, batches_of(tiny_llava, samples), [2], how="refit").gaps
    held = [sample for number, sample in enumerate(in_order(samples)) if number % 4 == 1]
    goals = [tokens_of(tiny_llava, whole, sample, 2) for sample in held]
    first, after = (
        [tokens_of(tiny_llava, cut(model, [2]), sample, 1) for sample in held] for model in (whole, tiny_llava.model)
    )
    assert gap.before == pytest.approx(relative_errors(first, first, goals), rel=1e-4)
    assert gap.after == pytest.approx(relative_errors(after, first, goals), rel=1e-3)
    assert gap.relative is not None
    assert gap.relative < 1


def test_later_gaps_see_the_model_as_already_compensated(tiny_llava: Loaded, samples: list[Sample]) -> None:
    both, first = (copy.deepcopy(tiny_llava) for _ in range(2))
    record = compensate(both.model, batches_of(both, samples), [1, 3], how="refit")
    compensate(first.model, batches_of(first, samples), [1], how="refit")
    assert torch.equal(layers_of(both.model)[0].mlp.down_proj.weight, layers_of(first.model)[0].mlp.down_proj.weight)
    chosen = [sample for number, sample in enumerate(in_order(samples)) if number % 4 == 1]
    goals = [tokens_of(tiny_llava, tiny_llava.model, sample, 3) for sample in chosen]
    states = [tokens_of(tiny_llava, cut(first.model, [1, 3]), sample, 1) for sample in chosen]
    assert record.gaps[1].layer == 2
    assert record.gaps[1].before == pytest.approx(relative_errors(states, states, goals), rel=1e-4)


def test_nothing_but_the_named_weights_changes_and_no_layer_goes(tiny_llava: Loaded, samples: list[Sample]) -> None:
    for how in ("refit", "scale"):
        loaded = copy.deepcopy(tiny_llava)
        record = compensate(loaded.model, batches_of(loaded, samples), [1], how=how)
        former = dict(tiny_llava.model.named_parameters())
        now = dict(loaded.model.named_parameters())
        assert {name for name in former if not torch.equal(former[name], now[name])} == set(record.gaps[0].changed)
        assert record.gaps[0].changed


def test_a_removed_layer_that_does_nothing_changes_nothing(tiny_llava: Loaded, samples: list[Sample]) -> None:
    layer = layers_of(tiny_llava.model)[2]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    former = copy.deepcopy(tiny_llava.model.state_dict())
    record = compensate(tiny_llava.model, batches_of(tiny_llava, samples), [2], how="refit")
    assert all(torch.equal(former[name], tensor) for name, tensor in tiny_llava.model.state_dict().items())
    assert (record.gaps[0].before, record.gaps[0].changed) == (0, ())
    assert record.gaps[0].note == "no refit has less error on held-out tokens"


def test_layers_before_the_first_kept_one_are_left_and_recorded(tiny_llava: Loaded, samples: list[Sample]) -> None:
    record = compensate(tiny_llava.model, batches_of(tiny_llava, samples), [0, 1, 3], how="refit")
    assert [(gap.removed, gap.layer) for gap in record.gaps] == [((0, 1), None), ((3,), 2)]
    assert record.gaps[0].note == "there is no kept layer before it"
    assert record.gaps[0].changed == ()
    only = compensate(tiny_llava.model, batches_of(tiny_llava, samples), [0], how="refit")
    assert [gap.layer for gap in only.gaps] == [None]


def test_batch_size_changes_next_to_nothing(tiny_llava: Loaded, samples: list[Sample]) -> None:
    records = []
    for size in (1, 8):
        loaded = copy.deepcopy(tiny_llava)
        records.append(compensate(loaded.model, batches_of(loaded, samples, size), [1, 3], how="refit"))
    for one, other in zip(records[0].gaps, records[1].gaps, strict=True):
        assert one.after == pytest.approx(other.after, rel=1e-3)
    assert records[0].tokens == records[1].tokens


@pytest.mark.parametrize("tied", [False, True])
def test_a_scale_is_the_same_as_a_longer_state_before_the_gap(
    llava_builder: Any, samples: list[Sample], tied: bool
) -> None:
    loaded: Loaded = llava_builder(num_layers=6, tie_embeddings=tied)
    longer = cut(loaded.model, [2, 4])
    record = compensate(loaded.model, batches_of(loaded, samples), [2, 4], how="scale")
    first, second = (gap.scale for gap in record.gaps)
    assert first is not None
    assert second is not None
    assert first != 1 != second
    # Layers 1 and 3 of the whole model, as they are numbered in the cut one.
    for layer, factor in ((1, first), (2, second / first)):
        layers_of(longer)[layer].register_forward_hook(lambda _, args, output, factor=factor: output * factor)
    batch = Collator(loaded.processor, 128, False).encode_prompts(samples[:2])
    with torch.no_grad():
        expected, found = longer(**batch).logits, cut(loaded.model, [2, 4])(**batch).logits
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-3)
    for gap in record.gaps:
        assert gap.after is not None
        assert gap.before is not None
        assert gap.after < gap.before


def test_a_scale_is_the_geometric_mean_of_the_lengths(tiny_llava: Loaded, samples: list[Sample]) -> None:
    whole = copy.deepcopy(tiny_llava.model)
    record = compensate(tiny_llava.model, batches_of(tiny_llava, samples), [2], how="scale")
    fitted = [sample for number, sample in enumerate(in_order(samples)) if number % 4 != 1]
    logs: dict[int, list[float]] = {}
    for sample in fitted:
        given, wanted = (tokens_of(tiny_llava, whole, sample, layer) for layer in (1, 2))
        ratio = (wanted["state"].norm(dim=1) / given["state"].norm(dim=1)).log()
        for kind, value in zip(given["kind"].tolist(), ratio.tolist(), strict=True):
            logs.setdefault(kind, []).append(value)
    mean = sum(sum(values) / len(values) for values in logs.values()) / len(logs)
    assert record.gaps[0].scale == pytest.approx(float(torch.tensor(mean).exp()), rel=1e-5)


def test_layers_at_the_end_need_no_scale(tiny_llava: Loaded, samples: list[Sample]) -> None:
    record = compensate(tiny_llava.model, batches_of(tiny_llava, samples), [3], how="scale")
    assert record.gaps[0].changed == ()
    assert "no kept layer behind it" in record.gaps[0].note


def test_a_failure_leaves_the_weights_as_they_were(
    tiny_llava: Loaded, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    former = copy.deepcopy(tiny_llava.model.state_dict())

    class Stopping(Silent):
        def say(self, text: str) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compensate(tiny_llava.model, batches_of(tiny_llava, samples), [1, 3], how="refit", progress=Stopping())
    assert all(torch.equal(former[name], tensor) for name, tensor in tiny_llava.model.state_dict().items())


def refusal(kind: type[StriateError], loaded: Loaded, samples: list[Sample], how: Any = "refit") -> str:
    former = copy.deepcopy(loaded.model.state_dict())
    with pytest.raises(kind) as caught:
        compensate(loaded.model, batches_of(loaded, samples), [2], how=how)
    now = loaded.model.state_dict()
    assert all(torch.equal(former[name].nan_to_num(), tensor.nan_to_num()) for name, tensor in now.items())
    return str(caught.value)


class Normed(torch.nn.Module):
    """An MLP with a norm behind it."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.mlp, self.post_norm = mlp, torch.nn.LayerNorm(32)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.post_norm(self.mlp(hidden))


class Gated(Normed):
    """An MLP whose output is multiplied by something that differs from token to token."""

    def forward(self, hidden: Tensor) -> Tensor:
        return self.mlp(hidden) * hidden.mean(-1, keepdim=True)


def test_what_can_not_be_compensated_is_refused_with_the_reason(tiny_llava: Loaded, samples: list[Sample]) -> None:
    assert "compensation 'best'" in refusal(ConfigError, tiny_llava, samples, "best")
    assert "1 calibration samples to compensate with" in refusal(DataError, tiny_llava, samples[:1])
    mlp = layers_of(tiny_llava.model)[1].mlp
    for wrapper, reason in (
        (Normed, "mlp.post_norm normalises what mlp.mlp.down_proj gives"),
        (Gated, "what leaves it is no sum of the output of mlp.mlp.down_proj and a rest"),
    ):
        layers_of(tiny_llava.model)[1].mlp = wrapper(mlp)
        text = refusal(ModelError, tiny_llava, samples)
        assert f"decoder layer 1 can't be compensated for the layers behind it: {reason}" in text
        assert "adds the output of its MLP's last linear module to the state as it is" in text
        assert "set prune.compensate to none" in text
    layers_of(tiny_llava.model)[3].mlp = Normed(mlp)
    layers_of(tiny_llava.model)[1].mlp = mlp
    text = refusal(ModelError, tiny_llava, samples, "scale")
    assert "llava can't be compensated by a scale: the state's length is read, or added to in" in text
    assert "set prune.compensate to refit or none" in text


def test_a_shared_weight_is_refused(tiny_llava: Loaded, samples: list[Sample]) -> None:
    layers = layers_of(tiny_llava.model)
    layers[3].mlp.down_proj.weight = layers[1].mlp.down_proj.weight
    assert f"{DOWN.format(1)} is also {DOWN.format(3)}" in refusal(ModelError, tiny_llava, samples)


def test_states_that_are_no_numbers_are_refused(tiny_llava: Loaded, samples: list[Sample]) -> None:
    with torch.no_grad():
        layers_of(tiny_llava.model)[2].mlp.down_proj.weight.fill_(float("nan"))
    assert "what leaves layer 2 for calibration samples is not a number" in refusal(ModelError, tiny_llava, samples)


def test_a_layer_that_image_tokens_skip_is_refused(tiny_llava: Loaded, samples: list[Sample]) -> None:
    VisualTokenSkipping(tiny_llava.model, VisualCompute(layers=(0,), num_layers=LAYERS))
    text = refusal(ModelError, tiny_llava, samples)
    assert "decoder layer 1 can't be compensated for the layers behind it: image tokens skip it" in text
    record = compensate(tiny_llava.model, batches_of(tiny_llava, samples), [1], how="refit")
    assert record.gaps[0].changed == (DOWN.format(0),)


def test_adapters_are_refused(tiny_llava: Loaded, samples: list[Sample]) -> None:
    import peft

    region = Region(layers=(1,), num_layers=LAYERS, spec="ids:1")
    wrapped = peft.get_peft_model(tiny_llava.model, striate.lora_config(tiny_llava.model, region, r=2))
    with pytest.raises(ModelError, match="the model has adapters"):
        compensate(wrapped, batches_of(tiny_llava, samples), [2], how="refit")


def test_python_call(tiny_llava: Loaded, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    region = Region(layers=(1,), num_layers=LAYERS, spec="ids:1")
    records: list[Compensation] = []
    run = module.compensate

    def recorded(*args: Any, **kwargs: Any) -> Compensation:
        records.append(run(*args, **kwargs))
        return records[-1]

    monkeypatch.setattr(api, "compensate_for", recorded)
    former = copy.deepcopy(tiny_llava.model)
    small = striate.prune(
        tiny_llava.model,
        region,
        remove=1,
        scorer="top",
        samples=samples,
        processor=tiny_llava.processor,
        compensate="refit",
    )
    assert len(layers_of(small)) == 3
    assert [gap.removed for gap in records[0].gaps] == [(3,)]
    assert not torch.equal(layers_of(small)[2].mlp.down_proj.weight, layers_of(former)[2].mlp.down_proj.weight)
    with pytest.raises(ConfigError, match=r"(?s)compensate='refit' with no samples.*pass samples="):
        striate.prune(former, region, remove=1, scorer="top", compensate="refit")
    with pytest.raises(ConfigError, match="compensate='scale' with no processor"):
        striate.prune(former, region, remove=1, scorer="top", samples=samples, compensate="scale")


def test_a_deep_refit_brings_all_layers_behind_the_gap_nearer_to_the_whole_model(
    tiny_llava: Loaded, samples: list[Sample]
) -> None:
    whole, plain = copy.deepcopy(tiny_llava.model), copy.deepcopy(tiny_llava.model)
    compensate(plain, batches_of(tiny_llava, samples), [1], how="refit")
    record = compensate(tiny_llava.model, batches_of(tiny_llava, samples), [1], how="refit", deep=True)
    assert [(gap.layer, gap.removed) for gap in record.gaps] == [(0, (1,)), (2, ()), (3, ())]
    changed = [name for gap in record.gaps for name in gap.changed]
    assert changed == [DOWN.format(layer) for layer in (0, 2, 3)]
    before, after = whole.state_dict(), tiny_llava.model.state_dict()
    assert [name for name in before if not torch.equal(before[name], after[name])] == changed
    errors = []
    for model in (plain, tiny_llava.model):
        smaller = cut(model, [1])
        pairs = [(tokens_of(tiny_llava, smaller, one, 2), tokens_of(tiny_llava, whole, one, 3)) for one in samples]
        errors.append(by_kind([(goal["kind"], (goal["state"] - one["state"]).square().sum(1)) for one, goal in pairs]))
    assert errors[1] < errors[0]


def test_where_it_can_not_be_refitted_a_run_says_so_and_goes_on(tiny_llava: Loaded, samples: list[Sample]) -> None:
    """`prune.compensate: auto`."""

    class Heard(Silent):
        def __init__(self) -> None:
            self.said: list[str] = []

        def say(self, text: str) -> None:
            self.said.append(text)

    heard, batches = Heard(), batches_of(tiny_llava, samples)
    record = refit_if_possible(copy.deepcopy(tiny_llava.model), batches, [2], heard)
    assert record == compensate(copy.deepcopy(tiny_llava.model), batches, [2], how="refit").model_copy(
        update={"seconds": record.seconds if record else 0}
    )
    heard.said.clear()
    former = copy.deepcopy(tiny_llava.model.state_dict())
    VisualTokenSkipping(tiny_llava.model, VisualCompute(layers=(0,), num_layers=LAYERS))
    assert refit_if_possible(tiny_llava.model, batches, [2], heard) is None
    (line,) = heard.said
    assert line.startswith("prune: nothing stands in for the layers that go: decoder layer 1 can't be compensated")
    assert line.endswith("image tokens skip it (prune.compensate: auto)")
    assert all(torch.equal(former[name], tensor) for name, tensor in tiny_llava.model.state_dict().items())
