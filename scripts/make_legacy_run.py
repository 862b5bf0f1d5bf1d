#!/usr/bin/env python3
"""Make the run folders of commit 7dbed79 that `tests/data/run_7dbed79` holds, with that commit's code.

    git worktree add ../legacy 7dbed79
    PYTHONPATH=../legacy python scripts/make_legacy_run.py tests/data/run_7dbed79

Configs, run folders and adapters hold whole paths, and hashes of such files. So everything is made in the folder
/path/to/run_7dbed79, which must not exist (it takes the right to make it) and is gone at the end; a reader puts its own
place for that one. Files of weights name no place.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

import striate

COMMIT = "7dbed79"
CHECKOUT = Path(striate.__file__).parents[1]
PLACE = Path("/path/to/run_7dbed79")

LORA_RUN: dict[str, Any] = {
    "model": {"path": "model"},
    "data": {"train": ["pack"]},
    "analyze": {
        "scorers": ["block-influence", "modality-block-influence", "angular-distance", "image-attention"],
        "samples": 6,
        "by": "task",
    },
    "select": {"region": "scores:block-influence:2"},
    "train": {
        "lr": 1e-2,
        "projector_lr": 1e-3,
        "batch_size": 4,
        "max_length": 128,
        "save_steps": 2,
        # Other processors draw other numbers for dropout.
        "lora": {"r": 4, "alpha": 8, "dropout": 0.0},
    },
    "prune": {"remove": 1},
    "evaluate": {"packs": ["pack"], "limit": 14, "max_new_tokens": 4, "bootstrap": 100},
    "machine": {"micro_batch": 2, "eval_batch": 4, "device": "cpu"},
}
# Image tokens pass layers 0 and 2, and take a step there.
IMAGE_RUN: dict[str, Any] = {
    **{key: LORA_RUN[key] for key in ("model", "data", "machine")},
    "select": {"region": "ids:1"},
    "train": {
        **{key: value for key, value in LORA_RUN["train"].items() if key != "lora"},
        "method": "full",
        "image_tokens": "region",
        "image_also": "ids:3",
        "image_shift": True,
    },
}

# Questions without a picture, of metrics that the tests' pack lacks.
TEXT_ROWS = [
    {"id": "text-0", "text": "The quick brown fox jumps over the lazy dog.", "metric": "perplexity"},
    {"id": "text-1", "text": "Is the sky blue on a clear day?", "metric": "perplexity"},
    {"id": "text-2", "context": "The square is", "choices": [" red", " blue"], "answer_index": 0},
    {"id": "text-3", "context": "There are", "choices": [" 4 squares", " 4 days"], "answer_index": 1},
]

# The command line, ended in the middle of step 4: three steps are logged, and the checkpoint of step 2 is there.
STOPPED = """
import os, signal, sys
from striate.training.step_log import StepLog

write = StepLog.write

def stop(log, step, *arguments, **more):
    if step == 4:
        os.kill(os.getpid(), signal.{how})
    write(log, step, *arguments, **more)

StepLog.write = stop
# A shell in the background has what it starts ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "striate"
from striate.cli import main
main()
"""


README = """Run folders that commit 7dbed79 made in /path/to/run_7dbed79, by `scripts/make_legacy_run.py`.

A tiny random LLaVA (`model`), its data (`pack`), and of two configs a finished run and one that was stopped in the last
of four steps, with a checkpoint of step 2.

| config | finished | stopped | what |
|---|---|---|---|
| run.yaml | finished | stopped (killed) | every stage; LoRA |
| image.yaml | image_finished | image_stopped (Ctrl-C) | select and train; full, image tokens in the region alone |

