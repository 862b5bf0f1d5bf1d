from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from striate.artifacts import LayerScores, PruneRecord, Region, Scores, read_document
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.errors import ArtifactError, ConfigError, ModelError, SpecError
from striate.models.io.load import load_model
from striate.models.structure.anatomy import decoder_layers
from striate.pruning import tested_save
from striate.selectors.spec.grammar import resolve
from striate.stages.analyze import analyze
from striate.stages.prune import prune

if TYPE_CHECKING:
    from striate.models.io.load import Loaded


def scores_of(*values: float, scorer: str = "block-influence") -> Scores:
    entry = LayerScores(scorer=scorer, values=values, low=values, high=values, samples=1)
    return Scores(num_layers=len(values), samples=1, scorers=(entry,))


def both(*values: float) -> Scores:
    one, two = scores_of(*values), scores_of(*values[::-1], scorer="angular-distance")
    return one.model_copy(update={"scorers": one.scorers + two.scorers})


@pytest.fixture
def prompts(tiny_llava: Loaded, pack_dir: Path) -> dict[str, Any]:
    samples = read_samples(pack_dir / "train.json")[:3]
    return Collator(tiny_llava.processor, 512, train=False).encode_prompts(samples)


def logits(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def test_the_least_important_layers_outside_the_region_go(tiny_llava: Loaded) -> None:
    layers = list(decoder_layers(tiny_llava.model))
    region = resolve("ids:0", 4)
    model, record = prune(tiny_llava.model, region, 2, scores_of(0.0, 0.1, 0.9, 0.2))
    assert (record.removed, record.kept, record.old_to_new) == ((1, 3), (0, 2), {0: 0, 2: 1})
    assert model is tiny_llava.model
    assert list(decoder_layers(model)) == [layers[0], layers[2]]
    assert record.parameters_before - record.parameters_after == 2 * sum(p.numel() for p in layers[1].parameters())
    assert record.parameters_after == sum(p.numel() for p in model.parameters())
    assert (record.region, record.scorer, record.self_test) == (region, "block-influence", None)
    assert record.seconds > 0
    assert PruneRecord.model_validate_json(record.model_dump_json()) == record


def test_of_equal_layers_the_deeper_goes_first(tiny_llava: Loaded) -> None:
    _, record = prune(tiny_llava.model, resolve("ids:0", 4), 2, scores_of(0.5, 0.5, 0.5, 0.5))
    assert record.removed == (2, 3)


def test_the_named_scorer_ranks(tiny_llava: Loaded) -> None:
    _, record = prune(tiny_llava.model, resolve("none", 4), 1, both(0.1, 0.2, 0.3, 0.4), "angular-distance")
    assert (record.scorer, record.removed) == ("angular-distance", (3,))


def test_removing_a_layer_is_skipping_it(tiny_llava: Loaded, prompts: dict[str, Any]) -> None:
    skipping = copy.deepcopy(tiny_llava.model)
    layer = decoder_layers(skipping)[1]
    torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    small, _ = prune(tiny_llava.model, resolve("ids:0,2", 4), 1, scores_of(0.5, 0.1, 0.0, 0.9))
    torch.testing.assert_close(logits(small, prompts), logits(skipping, prompts), atol=1e-5, rtol=0)


def test_removing_nothing_is_the_identity(tiny_llava: Loaded, prompts: dict[str, Any]) -> None:
    before = {name: value.clone() for name, value in tiny_llava.model.state_dict().items()}
    config, expected = tiny_llava.model.config.to_dict(), logits(tiny_llava.model, prompts)
    model, record = prune(tiny_llava.model, resolve("uniform:2", 4), 0)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert model.config.to_dict() == config
    assert torch.equal(logits(model, prompts), expected)
    assert (record.removed, record.kept, record.scorer) == ((), (0, 1, 2, 3), "")
    assert record.parameters_before == record.parameters_after


@pytest.mark.parametrize("own_prompts", [True, False])
def test_a_saved_model_is_reloaded_and_compared(
    tiny_llava: Loaded, prompts: dict[str, Any], tmp_path: Path, own_prompts: bool
) -> None:
    out = tmp_path / "pruned"
    inputs = prompts if own_prompts else None
    scores = scores_of(0.5, 0.1, 0.9, 0.2)
    model, record = prune(
        tiny_llava.model, resolve("ids:0,2", 4), 1, scores, processor=tiny_llava.processor, out=out, test_inputs=inputs
    )
    assert record.self_test is not None
    assert record.self_test.max_logit_difference == 0
    assert record.self_test.cached_equals_uncached
    assert record.self_test.prompts == (3 if own_prompts else 1)
    small = load_model(out, device="cpu").model
    assert len(decoder_layers(small)) == 3
    assert torch.equal(logits(small, prompts), logits(model, prompts))
    assert "Old→new: " in (out / "README.md").read_text()
    stored = read_document(out / "region.json", Region)
    assert (stored.layers, stored.num_layers, stored.spec) == ((0, 1), 3, "ids:0,1")


def test_an_empty_region_is_stored_as_none(tiny_llava: Loaded, tmp_path: Path) -> None:
    out = tmp_path / "pruned"
    prune(tiny_llava.model, resolve("none", 4), 1, scores_of(1, 2, 3, 4), processor=tiny_llava.processor, out=out)
    stored = read_document(out / "region.json", Region)
    assert (stored.layers, stored.num_layers, stored.spec) == ((), 3, "none")


def test_a_saved_model_that_fails_its_test_is_removed(
    tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(model: Any, path: Path, *_: Any) -> None:
        assert (path / "config.json").exists()
        raise ModelError("logits differ by 3.85")

    monkeypatch.setattr(tested_save, "self_test", fail)
    out = tmp_path / "pruned"
    with pytest.raises(ModelError, match=r"logits differ by 3\.85"):
        prune(tiny_llava.model, resolve("none", 4), 1, scores_of(1, 2, 3, 4), processor=tiny_llava.processor, out=out)
    assert not out.exists()


def test_analyze_select_and_prune_work_together(tiny_llava: Loaded, pack_dir: Path, tmp_path: Path) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    samples = read_samples(pack_dir / "train.json")[:4]
    scores = analyze(model, processor, samples, ["modality-block-influence"])
    region = resolve("scores:modality-block-influence:50%", 4, scores)
    _, record = prune(model, region, 2, scores, processor=processor, out=tmp_path / "pruned")
    assert record.kept == region.layers
    assert analyze(model, processor, samples).num_layers == 2


@pytest.mark.parametrize("remove", [-1, 3, 4])
def test_more_layers_than_lie_outside_are_refused(tiny_llava: Loaded, remove: int) -> None:
    with pytest.raises(ConfigError, match=f"{remove} layers to remove, but 2 of 4 lie outside region 'uniform:2'") as e:
        prune(tiny_llava.model, resolve("uniform:2", 4), remove, scores_of(1, 2, 3, 4))
    assert "0 to 2 layers" in str(e.value)
    assert len(decoder_layers(tiny_llava.model)) == 4


def test_one_layer_always_stays(tiny_llava: Loaded) -> None:
    with pytest.raises(ConfigError, match="4 layers to remove") as caught:
        prune(tiny_llava.model, resolve("none", 4), 4, scores_of(1, 2, 3, 4))
    assert "0 to 3 layers" in str(caught.value)


def test_what_a_person_gets_wrong_is_said_before_anything_changes(tiny_llava: Loaded, tmp_path: Path) -> None:
    model, region = tiny_llava.model, resolve("uniform:2", 4)
    with pytest.raises(SpecError, match="is of a model with 8 layers, and this one has 4"):
        prune(model, resolve("uniform:2", 8), 1, scores_of(1, 2, 3, 4))
    with pytest.raises(SpecError, match="the scores are of 2 layers, and the model has 4"):
        prune(model, region, 1, scores_of(1, 2))
    with pytest.raises(SpecError, match="needs scores, and there are none"):
        prune(model, region, 1)
    with pytest.raises(SpecError, match="2 scorers ran and none was named"):
        prune(model, region, 1, both(1, 2, 3, 4))
    with pytest.raises(ArtifactError, match="no scores of 'angular-distance'"):
        prune(model, region, 1, scores_of(1, 2, 3, 4), "angular-distance")
    with pytest.raises(ModelError, match="no processor was given"):
        prune(model, region, 1, scores_of(1, 2, 3, 4), out=tmp_path / "pruned")
    (tmp_path / "here").write_text("something")
    with pytest.raises(ArtifactError, match="exists already"):
        prune(model, region, 1, scores_of(1, 2, 3, 4), processor=tiny_llava.processor, out=tmp_path)
    assert len(decoder_layers(model)) == 4


def test_adapters_have_to_be_merged_first(tiny_llava: Loaded) -> None:
    from peft import LoraConfig, get_peft_model

    names = ["model.language_model.layers.0.mlp.down_proj"]
    wrapped = get_peft_model(tiny_llava.model, LoraConfig(r=2, target_modules=names))
    with pytest.raises(ModelError, match="PEFT") as caught:
        prune(wrapped, resolve("ids:0", 4), 1, scores_of(1, 2, 3, 4))
    assert "merge=True" in str(caught.value)
    _, record = prune(wrapped.merge_and_unload(), resolve("ids:0", 4), 1, scores_of(1, 2, 3, 4))
    assert record.removed == (1,)


def test_layers_that_the_selector_gives_up_go_first(tiny_llava: Loaded) -> None:
    region = Region(layers=(3,), num_layers=4, spec="interlace:1", selector="interlace", removable=(2,))
    one, two = copy.deepcopy(tiny_llava.model), copy.deepcopy(tiny_llava.model)
    _, record = prune(one, region, 1)
    assert (record.removed, record.scorer) == ((2,), "interlace")
    _, record = prune(two, region, 2, scores_of(0.3, 0.1, 0.9, 0.0))
    assert (record.removed, record.scorer) == ((1, 2), "interlace, then block-influence")
    with pytest.raises(SpecError, match="removing layers needs scores, and there are none"):
        prune(tiny_llava.model, region, 2)
