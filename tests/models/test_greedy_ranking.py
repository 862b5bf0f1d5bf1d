"""Greedy ranking against models that really lack the layers, scored whole and one after the other."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import striate
from striate.artifacts import Cut, LayerScores, Region, Scores
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import PLACEHOLDER, Sample
from striate.errors import ConfigError, DataError, ModelError
from striate.models.io.load import Loaded
from striate.models.surgery.remove_layers import remove_layers
from striate.pruning.greedy_ranking import Question, calibration, rank_greedily

LAYERS = 4
NONE = Region(layers=(), num_layers=LAYERS, spec="none")


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    """Four samples with a picture and two of text alone."""
    pictured = [sample for sample in read_samples(pack_dir) if sample.images][:6]
    for index in (1, 4):
        plain = tuple(
            replace(turn, text=turn.text.replace(PLACEHOLDER, "").strip()) for turn in pictured[index].messages
        )
        pictured[index] = replace(pictured[index], messages=plain, images=())
    return pictured


def batches_of(loaded: Loaded, samples: list[Sample], size: int = 2) -> Any:
    return calibration(samples, Collator(loaded.processor, 128, True), size)


def mean_costs(loaded: Loaded, model: Any, samples: list[Sample], accuracy: bool) -> dict[str, float]:
    """Return the mean over samples of the mean loss, or error rate, of their answer tokens, by kind."""
    sums: dict[str, list[float]] = {"visual": [], "text": []}
    for sample in samples:
        batch = Collator(loaded.processor, 128, True)([sample])
        labels = batch.pop("labels")[:, 1:]
        with torch.no_grad():
            logits = model(**batch).logits[:, :-1].double()
        places = labels != -100
        chosen, targets = logits[places], labels[places]
        losses = torch.nn.functional.cross_entropy(chosen, targets, reduction="none")
        values: Tensor = (chosen.argmax(-1) != targets).double() if accuracy else losses
        sums["visual" if sample.images else "text"].append(float(values.mean()))
    return {kind: sum(values) / len(values) for kind, values in sums.items() if values}


def weighed(costs: dict[str, float], text_weight: float) -> float:
    if len(costs) == 1:
        return next(iter(costs.values()))
    return (1 - text_weight) * costs["visual"] + text_weight * costs["text"]


@pytest.mark.parametrize(
    ("measure", "text_weight"), [("answer-loss", 0.5), ("answer-loss", 0.0), ("answer-accuracy", 0.3)]
)
def test_each_cut_is_the_best_of_models_that_lack_the_layer(
    tiny_llava: Loaded, samples: list[Sample], measure: str, text_weight: float
) -> None:
    model = tiny_llava.model
    assert {bool(sample.images) for sample in samples} == {True, False}
    cuts = rank_greedily(model, batches_of(tiny_llava, samples), NONE, 2, Question(measure, text_weight))
    gone: list[int] = []
    for cut in cuts:
        truth = {}
        for layer in set(range(LAYERS)) - set(gone):
            smaller = copy.deepcopy(model)
            remove_layers(smaller, sorted([*gone, layer]))
            truth[layer] = mean_costs(tiny_llava, smaller, samples, measure == "answer-accuracy")
        expected = {layer: weighed(costs, text_weight) for layer, costs in truth.items()}
        assert cut.candidates == pytest.approx(expected, abs=2e-5)
        assert cut.after == pytest.approx(truth[cut.layer], abs=2e-5)
        assert cut.candidates[cut.layer] == min(cut.candidates.values())
        gone.append(cut.layer)
    assert cuts[1].before == pytest.approx(cuts[0].after, abs=2e-5)


def test_the_model_is_left_as_it_was(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model = tiny_llava.model.train()
    batch = Collator(tiny_llava.processor, 128, False).encode_prompts(samples[:1])
    with torch.no_grad():
        before = model.eval()(**batch).logits
        model.train()
        rank_greedily(model, batches_of(tiny_llava, samples), NONE, 2)
        assert model.training
        assert torch.equal(model.eval()(**batch).logits, before)


@pytest.mark.parametrize("done", [1, 2])
def test_an_interrupted_ranking_goes_on_to_the_same_cuts(tiny_llava: Loaded, samples: list[Sample], done: int) -> None:
    kept: list[tuple[Cut, ...]] = []
    whole = rank_greedily(
        tiny_llava.model, batches_of(tiny_llava, samples), NONE, 3, keep=lambda cuts: kept.append(tuple(cuts))
    )
    assert [len(cuts) for cuts in kept] == [1, 2, 3]
    again = rank_greedily(tiny_llava.model, batches_of(tiny_llava, samples), NONE, 3, known=kept[done - 1])
    assert [cut.layer for cut in again] == [cut.layer for cut in whole]
    for one, other in zip(again, whole, strict=True):
        assert one.candidates == pytest.approx(other.candidates, abs=1e-6)


def test_batch_size_changes_nothing(tiny_llava: Loaded, samples: list[Sample]) -> None:
    one, four = (rank_greedily(tiny_llava.model, batches_of(tiny_llava, samples, size), NONE, 1) for size in (1, 4))
    assert one[0].candidates == pytest.approx(four[0].candidates, abs=2e-5)


def test_python_call(tiny_llava: Loaded, samples: list[Sample]) -> None:
    region = Region(layers=(1,), num_layers=LAYERS, spec="ids:1")
    cuts = rank_greedily(tiny_llava.model, batches_of(tiny_llava, samples, 8), region, 2)
    expected = copy.deepcopy(tiny_llava.model)
    remove_layers(expected, sorted(cut.layer for cut in cuts))
    smaller = copy.deepcopy(tiny_llava.model)
    small = striate.prune(smaller, region, remove=2, samples=samples, processor=tiny_llava.processor)
    batch = Collator(tiny_llava.processor, 128, False).encode_prompts(samples[:1])
    with torch.no_grad():
        assert torch.equal(small(**batch).logits, expected(**batch).logits)


def test_python_call_with_a_percentage(tiny_llava: Loaded) -> None:
    region = striate.select(tiny_llava.model, "ids:1")
    values = (4.0, 3.0, 1.0, 2.0)
    scores = Scores(
        num_layers=4, samples=0, scorers=(LayerScores(scorer="s", values=values, low=values, high=values, samples=0),)
    )
    # 1.5 of 4 layers, rounded up.
    small = striate.prune(copy.deepcopy(tiny_llava.model), region, remove="37.5%", scores=scores)
    assert small.config.text_config.num_hidden_layers == 2
    with pytest.raises(ConfigError, match=r"4 layers to remove, but 3 of 4 lie outside region 'ids:1'"):
        striate.prune(tiny_llava.model, region, remove="100%", scores=scores)
    with pytest.raises(ConfigError, match=r"'37\.5' layers to remove\n.*a percentage of them such as '25%'"):
        striate.prune(tiny_llava.model, region, remove="37.5", scores=scores)


def test_samples_without_a_processor_are_refused(tiny_llava: Loaded, samples: list[Sample]) -> None:
    region = Region(layers=(1,), num_layers=LAYERS, spec="ids:1")
    with pytest.raises(ConfigError, match=r"(?s)with no processor.*pass processor="):
        striate.prune(tiny_llava.model, region, remove=1, samples=samples)
    with pytest.raises(ConfigError, match="scorer 'best'"):
        striate.prune(
            tiny_llava.model, region, remove=1, samples=samples, processor=tiny_llava.processor, scorer="best"
        )
    with pytest.raises(DataError, match="no samples to rank layers by"):
        striate.prune(tiny_llava.model, region, remove=1, samples=[], processor=tiny_llava.processor)


def test_losses_that_are_no_numbers_are_refused(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model = copy.deepcopy(tiny_llava.model)
    with torch.no_grad():
        model.get_output_embeddings().weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="is not a number"):
        rank_greedily(model, batches_of(tiny_llava, samples), NONE, 1)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"remove": 1.0}, r"1\.0 layers to remove\n  allowed: a number of layers such as 4"),
        ({"remove": True}, "True layers to remove"),
        ({"scorer": "anser-loss"}, r"with scorer 'anser-loss'\n"),
        ({"heal": "5%"}, r"heal '5%'\n  allowed: settings by name"),
        ({"heal": {"steps": 1, "share": 0.5}}, "^heal steps and share are both set"),
        ({"heal": {"stesp": 1}}, "^heal stesp: Extra inputs are not permitted"),
        ({"compensate": "refits"}, r"compensation 'refits'\n  allowed: none, refit or scale"),
    ],
)
def test_mistaken_arguments_are_answered_in_words(
    tiny_llava: Loaded, samples: list[Sample], given: dict[str, Any], said: str
) -> None:
    region = Region(layers=(1,), num_layers=LAYERS, spec="ids:1")
    arguments = {"remove": 1, "samples": samples, "processor": tiny_llava.processor} | given
    with pytest.raises(ConfigError, match=said) as caught:
        striate.prune(tiny_llava.model, region, **arguments)
    # No processor is printed, whole.
    assert len(str(caught.value)) < 400
