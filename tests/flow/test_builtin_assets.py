"""The built-in LVLM with its real public weights; needs them in the cache or a package index."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from striate.progress import Silent

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def folder() -> Path:
    from striate.demo.places import builtin_model

    return builtin_model(None, None, Silent())


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    from striate.models.io.load import load_model

    return load_model(folder)


def test_its_parts_have_the_documented_sizes(loaded: Loaded) -> None:
    from striate.models.structure.anatomy import find_anatomy

    model = loaded.model.model
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model.vision_tower, model.multi_modal_projector)]
    assert sizes == [2_958_848, 775_296]
    assert find_anatomy(loaded.model).num_layers == 30
    assert loaded.model.config.image_seq_length == 49


def test_its_language_model_is_smollm2_unchanged(loaded: Loaded) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from striate.demo.assets import LLM, fetch

    gguf = fetch(LLM, Silent())
    original = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    kept = loaded.model.model.language_model.state_dict()
    rows = original.config.vocab_size
    for name, tensor in original.model.state_dict().items():
        assert torch.equal(kept[name][:rows] if "embed_tokens" in name else kept[name], tensor), name
    ids = loaded.processor.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        ours, theirs = loaded.model(input_ids=ids).logits, original(input_ids=ids).logits
    torch.testing.assert_close(ours[..., :rows], theirs, atol=1e-4, rtol=1e-4)


def test_it_reads_a_rendered_word_and_a_colour(loaded: Loaded, tmp_path: Path) -> None:
    import random

    from rendered_scenes import Supplies, reading, scene

    from striate.config import EvaluateSection, MachineSection
    from striate.stages.evaluate import evaluate
    from striate.tasks.packs.reader import read_pack

    rows = []
    for number in range(40):
        rng = random.Random(number)
        draw = scene if number % 2 else reading
        picture, questions = draw(rng, Supplies(["house", "river", "green", "stone"]))
        picture.save(tmp_path / f"{number}.png")
        question, answer = questions[0]
        row = {"id": str(number), "image": f"{number}.png", "question": question, "answers": [answer]}
        rows.append({**row, "metric": "exact", "task": draw.__name__})
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    record, _ = evaluate(
        loaded.model,
        loaded.processor,
        [read_pack(tmp_path)],
        label="start",
        model_name="builtin",
        config=EvaluateSection(max_new_tokens=8),
        machine=MachineSection(eval_batch=20),
    )
    scores = {task.task: task.score for task in record.tasks}
    assert scores["scene"] >= 0.7
    assert scores["reading"] >= 0.3


def test_a_new_process_loads_it_with_stock_code_after_import_striate(folder: Path) -> None:
    code = (
        "import sys, striate; assert 'torch' not in sys.modules\n"
        "from transformers import AutoProcessor, LlavaForConditionalGeneration\n"
        f"model = LlavaForConditionalGeneration.from_pretrained({str(folder)!r})\n"
        f"processor = AutoProcessor.from_pretrained({str(folder)!r})\n"
        "print(type(model.model.vision_tower).__name__, type(processor).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["EfficientNetLiteModel", "LlavaProcessor"]
