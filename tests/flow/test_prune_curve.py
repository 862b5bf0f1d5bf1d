"""`striate prune --curve`: every number of layers is tried once and kept, and the run's own models stay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from striate.artifacts import Curve, EvalRecord, GateResult, GateRow, PruneRecord, Trial, read_document
from striate.cli import app
from striate.config import RunConfig
from striate.errors import ArtifactError, ConfigError, StriateError
from striate.pipeline import Flow
from striate.pipeline.trials import prune_trials, until_run
from striate.pipeline.validate import check_run
from striate.stages import evaluate as evaluate_stage
from striate.stages import heal as heal_stage
from striate.stages.report import report

GREEDY = (
    "prune.scorer=answer-loss",
    "prune.samples=4",
    "prune.remove=1",
    "select.region=ids:1",
    "train.max_steps=1",
    "evaluate.limit=6",
)


@pytest.fixture(autouse=True)
def quick_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prune_trials, "PROMPT_TOKENS", 24)
    monkeypatch.setattr(prune_trials, "NEW_TOKENS", 2)
    monkeypatch.setattr(prune_trials, "REPEATS", 1)


@pytest.fixture(scope="module")
def greedy(
    run_config: Callable[..., RunConfig], saved_pack: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., RunConfig]:
    """A function that returns the config of a run that ranks by answers, with visual and text tasks."""
    text = tmp_path_factory.mktemp("packs") / "words"
    text.mkdir()
    row = {"id": "w", "task": "words", "metric": "exact", "kind": "text", "question": "Say it.", "answers": ["it"]}
    (text / "test.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return lambda *more: run_config(*GREEDY, f"evaluate.packs=[{saved_pack}, {text}]", *more)


@pytest.fixture(scope="module")
def tuned_run(greedy: Callable[..., RunConfig], listener: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained, to copy."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    flow = Flow(greedy(), out, progress=listener())
    flow.select()
    flow.train()
    return out


@pytest.fixture
def run(tuned_run: Path, tmp_path: Path) -> Path:
    """A run that was trained."""
    return Path(shutil.copytree(tuned_run, tmp_path / "run"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that are asked, by their names, as the test goes on."""
    names: list[str] = []
    evaluate = evaluate_stage.evaluate

    def noting(*args: Any, label: str, **kwargs: Any) -> Any:
        names.append(label)
        return evaluate(*args, label=label, **kwargs)

    monkeypatch.setattr(evaluate_stage, "evaluate", noting)
    return names


