"""The image-text task for PEFT's comparison of methods: its experiments are regions, and one of them trains."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from striate.models.io.load import Loaded
from striate.selectors.spec.grammar import resolve

CONTRIB = Path(__file__).parents[2] / "contrib" / "peft_method_comparison"
TASK = CONTRIB / "image-text"
EXPERIMENTS = sorted((TASK / "experiments" / "lora").iterdir())
UNIFORM = "smolvlm-500M-region-uniform-25"
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255), "green": (0, 160, 0)}
# By hand: rank 32, hidden size 32, intermediate size 64, keys and values of size 16.
WEIGHTS_OF_A_LAYER = 32 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 64) * 3)


def module_of(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peft_comparison_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = found
    spec.loader.exec_module(found)
    return found


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, llava_builder: Callable[..., Loaded]) -> Path:
    """The task's folder, with a tiny LLaVA of 32 layers and 16 pictures."""
    folder = tmp_path_factory.mktemp("comparison") / "image-text"
    shutil.copytree(TASK, folder, ignore=shutil.ignore_patterns("__pycache__", "temporary_results"))
    loaded = llava_builder(num_layers=32)
    loaded.model.save_pretrained(folder / "model")
    loaded.processor.save_pretrained(folder / "model")
    for split, count in (("train", 12), ("test", 4)):
        rows = []
        (folder / "pictures" / split).mkdir(parents=True)
        for index in range(count):
            colour = list(COLOURS)[index % 3]
            Image.new("RGB", (40 + index, 32), COLOURS[colour]).save(folder / "pictures" / split / f"{index}.png")
            rows.append({"file_name": f"{index}.png", "question": "What colour is it?", "answer": colour})
        (folder / "pictures" / split / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    small = {"model_id": str(folder / "model"), "dataset_id": str(folder / "pictures"), "dtype": "float32"}
    small |= {"max_steps": 12, "eval_steps": 6, "valid_size": 3, "batch_size": 4, "max_new_tokens": 3}
    small |= {"optimizer_kwargs": {"lr": 0.01}}
    (folder / "experiments" / "lora" / UNIFORM / "training_params.json").write_text(json.dumps(small))
    return folder


@pytest.fixture
def run(task: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The task's script, in its folder."""
    pytest.importorskip("datasets", reason="needs datasets (the extra `dev`)")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "data", module_of(task / "data.py"))
    return module_of(task / "run.py")


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_an_experiment_adapts_the_layers_of_its_region_and_no_vision_layer(
    folder: Path, llava_builder: Callable[..., Loaded]
) -> None:
    from peft import PeftConfig, get_peft_model

    model = get_peft_model(llava_builder(num_layers=32).model, PeftConfig.from_pretrained(folder))
    adapted = {name.partition(".lora_")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    prefix = "base_model.model.model.language_model.layers."
    assert all(name.startswith(prefix) for name in adapted)
    name = folder.name.partition("-region-")[2]
    spec = name if name == "all" else name.replace("-", ":") + "%"
    region = resolve(spec, 32).layers
    assert sorted({int(name.removeprefix(prefix).partition(".")[0]) for name in adapted}) == list(region)
    assert len(adapted) == 7 * len(region)


def test_the_experiments_are_what_the_script_writes(tmp_path: Path) -> None:
    module_of(CONTRIB / "make_experiments.py").write(tmp_path)
    assert [folder.name for folder in sorted((tmp_path / "lora").iterdir())] == [one.name for one in EXPERIMENTS]
    for folder in EXPERIMENTS:
        for name in ("adapter_config.json", "training_params.json"):
            kept, made = (_read(where / name) for where in (folder, tmp_path / "lora" / folder.name))
            # What later versions of PEFT add has its default.
            assert {key: made[key] for key in kept.keys() & made.keys()} == kept


def _read(file: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(file.read_text()).items() if key != "peft_version"}


def test_one_experiment_trains_its_region_through_pefts_own_loader(run: ModuleType, task: Path, tmp_path: Path) -> None:
    file = run.main([str(task / "experiments" / "lora" / UNIFORM), "--results", str(tmp_path / "out")])
    assert file == tmp_path / "out" / f"lora--{UNIFORM}.json"
    found = json.loads(file.read_text())
    assert found["run_info"]["experiment_name"] == f"lora/{UNIFORM}"
    assert found["run_info"]["peft_config"]["peft_type"] == "LORA"
    trained = found["train_info"]
    assert (trained["status"], trained["num_trainable_params"]) == ("success", 8 * WEIGHTS_OF_A_LAYER)
    # Four bytes a weight, and what names them.
    assert trained["file_size"] == pytest.approx(4 * 8 * WEIGHTS_OF_A_LAYER, rel=0.05)
    first, second, last = trained["metrics"]
    assert [row["step"] for row in (first, second, last)] == [6, 12, 12]
    assert second["train loss"] < first["train loss"]
    assert set(first) == {"step", "train loss", "train samples", "valid accuracy"}
    assert set(last) == {"step", "train loss", "train samples", "test accuracy", "forgetting", "train total tokens"}
    # Training on a random model changes what it says of plain text.
    assert abs(last["forgetting"]) > 1e-4


def test_answers_alone_have_labels(run: ModuleType, task: Path) -> None:
    data = sys.modules["data"]
    config = run.read_config(task / "experiments" / "lora" / UNIFORM)
    train, valid, test = data.get_train_valid_test_datasets(config.dataset_id, 3, 0)
    assert [len(rows) for rows in (train, valid, test)] == [9, 3, 4]
    processor = run.AutoProcessor.from_pretrained(config.model_id)
    rows = [train[index] for index in range(3)]
    batch = data.training_batch(processor, rows, config.query_template)
    for row, labels in zip(rows, batch["labels"], strict=True):
        said = processor.tokenizer.decode(labels[labels != data.IGNORED])
        assert said.strip() == f"{row['answer']}<|im_end|>"


def test_what_an_experiment_can_not_mean_is_refused(
    run: ModuleType, task: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "training_params.json").write_text('{"lr": 1}')
    with pytest.raises(ValueError, match=r"training_params\.json has unknown keys: lr"):
        run.read_config(tmp_path)
    with pytest.raises(SystemExit):
        run.main([str(tmp_path / "none")])
    assert "none is no folder of an experiment" in capsys.readouterr().err
    with pytest.raises(ValueError, match="12 training rows leave none beside 12 for validation"):
        sys.modules["data"].get_train_valid_test_datasets(str(task / "pictures"), 12, 0)


def test_answers_are_compared_without_case_articles_and_points(run: ModuleType) -> None:
    assert run.plain(" The right  Lung. ") == run.plain("right lung")
    assert run.plain("yes") != run.plain("no")
