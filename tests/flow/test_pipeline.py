"""The whole flow on a tiny LVLM: every artifact, what is up to date, what is done again, what is refused."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from html import unescape
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

from striate.artifacts import (
    DataNotes,
    EvalRecord,
    Prediction,
    PruneRecord,
    Region,
    Retention,
    Scores,
    TrainRecord,
    read_document,
    read_lines,
    write_document,
)
from striate.config import RunConfig, load_config
from striate.errors import ArtifactError, ModelError, SpecError, StriateError
from striate.models.visual_token_skipping.visual_compute import VisualCompute
from striate.pipeline import Flow
from striate.pipeline.resident_model import ResidentModel
from striate.pipeline.sweeps.arm_flow import ArmFlow
from striate.pipeline.validate import check_run
from striate.runs.run_record import RunRecord
from striate.selectors.spec.grammar import resolve
from striate.storage.fingerprints import fingerprint

STAGES = ["analyze", "select", "train", "prune", "evaluate:start", "evaluate:tuned", "evaluate:pruned"]
METHODS = ["lora", "full"]
# These follow from the seed alone; the others hold seconds or memory.
SAME = ["scores.json", "region.json", *(f"eval/{label}.predictions.jsonl" for label in ("start", "tuned", "pruned"))]
SAME += ["eval/retention.json", "pruned/model.safetensors", "config.yaml"]
WEIGHTS = {"lora": "checkpoint/adapter_model.safetensors", "full": "checkpoint/model.safetensors"}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def finished(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A finished run folder of each method: to be read only."""
    folders = {}
    for method in METHODS:
        folders[method] = tmp_path_factory.mktemp("finished") / method
        Flow(run_config(f"train.method={method}"), folders[method], progress=listener()).everything()
    return folders


