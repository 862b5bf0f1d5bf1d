"""Which models a run folder, a model's folder or a hub id stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from striate.cli.console import ERR, RichProgress
from striate.cli.options import chosen_places
from striate.config import dump_config, parse_config
from striate.errors import ConfigError, ModelError, StriateError
from striate.models.io import hub_reach
from striate.pipeline.run_models import model_of, models_of


def model(folder: Path, base: str = "") -> Path:
    """Write what makes `folder` a model's, or an adapter's on `base`."""
    folder.mkdir(parents=True)
    content = {"base_model_name_or_path": base} if base else {"model_type": "llava"}
    (folder / ("adapter_config.json" if base else "config.json")).write_text(json.dumps(content))
    return folder


def run(folder: Path, path: str, *settings: str) -> Path:
    """Write what makes `folder` a run's that began with the model at `path`."""
    folder.mkdir()
    config = parse_config({"model": {"path": path}, "data": {"train": ["d"]}, "prune": {"remove": 1}}, settings)
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "run.json").write_text("{}")
    return folder


def test_a_run_has_the_models_that_it_made(tmp_path: Path) -> None:
    start = model(tmp_path / "start")
    place = run(tmp_path / "run", str(start))
    assert list(models_of(place)) == ["start"]
    with pytest.raises(ModelError, match="has made no model yet"):
        model_of(place)
    model(place / "checkpoint", str(start))
    tuned = model_of(place)
    assert (tuned.label, tuned.path, tuned.base, tuned.run) == (
        "tuned",
        str(place / "checkpoint"),
        str(start),
        place,
    )
    model(place / "pruned")
    assert list(models_of(place)) == ["start", "tuned", "pruned"]
    assert (model_of(place).label, model_of(place).adapter) == ("pruned", False)
    assert model_of(place, "tuned").adapter
    with pytest.raises(ModelError, match=r"(?s)has no model 'unhealed'.*start, tuned, pruned.*run the stage"):
        model_of(place, "unhealed")


def test_one_model_has_no_labels_and_may_be_named_twice_and_a_run_has_to_have_begun(tmp_path: Path) -> None:
    place = str(model(tmp_path / "tiny"))
    with pytest.raises(ModelError, match=r"(?s)is one model, and --model 'tuned' chooses.*leave --model out"):
        model_of(place, "tuned")
    assert list(chosen_places([place] * 4, None)) == ["tiny", f"tiny ({place})", "tiny (2)", "tiny (3)"]
    (unfinished := run(tmp_path / "begun", place)).joinpath("run.json").unlink()
    with pytest.raises(ModelError, match=r"(?s)and no run\.json: no stage.*striate run .*config.yaml --out"):
        model_of(unfinished)
    with pytest.raises(ConfigError, match=r"(?s)names 'xyz'.*next:    choose among these, or leave --models out"):
        chosen_places([place, str(run(tmp_path / "run", place))], "xyz")


def test_a_run_that_stopped_before_healing_says_which_model_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = run(tmp_path / "run", str(model(tmp_path / "start")), "heal.steps=1")
    model(place / "checkpoint", str(tmp_path / "start"))
    model(place / "unhealed")
    told = f"healing has not finished: the pruned model is 'unhealed'; `striate prune --out {place}` heals it\n"
    assert model_of(place, progress=RichProgress(ERR)).label == "unhealed"
    assert capsys.readouterr().err == told
    assert list(chosen_places([str(place)], None)) == ["start", "tuned"]
    assert capsys.readouterr().err == told
    assert model_of(place, "unhealed", RichProgress(ERR)).label == "unhealed"
    model(place / "pruned")
    assert model_of(place, progress=RichProgress(ERR)).label == "pruned"
    assert capsys.readouterr().err == ""


def test_where_layers_go_first_the_tuned_model_is_the_last(tmp_path: Path) -> None:
    place = run(tmp_path / "run", "owner/name", "prune.when=before", "model.revision=v1")
    model(place / "pruned")
    model(place / "checkpoint", str(place / "pruned"))
    assert list(models_of(place)) == ["start", "pruned", "tuned"]
    assert (models_of(place)["start"].path, models_of(place)["start"].revision) == ("owner/name", "v1")


def test_a_folder_or_hub_id_is_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []
    monkeypatch.setattr(hub_reach, "check_reach", lambda *name: asked.append(name))
    whole, adapter = model(tmp_path / "whole"), model(tmp_path / "adapter", "../whole")
    assert model_of(whole).path == str(whole)
    assert model_of(adapter).base == str(whole)
    assert model_of("owner/name").path == "owner/name"
    assert list(models_of("owner/name")) == ["model"]
    assert asked == [("owner/name", None)] * 2


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("missing", "there is no such folder"),
        ("empty", "has no config.json"),
        ("a file", "is a file"),
        ("half", "has no config.yaml"),
        ("", "the name is empty"),
    ],
)
def test_what_holds_no_model_is_refused(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text("{}")
    (tmp_path / "a file").write_text("")
    with pytest.raises(StriateError, match=text):
        models_of(tmp_path / name if name else " ")