`keys.json` holds what the keys in `finished/run.json` are the hashes of. Left out: report.html, training_args.bin and
the model cards.
"""


def main() -> None:
    """Make everything, and copy what is to be kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the new folder")
    out = parser.parse_args().out.resolve()
    head = subprocess.run(["git", "-C", CHECKOUT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    if not head.stdout.startswith(COMMIT):
        raise SystemExit(f"{CHECKOUT} is not commit {COMMIT}")
    made = next(folder for folder in (PLACE, *PLACE.parents) if folder.parent.exists())
    PLACE.mkdir(parents=True)
    try:
        build_start()
        make_runs()
        write_keys("run.yaml", "finished")
        leave_out()
        (PLACE / "README.md").write_text(README, encoding="utf-8")
        shutil.copytree(PLACE, out)
    finally:
        shutil.rmtree(made)


def make_runs() -> None:
    """Write both configs; make a finished run of each, and one that stops in training."""
    for name, config in (("run.yaml", LORA_RUN), ("image.yaml", IMAGE_RUN)):
        (PLACE / name).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    striate_command("run", "run.yaml", "--out", "finished")
    striate_command("run", "run.yaml", "--out", "stopped", how="SIGKILL")
    for folder in ("image_finished", "image_stopped"):
        striate_command("select", "image.yaml", "--out", folder)
    striate_command("train", "--out", "image_finished")
    striate_command("train", "--out", "image_stopped", how="SIGINT")


def build_start() -> None:
    """Write the tiny random LVLM and the data pack; the processor and the pack are those of the tests."""
    sys.path.insert(0, str(CHECKOUT / "tests"))
    import torch
    from conftest import IMAGE_SIZE, PATCH_SIZE, build_pack, build_processor
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    build_pack(PLACE / "pack")
    with (PLACE / "pack" / "test.jsonl").open("a", encoding="utf-8") as stream:
        for row in TEXT_ROWS:
            task = row.get("metric", "choice_logprob")
            stream.write(json.dumps({**row, "metric": task, "task": task}) + "\n")
    processor = build_processor()
    tokenizer = processor.tokenizer
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=8,
    )
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        initializer_range=0.3,
        tie_word_embeddings=True,
        **special,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    for name, value in special.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(PLACE / "model")
    processor.save_pretrained(PLACE / "model")


def striate_command(*arguments: str, how: str = "") -> None:
    """Run the command line in that folder, to its end or until it is stopped by the signal called `how`."""
    start = ["-c", STOPPED.format(how=how)] if how else ["-m", "striate"]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *start, *arguments], cwd=PLACE, env=environment, check=False)
    expected = {"": 0, "SIGKILL": -9, "SIGINT": 130}[how]
    if done.returncode != expected:
        raise SystemExit(f"striate {' '.join(arguments)} ended with {done.returncode}, not {expected}")


def write_keys(config: str, folder: str) -> None:
    """Write what the keys of a run's stages are the hashes of, since some of it names places."""
    os.chdir(PLACE)
    from striate.config import load_config
    from striate.pipeline import Flow

    command = f"striate run {config} --out {folder}"
    inputs = Flow(load_config(Path(config)), Path(folder), command=command).inputs
    record = json.loads((PLACE / folder / "run.json").read_text(encoding="utf-8"))
    keys = {}
    for stage, noted in record["stages"].items():
        verb, _, label = stage.partition(":")
        keys[stage] = json.loads(json.dumps(getattr(inputs, verb)(*([label] if label else []))))
        if hashlib.sha256(json.dumps(keys[stage], sort_keys=True).encode()).hexdigest()[:16] != noted["key"]:
            raise SystemExit(f"the key of {stage} is made of something else")
    (PLACE / "keys.json").write_text(json.dumps(keys, indent=1) + "\n", encoding="utf-8")


def leave_out() -> None:
    """Remove what a reader makes anew or never reads, and what tells of this machine; see that nothing does."""
    (PLACE / "finished" / "report.html").unlink()
    for path in [*PLACE.rglob("training_args.bin"), *PLACE.rglob("README.md")]:
        path.unlink()
    for path in PLACE.rglob("run.json"):
        path.write_text(path.read_text(encoding="utf-8").replace(platform.platform(), "Linux"), encoding="utf-8")
    files = {path: path.read_bytes() for path in PLACE.rglob("*") if path.is_file()}
    for path, content in files.items():
        for place in (str(CHECKOUT), sys.prefix, str(Path.home()), tempfile.gettempdir(), platform.node() + "/"):
            if place.encode() in content:
                raise SystemExit(f"{path} names {place}")
        if path.suffix in (".safetensors", ".pt", ".pth") and str(PLACE).encode() in content:
            raise SystemExit(f"{path} names its place")


if __name__ == "__main__":
    main()