@pytest.fixture
def own(finished: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the finished LoRA run."""
    return Path(shutil.copytree(finished["lora"], tmp_path / "own"))


def unlike(one: Path, other: Path, names: list[str]) -> list[str]:
    return [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()]


@pytest.mark.parametrize("method", METHODS)
def test_every_artifact_is_there_and_whole(
    finished: dict[str, Path], run_config: Callable[..., RunConfig], method: str
) -> None:
    run = finished[method]
    assert load_config(run / "config.yaml") == run_config(f"train.method={method}")
    assert [path.name for path in run.rglob("*") if path.name.startswith(".")] == []
    scores, region = read_document(run / "scores.json", Scores), read_document(run / "region.json", Region)
    assert (scores.num_layers, scores.samples, len(scores.scorers)) == (4, 6, 2)
    assert (region.layers, region.num_layers, region.spec) == ((0, 2), 4, "uniform:50%")
    train = read_document(run / "train.json", TrainRecord)
    assert (train.steps, train.samples, train.trainable.method, train.epochs) == (4, 13, method, 1.0)
    assert train.trainable.region == region
    assert 0 < train.trainable.trainable < train.trainable.total
    log = [json.loads(line) for line in (run / "train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log] == [1, 2, 3, 4]
    assert (log[0]["loss"], log[-1]["loss"]) == (train.first_loss, train.last_loss)
    assert train.last_loss < train.first_loss
    pruned = read_document(run / "prune.json", PruneRecord)
    assert len(pruned.removed) == 1
    assert set(pruned.removed) <= set(region.outside)
    assert pruned.bytes_before - pruned.bytes_after == 4 * (pruned.parameters_before - pruned.parameters_after) > 0
    assert pruned.self_test is not None
    assert pruned.self_test.cached_equals_uncached
    for label, layers in (("start", 4), ("tuned", 4), ("pruned", 3)):
        record = read_document(run / "eval" / f"{label}.json", EvalRecord)
        assert (record.label, record.num_layers, sum(task.n for task in record.tasks)) == (label, layers, 8)
        assert record.size_bytes > 0
        assert len(read_lines(run / "eval" / f"{label}.predictions.jsonl", Prediction)) == 8
    retention = read_document(run / "eval" / "retention.json", Retention)
    assert retention.baseline == "start"
    assert {row.label for row in retention.rows} == {"tuned", "pruned"}
    assert retention.against == {"tuned": "start", "pruned": "tuned"}
    answers = {name: read_lines(run / "eval" / f"{name}.predictions.jsonl", Prediction) for name in retention.against}
    for row in retention.held:
        assert (row.label, row.baseline) == ("pruned", "tuned")
        if row.pack != "*":
            means = {name: fmean(item.score for item in items if (item.task, item.metric) == (row.task, row.metric))
                     for name, items in answers.items()}  # fmt: skip
            assert (row.baseline_score, row.score) == pytest.approx((means["tuned"], means["pruned"]))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "</html>" in page
    notes = read_document(run / "eval" / "data_notes.json", DataNotes).lines
    assert "items are in the training data, same picture and question" in notes[0]
    assert all(line in unescape(page) for line in notes)


@pytest.mark.parametrize("method", METHODS)
def test_record_says_what_made_it(finished: dict[str, Path], method: str) -> None:
    record = read_document(finished[method] / "run.json", RunRecord)
    assert list(record.stages) == STAGES
    for stage in record.stages.values():
        assert stage.status == "done"
        assert all(fingerprint(finished[method] / name) == value for name, value in stage.outputs.items())
    assert record.fingerprints.keys() == {"model", "data:pack", "pack:pack"}
    assert record.device == "cpu"


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_is_an_ordinary_one(finished: dict[str, Path], method: str) -> None:
    names = {path.name for path in (finished[method] / "checkpoint").iterdir()}
    assert {"region.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"} <= names
    assert {"lora": "adapter_config.json", "full": "config.json"}[method] in names
    assert (
        json.loads((finished[method] / "pruned" / "config.json").read_text())["text_config"]["num_hidden_layers"] == 3
    )


def test_adapter_names_its_base_by_a_whole_path(
    run_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    from striate.demo.places import locate_model
    from striate.progress import Silent

    model = Path(run_config().model.path)
    monkeypatch.chdir(model.parent)
    assert locate_model(model.name, Silent()) == str(model.resolve())
    assert locate_model("owner/name", Silent()) == "owner/name"


@pytest.mark.parametrize("method", METHODS)
def test_second_run_changes_nothing(
    finished: dict[str, Path], run_config: Callable[..., RunConfig], listener: Any, method: str
) -> None:
    before = contents(finished[method])
    heard = listener()
    Flow(run_config(f"train.method={method}"), finished[method], progress=heard).everything()
    assert heard.said == [f"{stage}: up to date" for stage in STAGES]
    assert contents(finished[method]) == before


def test_same_seed_same_artifacts(
    finished: dict[str, Path], run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    config = load_config(finished["lora"] / "config.yaml")
    Flow(config, tmp_path / "again", progress=listener()).everything()
    assert unlike(tmp_path / "again", finished["lora"], [*SAME, WEIGHTS["lora"]]) == []


def test_another_seed_another_model(
    finished: dict[str, Path], run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    flow = Flow(run_config("seed=1"), tmp_path / "other", progress=listener())
    flow.analyze()
    flow.select()
    flow.train()
    assert unlike(tmp_path / "other", finished["lora"], ["region.json", WEIGHTS["lora"]]) == [WEIGHTS["lora"]]


def test_other_config_is_refused(own: Path, run_config: Callable[..., RunConfig], listener: Any) -> None:
    before = contents(own)
    with pytest.raises(ArtifactError) as caught:
        Flow(run_config("train.lr=0.02"), own, progress=listener())
    assert str(caught.value) == (
        f"{own} holds a run of another config: train.lr: 0.01 -> 0.02\n"
        "  allowed: the same config (machine:, report:, and what evaluate compares may differ)\n"
        "  next:    choose another --out, or use --overwrite to do the stages again that it changes"
    )
    assert contents(own) == before


def test_overwrite_redoes_only_what_follows(own: Path, run_config: Callable[..., RunConfig], listener: Any) -> None:
    before = contents(own)
    heard = listener()
    Flow(run_config("train.lr=0.02"), own, progress=heard, overwrite=True).everything()
    assert [line for line in heard.said if "up to date" in line] == [
        "analyze: up to date",
        "select: up to date",
        "evaluate:start: up to date",
    ]
    after = contents(own)
    assert after.keys() == before.keys()
    for name in ("scores.json", "region.json", "eval/start.json", "eval/start.predictions.jsonl"):
        assert after[name] == before[name]
    for name in (WEIGHTS["lora"], "pruned/model.safetensors", "train.json", "config.yaml"):
        assert after[name] != before[name]
    heard = listener()
    Flow(run_config("train.lr=0.02"), own, progress=heard).everything()
    assert heard.said == [f"{stage}: up to date" for stage in STAGES]


def test_fewer_stages_leave_no_stale_result(own: Path, run_config: Callable[..., RunConfig], listener: Any) -> None:
    Flow(run_config("prune.remove=0"), own, progress=listener(), overwrite=True).everything()
    retention = read_document(own / "eval" / "retention.json", Retention)
    assert {row.label for row in retention.rows} == {"tuned"}


def test_other_machine_and_title_keep_the_run(own: Path, run_config: Callable[..., RunConfig], listener: Any) -> None:
    heard = listener()
    Flow(run_config("machine.eval_batch=2", "report.title=Other"), own, progress=heard).everything()
    assert heard.said == [f"{stage}: up to date" for stage in STAGES]
    assert "Other" in (own / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("gone", "again"),
    [
        ("scores.json", ["analyze"]),
        ("region.json", ["select"]),
        ("checkpoint", ["train"]),
        ("train_log.jsonl", ["train"]),
        ("prune.json", ["prune"]),
        ("eval/tuned.json", ["evaluate:tuned"]),
        ("eval", ["evaluate:start", "evaluate:tuned", "evaluate:pruned"]),
    ],
)
def test_deleted_artifact_is_made_again(
    own: Path,
    finished: dict[str, Path],
    run_config: Callable[..., RunConfig],
    listener: Any,
    gone: str,
    again: list[str],
) -> None:
    shutil.rmtree(own / gone) if (own / gone).is_dir() else (own / gone).unlink()
    heard = listener()
    Flow(run_config("train.method=lora"), own, progress=heard).everything()
    assert [line for line in heard.said if "up to date" in line] == [
        f"{stage}: up to date" for stage in STAGES if stage not in again
    ]
    assert unlike(own, finished["lora"], [*SAME, WEIGHTS["lora"]]) == []
    assert contents(own).keys() == contents(finished["lora"]).keys()


@pytest.mark.parametrize("name", ["region.json", "checkpoint/adapter_config.json", "eval/tuned.predictions.jsonl"])
def test_artifact_changed_by_hand_is_refused(
    own: Path, run_config: Callable[..., RunConfig], listener: Any, name: str
) -> None:
    (own / name).write_text((own / name).read_text() + " ")
    changed = own / name.partition("/")[0] if name.startswith("checkpoint") else own / name
    with pytest.raises(ArtifactError) as caught:
        Flow(run_config(), own, progress=listener()).everything()
    assert f"{changed} was changed after" in str(caught.value)
    Flow(run_config(), own, progress=listener(), overwrite=True).everything()
    read_document(own / "region.json", Region)


def test_an_adapter_of_another_base_is_not_scored(
    own: Path, run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(own / "checkpoint", tmp_path / "other"))
    described = json.loads((other / "adapter_config.json").read_text())
    base = Path(described["base_model_name_or_path"])
    config = run_config(f"evaluate.others={{other: {other}}}", "evaluate.models=[start]", "train.method=lora")
    for place, changed in ((tmp_path / "copy", False), (tmp_path / "changed", True)):
        shutil.copytree(base, place)
        if changed:
            weights = place / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
        (other / "adapter_config.json").write_text(json.dumps(described | {"base_model_name_or_path": str(place)}))
        flow = Flow(config, tmp_path / f"run-{place.name}", progress=listener())
        if not changed:
            flow.evaluate()
            continue
        with pytest.raises(ModelError) as caught:
            flow.evaluate()
        assert f"the adapter in {other} names the base model " in str(caught.value)
        assert "check base_model_name_or_path in " in str(caught.value)
        assert not (flow.out / "eval" / "other.json").exists()


def test_changed_data_is_seen(
    run_config: Callable[..., RunConfig], listener: Any, pack_dir: Path, tmp_path: Path
) -> None:
    config = run_config(f"data.train=[{pack_dir}]")
    Flow(config, tmp_path / "run", progress=listener()).analyze()
    rows = json.loads((pack_dir / "train.json").read_text())
    (pack_dir / "train.json").write_text(json.dumps(rows[:-1]))
    with pytest.raises(ArtifactError, match=r"scores\.json was made from other inputs than analyze has now"):
        Flow(config, tmp_path / "run", progress=listener()).analyze()


def test_data_sets_of_one_name_are_told_apart(
    run_config: Callable[..., RunConfig], listener: Any, saved_pack: Path, tmp_path: Path
) -> None:
    twin = Path(shutil.copytree(saved_pack, tmp_path / "twin" / saved_pack.name))
    config = run_config(f"data.train=[{saved_pack}, {twin}]")
    Flow(config, tmp_path / "run", progress=listener()).analyze()
    noted = read_document(tmp_path / "run" / "run.json", RunRecord).fingerprints
    assert noted.keys() == {"model", "data:pack", f"data:pack ({twin})"}
    (twin / "train.json").write_text(json.dumps(json.loads((twin / "train.json").read_text())[:-1]))
    with pytest.raises(ArtifactError, match="was made from other inputs"):
        Flow(config, tmp_path / "run", progress=listener()).analyze()


@pytest.mark.parametrize(
    ("verb", "done", "lacks", "first"),
    [
        ("train", [], "region.json", "select"),
        ("train", ["analyze"], "region.json", "select"),
        ("prune", [], "region.json", "select"),
        ("prune", ["analyze", "select"], "checkpoint", "train"),
        ("prune", ["select", "train"], "scores.json", "analyze"),
        ("evaluate", ["analyze", "select"], "checkpoint", "train"),
        ("evaluate", ["analyze", "select", "train"], "pruned", "prune"),
    ],
)
def test_verb_before_its_predecessor(
    run_config: Callable[..., RunConfig],
    listener: Any,
    tmp_path: Path,
    verb: str,
    done: list[str],
    lacks: str,
    first: str,
) -> None:
    flow = Flow(run_config("train.max_steps=1", "evaluate.limit=1"), tmp_path / "run", progress=listener())
    for earlier in done:
        getattr(flow, earlier)()
    with pytest.raises(StriateError) as caught:
        getattr(flow, verb)()
    assert str(caught.value) == (
        f"{tmp_path / 'run'} has no {lacks} yet\n"
        f"  allowed: a run folder where `striate {first}` has run\n"
        f"  next:    run `striate {first}` first"
    )


def test_scores_region_needs_analyze(run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path) -> None:
    flow = Flow(run_config("select.region=scores:block-influence:2"), tmp_path / "run", progress=listener())
    with pytest.raises(ArtifactError) as caught:
        flow.select()
    assert f"{tmp_path / 'run'} has no scores.json yet" in str(caught.value)
    assert "next:    run `striate analyze` first" in str(caught.value)
    flow.analyze()
    assert len(flow.select()) == 2


def test_stale_predecessor_is_refused(own: Path, run_config: Callable[..., RunConfig], listener: Any) -> None:
    before = (own / "checkpoint" / "adapter_model.safetensors").read_bytes()
    flow = Flow(run_config("select.region=top:1"), own, progress=listener(), overwrite=True)
    with pytest.raises(ArtifactError) as caught:
        flow.train()
    assert str(caught.value) == (
        f"{own / 'region.json'} was made from other inputs than select has now\n"
        "  allowed: a run folder whose stages follow from each other\n"
        "  next:    run `striate select --overwrite` first"
    )
    assert (own / "checkpoint" / "adapter_model.safetensors").read_bytes() == before


def test_select_reads_no_weights(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ResidentModel, "load", lambda *_: pytest.fail("weights were read"))
    flow = Flow(run_config(), tmp_path / "run", progress=listener())
    assert flow.select().layers == (0, 2)


@pytest.mark.parametrize("method", METHODS)
def test_checkpoints_have_cards_with_the_figures_of_their_evaluation(method: str, finished: dict[str, Path]) -> None:
    for label, folder in (("tuned", "checkpoint"), ("pruned", "pruned")):
        text = (finished[method] / folder / "README.md").read_text()
        card = yaml.safe_load(text.split("---\n")[1])
        record = read_document(finished[method] / "eval" / f"{label}.json", EvalRecord)
        results = card["model-index"][0]["results"]
        values = [metric["value"] for result in results for metric in result["metrics"]]
        assert values == [round(task.score, 4) for task in record.tasks]
        assert card["library_name"] == ("peft" if (method, label) == ("lora", "tuned") else "transformers")
        assert "Config of the run" in text
        assert str(finished[method]) not in text
        assert ("layer-pruning" in card["tags"]) == (label == "pruned")


def test_a_changed_card_is_written_again_and_makes_no_stage_out_of_date(own: Path, listener: Any) -> None:
    card = own / "checkpoint" / "README.md"
    whole = card.read_text()
    card.write_text("changed by hand")
    told = listener()
    Flow(load_config(own / "config.yaml"), own, progress=told).everything()
    assert card.read_text() == whole


def test_a_region_file_of_image_layers_that_changes_makes_the_training_stale(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    also = tmp_path / "also.json"
    config = run_config("select.region=ids:1", "train.image_tokens=region", f"train.image_also={also}")
    plain = Flow(run_config("select.region=ids:1"), tmp_path / "plain", progress=listener())
    plain.select()
    assert "image_also" not in plain.keys.train()
    write_document(also, Region(layers=(0,), num_layers=4, spec="ids:0"))
    flow = Flow(config, tmp_path / "run", progress=listener())
    flow.select()
    flow.train()
    computed = read_document(tmp_path / "run" / "checkpoint" / "visual_compute.json", VisualCompute)
    assert computed.layers == (0, 1)
    write_document(also, Region(layers=(2,), num_layers=4, spec="ids:2"))
    with pytest.raises(ArtifactError, match="train"):
        Flow(config, tmp_path / "run", progress=listener()).train()
    write_document(also, Region(layers=(0,), num_layers=4, spec="ids:0"))
    heard = listener()
    Flow(config, tmp_path / "run", progress=heard).train()
    assert heard.said == ["train: up to date"]
    refused = run_config("select.region=ids:0", "train.image_tokens=region", f"train.image_also={also}")
    with pytest.raises(SpecError, match="has no effect: the region has its layers"):
        Flow(refused, tmp_path / "refused", progress=listener()).everything()
    assert not (tmp_path / "refused" / "checkpoint").exists()


def test_a_wrong_spec_of_image_layers_is_refused_before_analyze(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    overrides = ("select.region=scores:block-influence:2", "train.image_tokens=region", "train.image_also=unifrom:2")
    with pytest.raises(SpecError, match="did you mean"):
        Flow(run_config(*overrides), tmp_path / "run", progress=listener()).everything()
    assert not (tmp_path / "run" / "scores.json").exists()


def test_layers_that_scores_choose_compute_image_tokens_too(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    spec, out = "scores:block-influence:2", tmp_path / "run"
    config = run_config("select.region=ids:1", "train.image_tokens=region", f"train.image_also={spec}", "train.lr=auto")
    early = Flow(config, tmp_path / "early", progress=listener())
    early.select()
    with pytest.raises(ArtifactError, match=r"has no scores\.json yet"):
        early.train()
    assert ArmFlow(config, tmp_path / "arm").scores_wanted
    assert not ArmFlow(run_config("prune.scorer=answer-loss", "select.region=ids:1"), tmp_path / "none").scores_wanted
    list(check_run(config, out))
    Flow(config, out, progress=listener()).everything()
    scores = read_document(out / "scores.json", Scores)
    also = [layer for layer in resolve(spec, 4, scores).layers if layer != 1]
    computed = read_document(out / "checkpoint" / "visual_compute.json", VisualCompute)
    assert computed.layers == tuple(sorted([1, *also]))
    numbers = f"ids:{','.join(map(str, also))}"
    assert f"image_also: {numbers}" in (out / "checkpoint" / "README.md").read_text()
    assert f"image_also: {spec}" in (out / "config.yaml").read_text()
    again = Flow(config, out, progress=(heard := listener()))
    assert again.keys.train()["section"]["image_also"] == numbers
    again.everything()
    assert [line for line in heard.said if "up to date" not in line] == []
    # The same layers, by numbers: nothing trains again.
    named = config.model_copy(update={"train": config.train.model_copy(update={"image_also": numbers})})
    Flow(named, out, progress=(heard := listener()), overwrite=True).train()
    assert heard.said == ["train: up to date"]


def test_layers_by_scores_are_those_that_pruning_before_has_left(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    ruled, spec = ("select.region=ids:1", "train.image_tokens=region"), "scores:block-influence:100%"
    first = ("prune.when=before", "prune.remove=1", "prune.scorer=block-influence", "evaluate.models=[start]")
    flow = Flow(
        run_config(*ruled, "train.image_also=scores:block-influence:2", *first),
        tmp_path / "run",
        progress=listener(),
    )
    flow.everything()
    pruned = read_document(flow.out / "prune.json", PruneRecord)
    chosen = resolve("scores:block-influence:2", 4, read_document(flow.out / "scores.json", Scores)).layers
    computed = read_document(flow.out / "checkpoint" / "visual_compute.json", VisualCompute)
    assert computed.num_layers == 3
    assert computed.layers == tuple(sorted(pruned.old_to_new[one] for one in {1, *chosen} if one in pruned.old_to_new))
    refused = run_config(*ruled, f"train.image_also={spec}", *first)
    with pytest.raises(SpecError, match="and the region are all 4 layers together"):
        Flow(refused, tmp_path / "refused", progress=listener()).everything()


UP_TO_DATE = """
import sys
from typer.testing import CliRunner
from striate.cli import app

for verb in ("analyze", "select", "train", "prune", "evaluate", "run"):
    config = [f"{sys.argv[1]}/config.yaml"] if verb == "run" else []
    result = CliRunner().invoke(app, [verb, *config, "--out", sys.argv[1]])
    assert result.exit_code == 0 and "up to date" in result.output, (verb, result.output)
    assert "torch" not in sys.modules, verb
"""


def test_what_is_up_to_date_imports_nothing_that_works(
    run_config: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    Flow(run_config("evaluate.models=[start, pruned]"), tmp_path / "run", progress=listener()).everything()
    # The flow refers to itself, and holds the folder until it is collected.
    gc.collect()
    done = subprocess.run(
        [sys.executable, "-c", UP_TO_DATE, str(tmp_path / "run")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
