"""The lm-evaluation-harness on tasks that lie here, no network: checkpoints, adapters, pruned models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import yaml

from striate.artifacts import Region, SuiteRecord, read_document
from striate.errors import DataError, SpecError
from striate.harness.running import run_suites
from striate.harness.suites import Suite, parse_suite
from striate.models.io.load import load_model, load_processor
from striate.models.io.save import save_model
from striate.models.surgery.remove_layers import remove_layers
from striate.models.trainable.apply import apply_region, lora_config
from striate.tasks.inference.ask import ask
from striate.tasks.metrics.choices.choice_logprob import score_choice_logprob
from striate.tasks.packs.items import Item

pytestmark = pytest.mark.harness
pytest.importorskip("lm_eval")

ROWS = [
    ("Question: What colour is the square?\nAnswer:", ["red", "blue", "green"], 0),
    ("Question: Is it red?\nAnswer:", ["yes", "no"], 1),
    ("The square is", ["red and blue", "green"], 1),
]
REGION = Region(layers=(0, 2), num_layers=4, spec="ids:0,2")


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    """Two tasks of one's own: choices by likelihood, and generated answers."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    lines = [{"context": context, "choices": choices, "gold": gold} for context, choices, gold in ROWS]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shared: dict[str, Any] = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "doc_to_text": "{{context}}",
        "metadata": {"version": 2.0},
    }
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    choose = {"output_type": "multiple_choice", "doc_to_choice": "{{choices}}", "doc_to_target": "gold"}
    match = [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}]
    write = {"output_type": "generate_until", "doc_to_target": "{{choices[gold]}}"}
    options = {"generation_kwargs": {"max_gen_toks": 4, "until": ["\n"]}}
    tasks = {"choose": {**choose, "metric_list": metrics}, "write": {**write, **options, "metric_list": match}}
    for name, parts in tasks.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": f"here_{name}", **shared, **parts}))
    return parse_suite(f"lm-eval:here_choose,here_write@{folder}")


def adapter(base: Path, out: Path) -> Path:
    loaded = load_model(base, device="cpu")
    wrapped = peft.get_peft_model(loaded.model, lora_config(loaded.model, REGION, r=4, alpha=64))
    apply_region(wrapped, REGION, "lora")
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    save_model(wrapped, load_processor(base), out, REGION)
    return out


def pruned(base: Path, out: Path) -> Path:
    loaded = load_model(base, device="cpu")
    remove_layers(loaded.model, [1, 3])
    save_model(loaded.model, loaded.processor, out)
    return out


def striate_scores(model: Path) -> list[float]:
    """The accuracies by sum that striate itself finds."""
    loaded = load_model(model, device="cpu", merge=True)
    items = [
        Item(
            str(n),
            "p",
            "t",
            "choice_logprob",
            context=context,
            choices=tuple(choices),
            answer_index=gold,
            compare="sum",
        )
        for n, (context, choices, gold) in enumerate(ROWS)
    ]
    replies = ask(loaded.model, loaded.processor, items).replies
    return [score_choice_logprob(item, reply).score for item, reply in zip(items, replies, strict=True)]


@pytest.mark.parametrize("kind", ["checkpoint", "adapter", "pruned"])
def test_every_kind_of_model_is_measured_as_striate_measures_it(
    kind: str, suite: Suite, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    make = {"checkpoint": lambda base, _: base, "adapter": adapter, "pruned": pruned}[kind]
    model = make(tiny_llava_dir, tmp_path / kind)
    (record,) = run_suites(str(model), [suite], tmp_path / "suites", label=kind, device="cpu")
    assert record == read_document(tmp_path / "suites" / f"{kind}.{suite.slug}.json", SuiteRecord)
    assert record.figures["here_choose"]["acc"] == pytest.approx(sum(striate_scores(model)) / len(ROWS))
    assert 0 <= record.figures["here_write"]["exact_match"] <= 1
    assert record.samples == {"here_choose": 3, "here_write": 3}
    assert record.task_versions == {"here_choose": "2.0", "here_write": "2.0"}
    assert record.harness_version
    lines = (tmp_path / "suites" / f"{kind}.{suite.slug}.samples.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["acc"] for row in rows if row["task"] == "here_choose"] == striate_scores(model)


def test_an_unknown_task_and_a_limit(suite: Suite, tiny_llava_dir: Path, tmp_path: Path) -> None:
    wrong = Suite("lm-eval", ("here_chose",), suite.folder)
    with pytest.raises(SpecError, match=r"lm-eval has no task 'here_chose'(.|\n)*did you mean 'here_choose'"):
        run_suites(str(tiny_llava_dir), [wrong], tmp_path, device="cpu")
    (record,) = run_suites(str(tiny_llava_dir), [suite], tmp_path, device="cpu", limit=2)
    assert record.samples == {"here_choose": 2, "here_write": 2}


def test_data_that_can_t_be_read_is_said_in_the_harness_s_words(
    suite: Suite, tiny_llava_dir: Path, tmp_path: Path
) -> None:
    assert suite.folder
    (suite.folder / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=r"lm-eval could not run here_choose, here_write: \w+: "):
        run_suites(str(tiny_llava_dir), [suite], tmp_path, device="cpu")
