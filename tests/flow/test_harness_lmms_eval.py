"""lmms-eval on a task that lies here, no network: pictures go through striate's own asking."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from striate.artifacts import SuiteRecord, read_document
from striate.errors import DataError, ModelError
from striate.harness.running import run_suites
from striate.harness.suites import parse_suite
from striate.models.io.load import Loaded, load_model
from striate.tasks.inference.ask import ask
from striate.tasks.packs.items import Item

pytestmark = pytest.mark.harness
pytest.importorskip("lmms_eval")

HELPERS = """
from PIL import Image


def pictures(row):
    return [Image.open(row["picture"]).convert("RGB")]


def question(row, lmms_eval_specific_kwargs=None):
    return row["question"]


def score(row, results):
    return {"exact_match": float(results[0] == row["answer"])}
"""


@pytest.fixture
def questions(pack_dir: Path, tiny_llava_dir: Path) -> list[dict[str, str]]:
    """Three questions about pictures; the tiny model's own answers to two of them count as right."""
    loaded = load_model(tiny_llava_dir, device="cpu")
    pictures = sorted((pack_dir / "images").glob("*.png"))[:3]
    items = [Item(str(n), "p", "t", "exact", question="What colour?", image=path) for n, path in enumerate(pictures)]
    replies = ask(loaded.model, loaded.processor, items, max_new_tokens=4).replies
    answers = [replies[0].text.strip(), replies[1].text.strip(), "something else"]
    return [
        {"picture": str(path), "question": "What colour?", "answer": answer}
        for path, answer in zip(pictures, answers, strict=True)
    ]


def write_task(folder: Path, rows: list[dict[str, str]], **options: object) -> str:
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "helpers.py").write_text(HELPERS)
    task = {
        "task": "here_pictures",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"max_new_tokens": 4, **options},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    functions = {"doc_to_visual": "pictures", "doc_to_text": "question", "process_results": "score"}
    lines = "".join(f"{key}: !function helpers.{name}\n" for key, name in functions.items())
    (folder / "here.yaml").write_text(yaml.safe_dump(task) + lines)
    return f"lmms-eval:here_pictures@{folder}"


def test_pictures_are_asked_as_striate_asks_them(
    questions: list[dict[str, str]], tiny_llava_dir: Path, tmp_path: Path
) -> None:
    suite = parse_suite(write_task(tmp_path / "tasks", questions))
    (record,) = run_suites(str(tiny_llava_dir), [suite], tmp_path / "suites", label="start", device="cpu")
    assert record == read_document(tmp_path / "suites" / f"start.{suite.slug}.json", SuiteRecord)
    assert record.figures["here_pictures"]["exact_match"] == pytest.approx(2 / 3)
    lines = (tmp_path / "suites" / f"start.{suite.slug}.samples.jsonl").read_text().splitlines()
    assert [json.loads(line)["exact_match"] for line in lines] == [1.0, 1.0, 0.0]


def test_sampled_answers_are_refused(questions: list[dict[str, str]], tiny_llava_dir: Path, tmp_path: Path) -> None:
    suite = parse_suite(write_task(tmp_path / "tasks", questions, do_sample=True, temperature=0.7))
    with pytest.raises(ModelError, match="lmms-eval asks for sampled answers"):
        run_suites(str(tiny_llava_dir), [suite], tmp_path, device="cpu")


def test_what_the_model_class_does_not_do_is_said(tiny_llava: Loaded) -> None:
    from striate.harness.lmms_eval import StriateLmms, cut

    model = StriateLmms(tiny_llava)
    with pytest.raises(ModelError, match="asks for log-likelihoods"):
        model.loglikelihood([])
    with pytest.raises(ModelError, match="several rounds"):
        model.generate_until_multi_round([])
    assert cut(" red\n\nblue", ["\n\n", "b"]) == "red"
    assert cut("red", "") == cut("red ", None) == "red"


def test_video_is_refused() -> None:
    from striate.harness.lmms_eval import _pictures

    with pytest.raises(DataError, match="task 'films' shows str, not a picture"):
        _pictures(lambda row: ["film.mp4"], {}, "films")


def test_the_harness_finds_the_model_class_by_name() -> None:
    from lmms_eval.api.registry import get_model
    from lmms_eval.models.registry_v2 import ModelRegistryV2

    from striate.harness.lmms_eval import StriateLmms
    from striate.harness.lmms_plugin import manifest

    assert get_model("striate") is StriateLmms
    registry = ModelRegistryV2()
    registry.register_manifest(manifest())
    assert registry.get_model_class("striate") is StriateLmms
