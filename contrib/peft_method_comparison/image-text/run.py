#!/usr/bin/env python3
"""Train one experiment of the image-text task, ask it the test questions, and write its results as JSON.

    python run.py -v experiments/lora/smolvlm-500M-region-uniform-25

An experiment is a folder with PEFT's `adapter_config.json` (none: all weights are trained) and, where something differs
from `default_training_params.json`, a `training_params.json`. Results go to `temporary_results/`, or to --results.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import string
import tempfile
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from data import PLAIN_TEXT, get_train_valid_test_datasets, prompt_batch, training_batch
from peft import PeftConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, get_cosine_schedule_with_warmup, set_seed

HERE = Path(__file__).parent
ADAPTER_CONFIG, PARAMS, DEFAULTS = "adapter_config.json", "training_params.json", "default_training_params.json"
PACKAGES = ("transformers", "peft", "datasets", "torch")


@dataclass(frozen=True)
class TrainConfig:
    """What an experiment trains with."""

    model_id: str
    dataset_id: str
    dtype: str
    batch_size: int
    batch_size_eval: int
    max_steps: int
    eval_steps: int
    valid_size: int
    seed: int
    grad_norm_clip: float
    optimizer_type: str
    optimizer_kwargs: dict[str, Any]
    lr_scheduler: str | None
    warmup_ratio: float
    max_new_tokens: int
    query_template: str


class Experiment:
    """One experiment: its model, its data, and what it measured."""

    def __init__(self, folder: Path, verbose: bool) -> None:
        """Read the settings in `folder`, and load the model and the data that they name."""
        self.name = "/".join(folder.resolve().parts[-2:])
        self.config = read_config(folder)
        self._verbose = verbose
        set_seed(self.config.seed)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.processor = AutoProcessor.from_pretrained(self.config.model_id)
        model = AutoModelForImageTextToText.from_pretrained(self.config.model_id, dtype=self.config.dtype)
        self.peft_config = PeftConfig.from_pretrained(folder) if (folder / ADAPTER_CONFIG).exists() else None
        self.model: Any = get_peft_model(model, self.peft_config) if self.peft_config else model
        self.model.to(self.device)
        self.train_set, self.valid, self.test = get_train_valid_test_datasets(
            self.config.dataset_id, self.config.valid_size, self.config.seed
        )
        self.trainable = [weight for weight in self.model.parameters() if weight.requires_grad]
        self.metrics: list[dict[str, float]] = []
        self._say(f"{self.name}: {sum(map(torch.numel, self.trainable)):,} weights are trained")

    def train(self) -> tuple[float, list[int]]:
        """Train and measure; return the seconds of training alone, and the memory reserved after each step."""
        config = self.config
        optimizer = getattr(torch.optim, config.optimizer_type)(self.trainable, **config.optimizer_kwargs)
        schedule = None
        if config.lr_scheduler == "cosine":
            warmup = int(config.warmup_ratio * config.max_steps)
            schedule = get_cosine_schedule_with_warmup(optimizer, warmup, config.max_steps)
        with self.model.disable_adapter() if self.peft_config else nullcontext():
            before = self.plain_text_loss()
        seconds, losses, tokens, memory = 0.0, [], 0, list[int]()
        for step, rows in zip(range(1, config.max_steps + 1), self._batches(), strict=False):
            began = time.perf_counter()
            self.model.train()
            batch = self._moved(training_batch(self.processor, rows, config.query_template))
            loss = self.model(**batch).loss
            loss.backward()
            if config.grad_norm_clip:
                torch.nn.utils.clip_grad_norm_(self.trainable, config.grad_norm_clip)
            optimizer.step()
            optimizer.zero_grad()
            if schedule:
                schedule.step()
            losses.append(loss.item())
            tokens += int(batch["attention_mask"].sum())
            seconds += time.perf_counter() - began
            memory.append(torch.cuda.memory_reserved() if self.device == "cuda" else 0)
            if step % config.eval_steps == 0:
                self._note(step, losses, **{"valid accuracy": self.accuracy(self.valid)})
        # Of the plain text's loss, what training added.
        forgetting = self.plain_text_loss() - before
        found = {"test accuracy": self.accuracy(self.test), "forgetting": forgetting, "train total tokens": tokens}
        self._note(config.max_steps, losses, **found)
        return seconds, memory

    @torch.inference_mode()
    def accuracy(self, rows: Any) -> float:
        """Return the share of rows whose answer is right, but for case, articles and punctuation."""
        self.model.eval()
        right, size = 0, self.config.batch_size_eval
        for start in range(0, len(rows), size):
            some = [rows[index] for index in range(start, min(start + size, len(rows)))]
            batch = self._moved(prompt_batch(self.processor, some, self.config.query_template))
            said = self.model.generate(**batch, max_new_tokens=self.config.max_new_tokens, do_sample=False)
            answers = self.processor.batch_decode(said[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            right += sum(plain(one["answer"]) == plain(answer) for one, answer in zip(some, answers, strict=True))
        return right / len(rows)

    @torch.inference_mode()
    def plain_text_loss(self) -> float:
        """Return the mean cross entropy of a token of plain text."""
        self.model.eval()
        total, count = 0.0, 0
        for text in PLAIN_TEXT:
            ids = self.processor.tokenizer(text, return_tensors="pt").input_ids.to(self.device)
            logits = self.model(input_ids=ids).logits[0, :-1].float()
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            count += ids.shape[1] - 1
        return total / count

    def file_size(self) -> int:
        """Return the bytes of what is saved."""
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            return sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))

    def _batches(self) -> Iterator[list[dict[str, Any]]]:
        """Yield batches without end, in another order each time through."""
        size = self.config.batch_size
        for epoch in range(self.config.max_steps + 1):
            order = torch.randperm(len(self.train_set), generator=torch.Generator().manual_seed(epoch)).tolist()
            for start in range(0, max(1, len(order) - size + 1), size):
                yield [self.train_set[index] for index in order[start : start + size]]

    def _moved(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            name: value.to(self.device, self.model.dtype if value.is_floating_point() else None)
            for name, value in batch.items()
        }

    def _note(self, step: int, losses: list[float], **found: float) -> None:
        recent = statistics.fmean(losses[-self.config.eval_steps :])
        row = {"step": step, "train loss": recent, "train samples": step * self.config.batch_size, **found}
        self.metrics.append(row)
        self._say(json.dumps(row))

    def _say(self, text: str) -> None:
        if self._verbose:
            print(text, flush=True)


def read_config(folder: Path) -> TrainConfig:
    """Return the defaults with what the experiment changes in them; raise ValueError for keys that there are not."""
    given = json.loads((HERE / DEFAULTS).read_text(encoding="utf-8"))
    if (folder / PARAMS).exists():
        given |= json.loads((folder / PARAMS).read_text(encoding="utf-8"))
    if unknown := sorted(set(given) - {field.name for field in fields(TrainConfig)}):
        raise ValueError(f"{folder / PARAMS} has unknown keys: {', '.join(unknown)}")
    if "{query}" not in given["query_template"] or given["eval_steps"] > given["max_steps"]:
        raise ValueError(f"{folder}: query_template needs {{query}}, and eval_steps is at most max_steps")
    return TrainConfig(**given)


def plain(answer: str) -> str:
    """Return an answer without case, punctuation and articles."""
    bare = answer.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def results(experiment: Experiment, began: float, seconds: float, memory: list[int]) -> dict[str, Any]:
    """Return what the comparison's table reads of a run."""
    config = experiment.peft_config.to_dict() if experiment.peft_config else None
    peak = torch.cuda.max_memory_reserved() if experiment.device == "cuda" else 0
    return {
        "run_info": {
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "total_time": time.perf_counter() - began,
            "experiment_name": experiment.name,
            "peft_branch": os.environ.get("PEFT_BRANCH", "unknown"),
            "train_config": asdict(experiment.config),
            "peft_config": config and {key: list(one) if isinstance(one, set) else one for key, one in config.items()},
            "error_msg": "",
        },
        "train_info": {
            "accelerator_memory_reserved_avg": int(statistics.fmean(memory)),
            "accelerator_memory_max": peak,
            "accelerator_memory_reserved_99th": sorted(memory)[math.ceil(0.99 * len(memory)) - 1],
            "train_time": seconds,
            "file_size": experiment.file_size(),
            "num_trainable_params": sum(map(torch.numel, experiment.trainable)),
            "num_total_params": sum(map(torch.numel, experiment.model.parameters())),
            "status": "success",
            "metrics": experiment.metrics,
        },
        "meta_info": {
            "model_info": {"sha": getattr(experiment.model.config, "_commit_hash", None)},
            "dataset_info": {experiment.config.dataset_id: {"rows": len(experiment.train_set)}},
            "package_info": {f"{name}-version": importlib.metadata.version(name) for name in PACKAGES},
            "system_info": {"system": platform.system(), "machine": platform.machine(), "device": experiment.device},
            "pytorch_info": torch.__config__.show(),
        },
    }


def main(arguments: list[str] | None = None) -> Path:
    """Run the experiment that the command line names; return the file of its results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", type=Path, help="folder of an experiment: experiments/METHOD/NAME")
    parser.add_argument("-v", "--verbose", action="store_true", help="say how far it is")
    parser.add_argument("--results", type=Path, default=HERE / "temporary_results", help="folder of the results")
    asked = parser.parse_args(arguments)
    if not asked.experiment.is_dir():
        parser.error(f"{asked.experiment} is no folder of an experiment")
    began = time.perf_counter()
    experiment = Experiment(asked.experiment, asked.verbose)
    seconds, memory = experiment.train()
    file = asked.results / f"{experiment.name.replace('/', '--')}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(results(experiment, began, seconds, memory), indent=2) + "\n", encoding="utf-8")
    return file


if __name__ == "__main__":
    print(main())
