"""The model card: metadata that the hub reads, figures, and code that loads the checkpoint as it stands."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from striate.artifacts import Difference, EvalRecord, PruneRecord, Region, TaskScore
from striate.config import RunConfig
from striate.demo.vision_config import EfficientNetLiteConfig
from striate.errors import ArtifactError
from striate.models.convert.beside_weights import write_beside, write_card_beside
from striate.models.io.card.card_facts import CardFacts, Seen
from striate.models.io.card.card_metadata import CARD_FILE, license_of
from striate.models.io.card.model_card import UNKNOWN, card_text, write_card
from striate.models.io.load import Loaded
from striate.models.io.save import save_model
from striate.models.trainable.apply import lora_config
from striate.storage.atomic import write_text
from striate.storage.fingerprints import fingerprint

NASTY = "<script>alert('x')</script> | a\n---\n`b`"
REGION = Region(layers=(0, 2), num_layers=4, spec="uniform:2", selector="uniform")


def facts(**changes: Any) -> CardFacts:
    seen = Seen(48, 2000, 0.024)
    base = CardFacts(base="owner/base", method="lora", region=REGION, trained=(120, 4800), seen=seen, adapter=True)
    return CardFacts(**{**vars(base), **changes})


def evaluation(pack: str = "shapes") -> EvalRecord:
    tasks = (
        TaskScore(pack=pack, task="count", metric="exact", kind="visual", n=40, score=0.6437, low=0.5, high=0.75),
        TaskScore(pack="prose", task="prose", metric="perplexity", kind="text", n=9, score=3.2, low=3.1, high=3.3),
    )
    return EvalRecord(
        label="tuned",
        model="m",
        tasks=tasks,
        visual=0.6437,
        text=None,
        parameters=4800,
        num_layers=4,
        seconds=2.0,
        peak_memory_gib=0.1,
    )


def difference(pack: str, task: str, metric: str) -> Difference:
    return Difference(
        label="tuned",
        baseline="start",
        pack=pack,
        task=task,
        kind="visual",
        metric=metric,
        n=40,
        baseline_score=0.65,
        score=0.6437,
        difference=-0.0063,
        low=-0.03,
        high=0.02,
        retention=99.03,
        retention_low=95.5,
        retention_high=103.1,
    )


def metadata(text: str) -> dict[str, Any]:
    found = yaml.safe_load(text.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_metadata_is_what_the_hub_reads() -> None:
    text = card_text(facts(evaluation=evaluation()), "checkpoint")
    found = metadata(text)
    assert found["base_model"] == "owner/base"
    assert found["base_model_relation"] == "adapter"
    assert found["library_name"] == "peft"
    assert found["pipeline_tag"] == "image-text-to-text"
    assert found["tags"] == ["striate", "visual-region", "lora"]
    assert "license" not in found
    (index,) = found["model-index"]
    assert index["name"] == "checkpoint"
    first, second = index["results"]
    assert first["dataset"] == {"name": "shapes: count", "type": "shapes", "config": "count"}
    assert first["metrics"][0]["value"] == 0.6437
    assert first["metrics"][0]["name"] == "exact, n = 40, 95% interval 0.5000 to 0.7500"
    assert second["task"]["type"] == "text-generation"
    assert second["metrics"][0]["value"] == 24.5325
    assert second["metrics"][0]["name"] == "perplexity, n = 9, 95% interval 22.1980 to 27.1126"
    assert ModelCard(text).data.eval_results[0].metric_value == 0.6437


def test_a_card_without_intervals_says_why() -> None:
    record = evaluation()
    why = {"low": None, "high": None, "no_interval": "3 independent pictures are too few"}
    few = record.model_copy(update={"tasks": tuple(task.model_copy(update=why) for task in record.tasks)})
    text = card_text(facts(evaluation=few), "checkpoint")
    assert metadata(text)["model-index"][0]["results"][0]["metrics"][0]["name"] == "exact, n = 40"
    assert "| shapes: count | exact | 40 | 64.4 | none: 3 independent pictures are too few |" in text


def test_a_whole_model_is_a_finetune_and_folders_are_no_hub_ids() -> None:
    pruned = PruneRecord(
        region=REGION,
        scorer="block-influence",
        kept=(0, 1, 2),
        removed=(3,),
        old_to_new={0: 0, 1: 1, 2: 2},
        parameters_before=4800,
        parameters_after=4000,
    )
    text = card_text(facts(method="full", adapter=False, prune=pruned), "pruned")
    found = metadata(text)
    assert (found["base_model_relation"], found["library_name"]) == ("finetune", "transformers")
    assert found["tags"] == ["striate", "visual-region", "layer-pruning"]
    assert "Old→new: 0→0, 1→1, 2→2." in text
    assert "4,800 before pruning, 4,000 now" in text
    local = metadata(card_text(facts(base="/somewhere/private/llava"), "checkpoint"))
    assert "base_model" not in local
    assert "base_model_relation" not in local


@pytest.mark.parametrize(
    ("steps", "samples", "left_out", "told"),
    [
        (12, 2000, 0, "on 48 of 2,000 samples, 0.024 epochs."),
        (500, 2000, 0, "on 2,000 of 2,000 samples, 1 epoch."),
        (750, 1999, 3, "on 1,996 of 1,999 samples, 1.5 epochs."),
        (2, 6, 0, "on 6 of 6 samples, 1 epoch."),
    ],
)
def test_the_card_counts_the_samples_that_were_seen(steps: int, samples: int, left_out: int, told: str) -> None:
    assert told in card_text(facts(seen=Seen.after(steps, samples, 4, left_out)), "checkpoint")


def test_the_stack_is_drawn_from_the_output_down() -> None:
    text = card_text(facts(), "checkpoint")
    rows = re.findall(r"^ +(\d) (\S+)(?:  (\w+))?$", text, re.MULTILINE)
    assert [(int(layer), state) for layer, _, state in rows] == [(3, ""), (2, "trained"), (1, ""), (0, "trained")]


def test_figures_come_with_intervals_and_retention() -> None:
    rows = (difference("shapes", "count", "exact"), difference("*", "visual", "*"))
    text = card_text(facts(evaluation=evaluation(), differences=rows), "checkpoint")
    assert "| shapes: count | exact | 40 | 64.4 | 50.0 to 75.0 | 99.0% | 95.5 to 103.1 |" in text
    assert "| prose: prose | perplexity | 9 | 24.5 | 22.2 to 27.1 |  |  |" in text
    assert "Scores in % with 95% intervals (perplexity as such, lower is better; its retention is" in text
    assert "| all visual tasks | mean | 40 | 64.4 |  | 99.0% | 95.5 to 103.1 |" in text


def test_a_card_has_one_word_for_the_quality_of_text() -> None:
    text = card_text(facts(evaluation=evaluation()), "checkpoint")
    assert not re.search(r"\bnats\b", text)
    pictures = evaluation().model_copy(update={"tasks": evaluation().tasks[:1]})
    assert "perplexity" not in card_text(facts(evaluation=pictures), "checkpoint")


def test_a_perplexity_too_large_for_a_number_is_in_the_table_and_not_in_the_metadata() -> None:
    lost = evaluation().tasks[1].model_copy(update={"score": 800.0, "low": None, "high": None, "no_interval": "few"})
    record = evaluation().model_copy(update={"tasks": (evaluation().tasks[0], lost)})
    text = card_text(facts(evaluation=record), "checkpoint")
    assert "| prose: prose | perplexity | 9 | inf | none: few |" in text
    assert [row["metrics"][0]["type"] for row in metadata(text)["model-index"][0]["results"]] == ["exact"]


def test_names_from_data_break_neither_metadata_nor_table() -> None:
    text = card_text(facts(evaluation=evaluation(NASTY)), "checkpoint")
    found = metadata(text)
    assert found["model-index"][0]["results"][0]["dataset"]["type"] == " ".join(NASTY.split())
    body = text.split("---\n\n# ", 1)[1]
    assert "<script>" not in body
    assert "| &lt;script>alert('x')&lt;/script> \\| a --- 'b': count |" in body


def test_the_config_names_no_places_of_the_disk() -> None:
    config = RunConfig.model_validate(
        {"model": {"path": "/home/someone/llava"}, "data": {"train": ["/secret/place/shapes"]}, "seed": 7}
    )
    text = card_text(facts(base="/home/someone/llava", config=config), "checkpoint")
    assert "someone" not in text
    assert "secret" not in text
    assert "- shapes" in text
    assert "seed: 7" in text
    assert "Base model: `llava`." in text


def test_the_built_in_model_has_its_name_and_not_that_of_its_folder(tmp_path: Path) -> None:
    base = tmp_path / "builtin-0123456789ab"
    write_text(base / CARD_FILE, "---\nlicense: apache-2.0\n---\n# Base")
    text = card_text(facts(base=str(base), named="builtin"), "checkpoint", tmp_path)
    assert "\n# checkpoint: builtin, tuned in 2 of 4 layers\n" in text
    assert "Base model: `builtin`." in text
    assert "base = striate.load_model('builtin').model\n" in text
    assert "import striate  # for its vision encoder\n" in text
    assert "from transformers import AutoProcessor\n" in text
    assert metadata(text)["license"] == "apache-2.0"
    assert "builtin-" not in text


@pytest.mark.parametrize(
    ("text", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# Base", "apache-2.0"),
        ("---\ntags: [a]\n---\n", None),
        ("---\nlicense: [\n---\n", None),
        ("# no metadata", None),
        ("text\n---\nlicense: mit\n---\n", None),
    ],
)
def test_the_licence_is_the_bases_own_where_it_says_so(tmp_path: Path, text: str, licence: str | None) -> None:
    write_text(tmp_path / CARD_FILE, text)
    assert license_of(str(tmp_path)) == licence
    found = metadata(card_text(facts(base=str(tmp_path)), "checkpoint"))
    assert found.get("license") == licence


@pytest.mark.parametrize(
    "content",
    [
        b"---\nlicense: mit\ndate: 2024-02-30\n---\n",
        b"---\nlicense: " + b"9" * 5000 + b"\n---\n",
        b"---\n" + b"[" * 100_000 + b"\n---\n",
        b'---\nlicense: "\\ud83c"\n---\n',
        b"---\na: !!bool x\n---\n",
        "---\nlicense: mit\n---\n".encode("utf-16"),
        b"\xff---",
    ],
)
def test_no_card_of_a_base_costs_a_training(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CARD_FILE).write_bytes(content)
    assert license_of(str(tmp_path)) is None
    assert "license" not in card_text(facts(base=str(tmp_path)), "tuned")


def test_the_code_imports_striate_where_the_vision_encoder_comes_from_it(tmp_path: Path) -> None:
    own = EfficientNetLiteConfig.model_type
    write_text(tmp_path / "config.json", json.dumps({"vision_config": {"model_type": own}}))
    told = facts(adapter=False, method="full")
    assert "import striate  # for its vision encoder" in card_text(told, "checkpoint", tmp_path)
    write_text(tmp_path / "config.json", json.dumps({"vision_config": {"model_type": "clip_vision_model"}}))
    assert "import striate" not in card_text(told, "checkpoint", tmp_path)


def quantised(folder: Path, *, bits: Any = 8) -> Path:
    weights = {"num_bits": bits, "type": "int"}
    settings = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    folder.mkdir(exist_ok=True)
    write_text(folder / "config.json", json.dumps({"quantization_config": settings}))
    return folder


def test_an_adapter_of_unknown_making_gets_no_claim_about_its_training() -> None:
    told = card_text(CardFacts(base="owner/base", method="", region=None, kind="lora", merged="bfloat16"), "merged")
    assert "# merged: owner/base\n" in told
    assert "Base model: `owner/base`. An adapter (LoRA) is added into the weights, which are bfloat16." in told
    assert metadata(told)["tags"] == ["striate", "lora"]
    assert UNKNOWN in told
    for claim in ("Visual instruction tuning", "arXiv", "tuned"):
        assert claim not in told


def test_a_quantised_model_says_so_and_when_it_was_measured(tmp_path: Path) -> None:
    told = card_text(facts(adapter=False, merged="bfloat16", evaluation=evaluation()), "small", quantised(tmp_path))
    assert "Its quantised matrices are 8-bit integers.\n" in told
    assert "They were measured before the weights were quantised.\n" in told
    assert "````python\n# pip install compressed-tensors\n" in told
    told = card_text(facts(adapter=False), "small", quantised(tmp_path, bits="<script>"))
    assert "Its weights are quantised.\n" in told
    assert "<script>" not in told


def test_a_copied_card_is_told_apart_from_the_quantised_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", quantised(tmp_path / "target")
    source.mkdir()
    write_text(source / CARD_FILE, "---\nmodel_name: source\n---\n# Mine\n\nIt scores 90%.\n")
    write_text(source / "LICENSE.txt", "terms")
    write_beside(source, source, target)
    assert (target / "LICENSE.txt").read_text() == "terms"
    write_card_beside(source, target, None, "target")
    text = (target / CARD_FILE).read_text()
    stored = "Its quantised matrices are 8-bit integers. What stands above tells of the model before that."
    assert text.endswith(f"It scores 90%.\n\n{stored}\n")
    # A copy of a copy says it once.
    write_card_beside(target, quantised(tmp_path / "again"), None, "again")
    assert (tmp_path / "again" / CARD_FILE).read_text().count("quantised") == 1


def test_names_of_folders_and_values_of_the_config_stay_text(tmp_path: Path) -> None:
    nasty = "<img src=x onerror=alert(1)> ![a](https://example.org/b.png) `c` \x1b[31m"
    config = RunConfig.model_validate(
        {"model": {"path": "m"}, "data": {"train": ["d"]}, "report": {"title": "a\n````\n<script>x</script>"}}
    )
    prune = PruneRecord(
        region=REGION,
        scorer=nasty,
        kept=(0, 2, 3),
        removed=(1,),
        old_to_new={0: 0, 2: 1, 3: 2},
        parameters_before=2,
        parameters_after=1,
    )
    text = card_text(facts(base=f"/x/{nasty}", config=config, prune=prune), nasty)
    body = text.split("---", 2)[2]
    shown, folded = body.split("<details>")
    outside = re.sub(r"````python.*?````", "", shown, flags=re.S)
    assert "<img" not in outside
    assert "\x1b" not in text
    assert "![a](" not in re.sub(r"`[^`]*`", "", outside)
    fence, inside = re.search(r"^(`{4,})yaml\n(.*?)^\1$", folded, re.S | re.M).groups()  # type: ignore[union-attr]
    assert len(fence) == 5
    assert "<script>x" in inside


def test_a_card_does_not_change_the_fingerprint(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    write_text(folder / "config.json", "{}")
    before = fingerprint(folder)
    write_card(folder, facts())
    assert (folder / CARD_FILE).is_file()
    assert fingerprint(folder) == before
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["README.md", "checkpoint", "config.json"]
    write_text(folder / "generation_config.json", "{}")
    assert fingerprint(folder) != before


def test_a_card_that_can_not_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    write_text(folder / CARD_FILE, "old")

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        write_card(folder, facts())
    monkeypatch.undo()
    assert (folder / CARD_FILE).read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def run_example(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    code = text.partition("````python\n")[2].partition("````")[0]
    names: dict[str, Any] = {}
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), names)
    return names


@pytest.mark.parametrize("method", ["lora", "full"])
def test_the_example_loads_the_checkpoint_without_striate(
    method: str,
    tiny_llava: Loaded,
    tiny_llava_dir: Path,
    saved_pack: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import peft

    assert tiny_llava_dir.parent == tmp_path
    model = tiny_llava.model
    if method == "lora":
        model = peft.get_peft_model(model, lora_config(model, REGION, r=2, alpha=4, dropout=0.0))
        model.peft_config["default"].base_model_name_or_path = str(tiny_llava_dir)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.add_(0.1)
    told = facts(base=str(tiny_llava_dir), method=method, adapter=method == "lora")
    save_model(model.eval(), tiny_llava.processor, tmp_path / "checkpoint", region=REGION, card=told)
    text = (tmp_path / "checkpoint" / CARD_FILE).read_text()
    assert "Model Card for Model ID" not in text
    shutil.copyfile(saved_pack / "images" / "square_00.png", tmp_path / "picture.jpg")
    loaded = run_example(text, tmp_path, monkeypatch)
    # A random model's answer is any text: what counts is that it answered.
    assert loaded["reply"].shape[1] > loaded["inputs"]["input_ids"].shape[1]
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        expected, got = model(input_ids=ids).logits, loaded["model"].eval()(input_ids=ids).logits
    assert torch.equal(expected, got)
    assert hasattr(loaded["processor"], "image_processor")
