"""What the studies of one LVLM on a folder of packs share: options, samples, packs, tuning and asking."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

TRAIN: dict[str, Any] = {
    "method": "full",
    "lr": 1.6e-3,
    "projector_lr": 4e-4,
    "max_length": 1024,
    "packing": True,
    "save_steps": 1000,
}
_KEPT = frozenset({"id", "pack", "task", "metric", "image", "score", "weight", "picture"})


def options(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that every study has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--devices", type=int, default=1, help="GPUs that they take in turn")
    parser.add_argument("--join", action="store_true", help="other processes are at work in the same folder")
    parser.add_argument("--minutes", type=float, default=600, help="after which nothing new is begun")
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--max-steps", type=int, help="of tuning, instead of epochs")
    parser.add_argument("--batch-size", type=int, default=64, help="samples a step")
    parser.add_argument("--samples", type=int, help="training samples, drawn once; all by default")
    parser.add_argument("--limit", type=int, help="test items a pack")
    parser.add_argument("--workers", type=int, default=1, help="processes that read samples for a training")
    parser.add_argument("--readers", type=int, default=4, help="the same where everything waits for one")
    parser.add_argument("--eval-batch", type=int, default=256)
    parser.add_argument("--pack-tokens", type=int, default=8192)
    parser.add_argument("--compile", default="auto")
    parser.add_argument("--cache-vision", default="disk")
    parser.add_argument("--until", type=float, default=0, help=argparse.SUPPRESS)
    return parser


class Parts:
    """What one process of a study holds; everything is read when it is first asked for."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Take the command line."""
        self.args, self.out = args, args.out

    @cached_property
    def samples(self) -> list[Any]:
        """The training samples."""
        from striate.data.reading import read_many

        return read_many(sorted(self.args.data.glob("*/train.json")), self.args.samples, 0)

    @cached_property
    def packs(self) -> list[Any]:
        """The test packs."""
        from striate.tasks.packs.reader import read_pack

        return [read_pack(folder.parent, self.args.limit) for folder in sorted(self.args.data.glob("*/test.jsonl"))]

    def machine(self, workers: int) -> Any:
        """Return the section `machine`, with as many processes that read."""
        from striate.config import MachineSection

        return MachineSection(
            micro_batch=self.args.batch_size,
            eval_batch=self.args.eval_batch,
            pack_tokens=self.args.pack_tokens,
            workers=workers,
            compile=self.args.compile,
            cache_vision=self.args.cache_vision,
        )

    def train(self, **changes: Any) -> Any:
        """Return the section `train`."""
        from striate.config import TrainSection

        args = self.args
        own = {"batch_size": args.batch_size, "epochs": args.epochs, "max_steps": args.max_steps}
        return TrainSection(**{**TRAIN, **own, **changes})

    def region(self, spec: str, model: Any) -> Any:
        """Return the region of a SPEC."""
        from striate.selectors.spec.grammar import resolve

        return resolve(spec, model.config.get_text_config().num_hidden_layers)

    def start(self) -> tuple[Any, Any]:
        """Return the start model and its processor."""
        from striate.models.io.load import load_model

        loaded = load_model(self.args.model)
        return loaded.model, loaded.processor

    def tune(
        self,
        model: Any,
        processor: Any,
        region: Any,
        train: Any,
        seed: int,
        folder: Path,
        workers: int,
        held_out: Sequence[Any] = (),
    ) -> Any:
        """Tune `region` of a model in place; return the record. The checkpoint is in `folder`."""
        from striate.stages.train import train as train_region

        return train_region(
            model,
            processor,
            region,
            self.samples,
            train,
            self.machine(workers),
            seed=seed,
            out=folder / "checkpoint",
            work_dir=folder / "work",
            log=folder / "train_log.jsonl",
            base_path=str(self.args.model),
            held_out=held_out,
        )

    def evaluated(self, model: Any, processor: Any, **facts: Any) -> dict[str, Any]:
        """Return what is written of a model: `facts`, its record and every item's score."""
        from striate.config import EvaluateSection
        from striate.stages.evaluate import evaluate

        began = time.perf_counter()
        record, answers = evaluate(
            model,
            processor,
            self.packs,
            label="model",
            model_name="model",
            config=EvaluateSection(bootstrap=200, max_new_tokens=24),
            machine=self.machine(self.args.workers),
        )
        return {
            **facts,
            "evaluating": round(time.perf_counter() - began, 1),
            "record": record.model_dump(mode="json"),
            "predictions": [{**one.model_dump(mode="json", include=_KEPT), "question": ""} for one in answers],
        }
