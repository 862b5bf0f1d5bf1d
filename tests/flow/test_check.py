"""`striate check` refuses what `striate run` refuses, in the same words, and ends with what the run will take."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open

from striate.artifacts import Region, write_document
from striate.config import RunConfig, auto_rate
from striate.data.pictures import PictureLimits
from striate.data.reading import read_many
from striate.data.sources.source_options import SourceOptions
from striate.errors import DataError, ModelError, StriateError
from striate.models.forecast.settings import Accelerator
from striate.models.io.weight_files import check_weights_whole
from striate.pipeline import Flow
from striate.pipeline.checking.data_ahead import check_lengths
from striate.pipeline.checking.model_ahead import model_plan
from striate.pipeline.checking.region_ahead import check_region_ahead
from striate.pipeline.checking.run_forecast import RunForecast, forecast_run
from striate.pipeline.validate import check_run
from striate.selectors.spec.grammar import parse_spec


def told(work: Any) -> str:
    """Return the error of `work`, which must have one."""
    with pytest.raises(StriateError) as caught:
        work()
    return str(caught.value)


BY_SCORES = "scores:block-influence:1"
REFUSED = {
    "a layer too deep, and nothing is pruned": (["prune.remove=0", "select.region=ids:0,7"], "names layer 7"),
    "a file of another depth": (["prune.remove=0", "select.region={region}"], "is of a model with 6 layers"),
    "no file": (["prune.remove=0", "select.region=nowhere/region.json"], "can't read nowhere/region.json"),
    "more layers to remove than scores leave": (
        ["prune.remove=3", "select.region=scores:block-influence:50%"],
        "3 layers to remove, but 2 of 4 lie outside region 'scores:block-influence:50%'",
    ),
    "more layers than there are, by scores": (
        ["prune.remove=0", "select.region=scores:block-influence:9"],
        "9 layers asked of a model with 4 layers",
    ),
    "no layer for adapters": (["prune.remove=0", "select.region=none"], "gives LoRA no linear layer"),
    "all layers compute pictures": (
        ["prune.remove=0", "train.image_tokens=region", "train.image_also=all"],
        "train.image_also 'all' and the region are all 4 layers together",
    ),
    "all layers compute pictures, by scores": (
        ["prune.remove=0", "train.image_tokens=region", "train.image_also=scores:block-influence:100%"],
        "train.image_also 'scores:block-influence:100%' and the region are all 4 layers together",
    ),
    "a region of all layers, and others by scores": (
        ["prune.remove=0", "select.region=all", "train.image_tokens=region", f"train.image_also={BY_SCORES}"],
        f"train.image_also '{BY_SCORES}' has no effect: the region has its layers",
    ),
    "image tokens by scores that are not made": (
        ["train.image_tokens=region", "train.image_also=scores:fishr:1"],
        "train.image_also 'scores:fishr:1' needs scores of 'fishr', and analyze.scorers does not name it",
    ),
    "image tokens by scores of tasks that are not made": (
        ["train.image_tokens=region", "train.image_also=scores:block-influence@ocr:1"],
        "train.image_also 'scores:block-influence@ocr:1' needs scores by task, and analyze.by is 'all'",
    ),
    "more open layers than the region": (["train.resample.active=3"], "train.resample.active is 3"),
    "a gate of a kind that is not asked": (["evaluate.gate=text>=99"], "no text task is scored"),
    "a gate of no pack": (["evaluate.gate=other>=99"], "nothing called 'other' is measured"),
    "an accelerator that is not there": (["machine.device=mps"], "torch finds no Apple GPU here"),
    "half precision on the CPU": (["machine.device=auto", "machine.dtype=float16"], "float16 does not train"),
    "another model without weights": (["evaluate.others={{bare: {bare}}}"], "has a config.json, but no weights"),
    "weights cut short": (["model.path={short}"], "can't be loaded"),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory, _saved_llava: Path) -> dict[str, Path]:
    """A region of another depth, a model without weights, and one with half of them."""
    folder = tmp_path_factory.mktemp("places")
    write_document(folder / "region.json", Region(layers=(0,), num_layers=6, spec="ids:0", selector="ids"))
    for name in ("bare", "short"):
        shutil.copytree(_saved_llava, folder / name)
    (folder / "bare/model.safetensors").unlink()
    weights = folder / "short/model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return {"region": folder / "region.json", "bare": folder / "bare", "short": folder / "short"}


@pytest.mark.parametrize("name", REFUSED)
def test_check_refuses_what_a_run_refuses(
    run_config: Any, places: dict[str, Path], tmp_path: Path, listener: Any, name: str
) -> None:
    overrides, text = REFUSED[name]
    config = run_config(*(override.format(**places) for override in overrides))
    heard = listener()
    refused = told(lambda: Flow(config, tmp_path / "run", progress=heard).everything())
    assert text in refused
    assert told(lambda: list(check_run(config))) == refused
    assert heard.said == []


def test_check_refuses_data_that_only_a_later_stage_would(run_config: Any, tmp_path: Path) -> None:
    texts = [{"conversations": [{"from": "human", "value": "Is ice cold?"}, {"from": "gpt", "value": "yes"}]}] * 4
    (tmp_path / "train.json").write_text(json.dumps(texts))
    data = f'data.train=["{tmp_path}"]'
    assert "the projector can't train: no training sample has a picture" in told(
        lambda: list(check_run(run_config(data)))
    )
    assert "modality-block-influence needs image tokens, and the calibration set has none" in told(
        lambda: list(check_run(run_config(data, "train.projector=frozen")))
    )
    by_task = ["analyze.by=task", "select.region=scores:block-influence@shape:50%"]
    assert "needs scores of task 'shape', and no calibration sample is of that task\n  allowed: 'colour', 'text'" in (
        told(lambda: list(check_run(run_config(*by_task, "analyze.samples=13"))))
    )
    also = ["analyze.by=task", "train.image_tokens=region", "train.image_also=scores:block-influence@shape:1"]
    assert "train.image_also 'scores:block-influence@shape:1' needs scores of task 'shape', and no calibration" in (
        told(lambda: list(check_run(run_config(*also, "analyze.samples=13"))))
    )


def test_a_gate_on_built_in_packs_must_name_one_of_them(run_config: Any) -> None:
    packs = "evaluate.packs=[builtin:easy-vqa]"
    assert "evaluate.gate" in told(lambda: list(check_run(run_config(packs, "evaluate.gate=easyvqa>=99"))))
    gate = "evaluate.gate=easy-vqa>=99"
    assert "gate      easy-vqa>=99" in list(check_run(run_config(packs, gate)))


def test_every_broken_picture_is_named(run_config: Any, pack_dir: Path) -> None:
    for number in (1, 4):
        file = pack_dir / f"images/square_{number:02d}.png"
        file.write_bytes(file.read_bytes()[:90])
    with pytest.raises(DataError, match=r"^sample 'train-01': can't read picture .*\nsample 'train-04': can't read"):
        list(check_run(run_config(f'data.train=["{pack_dir}"]')))


READY = re.compile(
    r"ready     training takes about 1 s \((\d+) steps on this CPU\), about [\d.,]+ [kMG]B of [\d,.]+ GB memory"
    r" and about ([\d.,]+) ([kMG]B) of [\d,.]+ GB disk"
)


def test_the_last_line_says_what_the_run_takes(run_config: Any, tmp_path: Path) -> None:
    config: RunConfig = run_config("prune.remove=2", "train.save_steps=100", "evaluate.packs=[]", "train.lr=auto")
    lines = list(check_run(config, tmp_path / "run"))
    rate = auto_rate("lora", 2 / 4, config.train.lora.r)
    assert f"rates     train.lr auto is {rate:g}, of 2 of 4 layers" in lines
    ready = READY.fullmatch(lines[-1])
    assert ready
    flow = Flow(config, tmp_path / "run")
    flow.everything()
    assert (int(ready[1]), rate) == (flow.train().steps, flow.train().lr)
    card = (tmp_path / "run/checkpoint/README.md").read_text(encoding="utf-8")
    assert f"LoRA at a learning rate of {rate:g}." in card
    assert f"\n  lr: {rate:g}\n" in card
    log = (tmp_path / "run/train_log.jsonl").read_text(encoding="utf-8").splitlines()
    assert max(json.loads(line)["lr"] for line in log) == pytest.approx(rate, rel=0.05)
    kept = sum(
        (tmp_path / "run" / folder / name).stat().st_size
        for folder, name in (("checkpoint", "adapter_model.safetensors"), ("pruned", "model.safetensors"))
    )
    said = float(ready[2].replace(",", "")) * {"kB": 1e3, "MB": 1e6, "GB": 1e9}[ready[3]]
    # Checkpoints to go on from are in it, which are gone by now.
    with safe_open(tmp_path / "run/checkpoint/adapter_model.safetensors", "np") as adapter:
        trained = sum(adapter.get_tensor(name).size for name in adapter.keys())  # noqa: SIM118
    assert said == pytest.approx(kept + 3 * 12 * trained, rel=0.1)


def test_steps_are_those_of_the_samples_that_train(run_config: Any) -> None:
    # Of 13 samples half are held out: 2 steps of 4, where all 13 would make 4.
    lines = list(check_run(run_config("data.validate=50%", "train.epochs=1", "prune.remove=0", "evaluate.packs=[]")))
    told_of = re.search(r"(\d+) samples are measured, (\d+) train", "\n".join(lines))
    assert told_of
    ready = READY.fullmatch(lines[-1])
    assert ready
    assert int(ready[1]) == math.ceil(int(told_of[2]) / 4) < math.ceil(13 / 4)


def test_healing_is_told_with_its_steps(run_config: Any, tmp_path: Path) -> None:
    config = run_config("heal.share=40%", "heal.text=0", "evaluate.packs=[]", "train.max_steps=1")
    lines = list(check_run(config))
    assert "heal      40% of the training data, LoRA of region, 0% without a picture, by 1 ce + 1 kl" in lines
    (steps,) = re.findall(r", healing about 1 s \((\d+) steps\), about", lines[-1])
    flow = Flow(config, tmp_path / "run")
    flow.everything()
    assert flow.heal().steps == int(steps)
    until = ("prune.until='visual>=90'", f"prune.until_packs={json.dumps(config.data.train)}")
    for more in (("heal.share=null", "heal.steps=1"), ("heal.region=beside",), ("heal.region=all",), until):
        assert re.search(r"healing about 1 s \(\d+ steps?\)", list(check_run(run_config("heal.share=9%", *more)))[-1])


def test_a_model_that_loses_layers_before_is_forecast_without_them(run_config: Any) -> None:
    from striate.pipeline.checking import run_forecast

    region = Region(layers=(1,), num_layers=4, spec="ids:1", selector="ids")
    shape = SimpleNamespace(layers=("a", "b", "c", "d"))
    for when, left in (("before", ("a", "b")), ("after", ("a", "b", "c", "d"))):
        config = run_config("prune.remove=2", f"prune.when={when}")
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(run_forecast, "replace", lambda one, layers: SimpleNamespace(layers=layers))
            smaller, own = run_forecast._tuned(config, shape, region)
        assert (smaller.layers, own.num_layers, own.layers) == (left, len(left), (1,))


def test_too_little_of_anything_is_said(run_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("striate.pipeline.checking.run_forecast._memory_of", lambda device: 1e5)
    assert "0 GB memory, WHICH IS TOO LITTLE" in list(check_run(run_config()))[-1].replace("100 kB", "0 GB")


def test_whole_steps_and_layers_by_scores_are_forecast(run_config: Any, tmp_path: Path, monkeypatch: Any) -> None:
    # So slow that launching counts for nothing.
    slow = Accelerator("slow", "slow", 1e6, 1e6, 1.0, "")
    monkeypatch.setattr("striate.pipeline.checking.run_forecast._rates", lambda *_: slow)

    def forecast(*settings: str) -> RunForecast:
        config: RunConfig = run_config("prune.remove=0", "select.region=ids:1", *settings)
        plan = model_plan(config)[0]
        assert plan is not None
        samples = read_many(list(map(Path, config.data.train)), None, 0, SourceOptions.of(config.data))
        lengths = check_lengths(config, PictureLimits.of(config.machine), samples)[0]
        region = check_region_ahead(config, parse_spec(config.select.region), plan.anatomy.num_layers)
        return forecast_run(config, plan, region, lengths, tmp_path)

    rule = "train.image_tokens=region"
    every, ruled, tenth = forecast(), forecast(rule), forecast(rule, "train.image_whole_every=10")
    assert ruled.seconds < every.seconds
    assert tenth.seconds == pytest.approx(0.9 * ruled.seconds + 0.1 * every.seconds)
    # Whole steps need most.
    assert tenth.memory == every.memory > ruled.memory
    # As much as layers that scores may choose take at most: all others than the region's.
    scored = forecast(rule, "train.image_also=scores:block-influence:2")
    named = forecast(rule, "train.image_also=ids:0,2")
    assert (scored.seconds, scored.memory) == (named.seconds, named.memory)
    # Those of a region by scores are not known either: one that would be it must not end the forecast.
    unknown = "select.region=scores:block-influence:1"
    by_scores = forecast(unknown, rule, "train.image_also=bottom:1")
    assert ruled.seconds < by_scores.seconds < every.seconds


def test_a_missing_shard_is_named(tiny_llava_dir: Path) -> None:
    folder = tiny_llava_dir
    # Beside a whole weight file an index counts for nothing.
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"lacks 2 shards of its weights, such as '\.\./model\.safetensors'"):
        check_weights_whole(folder)