def test_a_curve_that_is_killed_goes_on_and_is_then_up_to_date(
    greedy: Callable[..., RunConfig], listener: Any, run: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, write = greedy(), prune_trials.write_document
    flow = Flow(config, run, progress=listener())

    def stopping(path: Path, document: Any) -> None:
        write(path, document)
        if isinstance(document, Trial):
            raise KeyboardInterrupt

    monkeypatch.setattr(prune_trials, "write_document", stopping)
    with pytest.raises(KeyboardInterrupt):
        flow.curve("0:2")
    monkeypatch.setattr(prune_trials, "write_document", write)
    assert asked == ["start", "tuned", "1 layer removed"]
    heard = listener()
    flow = Flow(config, run, progress=heard)
    curve = flow.curve("0:2")
    assert asked == ["start", "tuned", "1 layer removed", "2 layers removed"]
    assert not any("ranking takes" in line or "goes on after" in line for line in heard.said)
    assert [point.count for point in curve.points] == [0, 1, 2]
    assert [sorted(curve.order[:count]) for count in (1, 2)] == [list(point.removed) for point in curve.points[1:]]
    whole, *smaller = curve.points
    assert whole.decode == 1
    assert all(point.speed and point.parameters < whole.parameters and point.bytes < whole.bytes for point in smaller)
    assert (run / "curve.csv").read_text().count("\n") == 4
    assert not (run / "pruned").exists()
    assert curve.recommendation is not None
    heard = listener()
    again = Flow(config, run, progress=heard).curve("0:2")
    assert heard.said == ["curve: up to date"]
    assert again == curve == read_document(run / "curve.json", Curve)
    # One more, by the same ranking: the others are not asked again.
    longer = Flow(config, run, progress=listener(), overwrite=True).curve("0:3")
    assert asked[4:] == ["3 layers removed"]
    assert longer.order[:2] == curve.order
    pruned = Flow(config, run, progress=listener()).prune()
    assert pruned.removed == curve.points[1].removed


@pytest.mark.parametrize(
    ("spec", "overrides", "message"),
    [
        ("0:4", (), "4 layers to remove, but 3 of 4 lie outside region 'ids:1'"),
        ("0:2", ("evaluate.packs=[]",), "evaluate.packs is empty"),
        ("0:2", ("prune.when=before",), "prune.when is before"),
    ],
)
def test_a_curve_that_can_not_be_made_is_refused_before_anything_is_asked(
    greedy: Callable[..., RunConfig],
    listener: Any,
    run: Path,
    asked: list[str],
    spec: str,
    overrides: tuple[str, ...],
    message: str,
) -> None:
    flow = Flow(greedy(*overrides), run, progress=listener(), overwrite=True)
    with pytest.raises(ConfigError, match=message):
        flow.curve(spec)
    assert asked == []


def test_a_curve_with_healing_has_both_models_of_a_count_and_asks_the_teacher_once(
    greedy: Callable[..., RunConfig], listener: Any, run: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = greedy("heal={steps: 1, text: 0}")
    heal = heal_stage.heal

    def dying(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(heal_stage, "heal", dying)
    with pytest.raises(KeyboardInterrupt):
        Flow(config, run, progress=listener(), overwrite=True).curve("0:1")
    monkeypatch.setattr(heal_stage, "heal", heal)
    # Killed once more as it clears up after healing.
    remove_tree = shutil.rmtree

    def killed(path: Path, *args: Any, **kwargs: Any) -> None:
        if Path(path).suffix == ".healing":
            raise KeyboardInterrupt
        remove_tree(path, *args, **kwargs)

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        Flow(config, run, progress=listener()).curve("0:1")
    monkeypatch.setattr(shutil, "rmtree", remove_tree)
    assert [path for path in (run / "trials").iterdir() if path.suffix == ".healing"]
    stored = {path: path.stat().st_mtime_ns for path in (run / ".teacher").iterdir()}
    assert stored
    curve = Flow(config, run, progress=listener()).curve("0:1")
    assert asked == ["start", "tuned", "1 layer removed", "1 layer removed, healed"]
    assert [(point.count, point.healed) for point in curve.points] == [(0, False), (1, False), (1, True)]
    _, cut, healed = curve.points
    assert (cut.removed, cut.parameters, cut.speed) == (healed.removed, healed.parameters, healed.speed)
    assert not [path for path in (run / "trials").iterdir() if "healing" in path.name]
    assert not list((run / "trials").rglob("*.safetensors"))
    assert stored == {path: path.stat().st_mtime_ns for path in (run / ".teacher").iterdir()}


def held(passing: Callable[[int, str], bool]) -> Callable[..., GateResult]:
    """What holds models against a gate of visual>=99 and text>=98 by how many layers they lack."""

    def hold(gate: str, baseline: str, results: dict[str, Any], repetitions: int, seed: int) -> GateResult:
        (label,) = set(results) - {baseline}
        rows = []
        for scope, threshold in (("visual", 99.0), ("text", 98.0)):
            passed = passing(int(label.split()[0]), scope)
            kept = threshold + (0.5 if passed else -0.5)
            rows.append(
                GateRow(
                    condition=f"{scope}>={threshold:g}",
                    label=label,
                    scope=scope,
                    threshold=threshold,
                    retention=kept,
                    low=kept - 1,
                    high=kept + 1,
                    n=6,
                    passed=passed,
                    resolvable=False,
                )
            )
        return GateResult(gate=gate, baseline=baseline, rows=tuple(rows))

    return hold


def test_as_many_layers_go_as_the_gate_bears_and_the_bound_that_stopped_it_is_said(
    greedy: Callable[..., RunConfig], listener: Any, run: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(until_run, "hold_against", held(lambda count, scope: scope == "visual" or count < 3))
    config = greedy("prune.remove=100%", "prune.until='visual>=99,text>=98'")
    heard = listener()
    record = Flow(config, run, progress=heard, overwrite=True).prune()
    assert asked == ["tuned", "2 layers removed", "3 layers removed"]
    assert "prune: goes on after cut 2 of 2" in heard.said
    assert len(record.removed) == 2
    assert record.until is not None
    assert (record.until.most, record.until.count, record.until.stopped_by) == (3, 2, ("text>=98",))
    assert [(trial.count, trial.passed) for trial in record.until.trials] == [(2, True), (3, False)]
    assert record.until.trials[0].removed == record.removed
    assert not record.until.held_out
    said = "prune: visual>=99,text>=98 bears 2 layers; with 3 removed, text 97.5% (96.5 to 98.5), 98% is asked"
    assert said in heard.said
    assert any("prune.until asks the test packs themselves" in line for line in heard.said)
    assert (run / "pruned" / "config.json").is_file()
    assert read_document(run / "prune.json", PruneRecord) == record
    heard = listener()
    Flow(config, run, progress=heard).prune()
    assert heard.said == ["prune: up to date"]
    # The curve asks no model again that was tried.
    Flow(config, run, progress=listener()).curve("0:3")
    assert asked[3:] == ["start", "1 layer removed"]


def test_a_model_of_the_run_that_was_asked_is_no_trial(
    greedy: Callable[..., RunConfig], listener: Any, run: Path, asked: list[str]
) -> None:
    flow = Flow(greedy(), run, progress=listener())
    flow.prune()
    flow.evaluate()
    heard = listener()
    curve = Flow(greedy(), run, progress=heard).curve("0:1")
    assert asked == ["start", "tuned", "pruned"]
    assert "1 layer removed: asked already as a model of this run" in heard.said
    own = read_document(run / "eval" / "pruned.json", EvalRecord)
    (score,) = [row for row in curve.points[1].scores if (row.kind, row.answers) == ("visual", "all")]
    assert score.score == pytest.approx(own.visual)
    assert curve.points[1].bytes == read_document(run / "prune.json", PruneRecord).bytes_after


def test_a_gate_that_no_count_meets_removes_none(
    greedy: Callable[..., RunConfig], listener: Any, run: Path, asked: list[str]
) -> None:
    heard = listener()
    config = greedy("prune.remove=3", "prune.until='visual>=1000'")
    record = Flow(config, run, progress=heard, overwrite=True).prune()
    assert (record.removed, record.parameters_after) == ((), record.parameters_before)
    assert record.until is not None
    assert (record.until.count, record.until.stopped_by) == (0, ("visual>=1000",))
    assert any(line.startswith("prune: visual>=1000 bears no layer less, and none is removed") for line in heard.said)
    assert "prune: removed no layers" in heard.said
    assert asked == ["tuned", "2 layers removed", "1 layer removed"]
    beside = greedy("prune.remove=1", "prune.until='visual>=1000'", "heal={steps: 1, text: 0, region: beside}")
    with pytest.raises(ConfigError, match=r"bears no layer less, and heal\.region beside"):
        Flow(beside, run, progress=listener(), overwrite=True).prune()


def test_held_out_packs_choose_by_healed_models_and_the_test_packs_are_not_asked(
    greedy: Callable[..., RunConfig],
    listener: Any,
    run: Path,
    saved_pack: Path,
    tmp_path: Path,
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(until_run, "hold_against", held(lambda count, scope: True))
    other = Path(shutil.copytree(saved_pack, tmp_path / "held-out"))
    config = greedy(f"prune.until_packs=[{other}]", "prune.until='visual>=99'", "heal={steps: 1, text: 0}")
    heard = listener()
    record = Flow(config, run, progress=heard, overwrite=True).prune()
    assert record.until is not None
    assert (record.until.packs, record.until.held_out, record.until.count) == (("held-out",), True, 1)
    assert "prune: visual>=99 bears 1 layer, the most that prune.remove allows" in heard.said
    assert asked == ["tuned", "1 layer removed, healed"]
    assert record.until.healed
    assert all((run / name / "config.json").is_file() for name in ("unhealed", "pruned"))
    assert not (run / "eval").exists()
    assert not any("asks the test packs themselves" in line for line in heard.said)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("prune.until='visual>=99'", "prune.remove=0"), "prune.until is set, but prune.remove is 0"),
        (("prune.until='visual>=99'", "evaluate.packs=[]"), "nothing would be measured"),
        (("prune.until='visual>=99:pruned'",), "names a model"),
        (("prune.until='visual>=99'", "prune.when=before"), "with prune.when before there is none"),
        (("prune.until='shapes>=99'",), "nothing called 'shapes' is measured"),
        (("prune.until='visual=99'",), "is no condition"),
    ],
)
def test_conditions_that_can_not_be_held_are_refused_before_anything_runs(
    greedy: Callable[..., RunConfig], listener: Any, tmp_path: Path, overrides: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Flow(greedy(*overrides), tmp_path / "run", progress=listener())


def test_the_command_line_shows_the_curve_and_leaves_the_run_as_it_was(run: Path) -> None:
    shown = CliRunner().invoke(app, ["prune", "--out", str(run), "--curve", "0:1"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "of 4 layers, ranked by answer-loss" in shown.stdout
    assert read_document(run / "curve.json", Curve).recommendation.text in shown.stdout  # type: ignore[union-attr]
    assert not (run / "prune.json").exists()
    assert "What more layers would cost" in report(run).read_text(encoding="utf-8")


def test_json_holds_the_whole_curve_and_the_record_and_nothing_else_is_printed_there(run: Path) -> None:
    options = ["prune", "--out", str(run), "--json"]
    shown = CliRunner().invoke(app, [*options, "--curve", "0:1"])
    assert shown.exit_code == 0, shown.output
    assert Curve.model_validate_json(shown.stdout) == read_document(run / "curve.json", Curve)
    assert "curve: 1 layer removed, 1 of 1" in shown.stderr
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 0, shown.output
    printed = json.loads(shown.stdout)
    assert PruneRecord.model_validate(printed["prune"]) == read_document(run / "prune.json", PruneRecord)
    assert printed["heal"] is None
    assert "prune: removed layer " in shown.stderr


def test_a_folder_in_the_place_of_a_trial_is_said_before_a_model_is_cut(run: Path, asked: list[str]) -> None:
    options = ["prune", "--out", str(run), "--curve", "0:1"]
    assert CliRunner().invoke(app, options).exit_code == 0
    (trial,) = (run / "trials").glob("001-[0-9a-f]*.json")
    trial.unlink()
    trial.mkdir()
    asked.clear()
    (run / "curve.json").unlink()
    shown = CliRunner().invoke(app, options)
    assert shown.exit_code == 1
    assert f"can't write {trial}: Is a directory" in shown.stderr
    assert f"next:    move the folder {trial} away" in shown.stderr
    assert asked == []
    assert trial.is_dir()


def test_check_says_what_chooses_the_number_of_layers(greedy: Callable[..., RunConfig], saved_pack: Path) -> None:
    lines = list(check_run(greedy("prune.until='visual>=99'", "prune.remove=50%")))
    assert "until     visual>=99, on the test packs themselves" in lines
    assert any(line.startswith("prune     at most 2 of 4 layers") for line in lines)
    with pytest.raises(ConfigError, match="no text task is scored"):
        list(check_run(greedy("prune.until='text>=99'", f"prune.until_packs=[{saved_pack}]")))


def test_check_reads_the_packs_that_choose_the_number(
    greedy: Callable[..., RunConfig], saved_pack: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(saved_pack, tmp_path / "held-out"))
    until = ("prune.until='visual>=99'", f"prune.until_packs=[{other}]")
    lines = list(check_run(greedy(*until)))
    assert any(line.startswith(f"pack      {other}: ") for line in lines)
    assert sum(line.startswith("prompts") for line in lines) == 2
    items = [json.loads(line) for line in (other / "test.jsonl").read_text(encoding="utf-8").splitlines()]
    items[0]["question"] += " red" * 5000
    (other / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    with pytest.raises(StriateError, match=str(items[0].get("id", "item"))):
        list(check_run(greedy(*until)))


def test_a_curve_of_a_run_that_was_not_tuned_says_what_to_do_first(
    greedy: Callable[..., RunConfig], listener: Any, tmp_path: Path
) -> None:
    flow = Flow(greedy(), tmp_path / "run", progress=listener())
    with pytest.raises(ArtifactError, match="run `striate select` first"):
        flow.curve("0:2")
    flow.select()
    with pytest.raises(ArtifactError, match="run `striate train` first"):
        flow.curve("0:2")
