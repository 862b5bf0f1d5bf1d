"""A fake run folder with every artifact, for the tests of the report."""

from __future__ import annotations

import base64
import gzip
import json
import math
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from striate.artifacts import (
    ComponentCount,
    Difference,
    EvalRecord,
    GateResult,
    GateRow,
    LayerScores,
    Peak,
    Prediction,
    PruneRecord,
    Region,
    Retention,
    Scores,
    SelfTest,
    SplitHalf,
    TaskScore,
    Trainable,
    TrainRecord,
    write_document,
    write_lines,
)
from striate.config import RunConfig, dump_config
from striate.runs.run_record import RunRecord, StageRecord
from striate.storage.atomic import write_text

LAYERS = 30
REMOVED = (9, 17, 21)
NASTY = "<script>alert('x')</script> & \"quotes\""
TASKS = [
    ("shapes", "colour", "choice", "visual"),
    ("shapes", "count", "exact", "visual"),
    ("boxes", "grounding", "iou50", "visual"),
    ("facts", "capitals", "choice_logprob", "text"),
    ("prose", "prose", "perplexity", "text"),
]
SCORES = {"start": 0.3125, "tuned": 0.6437, "pruned": 0.5981}


def region() -> Region:
    layers = tuple(place * LAYERS // 8 for place in range(8))
    return Region(layers=layers, num_layers=LAYERS, spec="uniform:25%", selector="uniform")


def layer_scores(scorer: str, parts: Sequence[str], centre: float, seed: int, samples: int = 64) -> LayerScores:
    """Return a hill about `centre` with noise, one hill a part, and what analysis says of its certainty."""
    rng = random.Random(seed)

    def values() -> tuple[float, ...]:
        hill = [math.exp(-(((layer - centre) / 5) ** 2)) for layer in range(LAYERS)]
        return tuple(0.05 + 0.6 * height * rng.uniform(0.9, 1.1) + 0.02 * rng.random() for height in hill)

    def widened(share: float, rows: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(share * value for value in rows)

    mean = values()
    modal = {part: values() for part in parts}
    best = mean.index(max(mean))
    return LayerScores(
        scorer=scorer,
        values=mean,
        low=widened(0.9, mean),
        high=widened(1.1, mean),
        parts=modal,
        part_low={part: widened(0.85, row) for part, row in modal.items()},
        part_high={part: widened(1.15, row) for part, row in modal.items()},
        spans=tuple(
            tuple(0.1 * length + 0.001 * first for first in range(LAYERS - length + 1)) for length in range(1, 9)
        )
        if scorer == "angular-distance"
        else (),
        samples=samples,
        tokens=dict.fromkeys(parts, 4096),
        split_half=SplitHalf(rank_correlation=0.93, low=0.88, high=0.97, samples_needed=41),
        peak=Peak(
            layer=best,
            low=max(0, best - 1),
            high=min(LAYERS - 1, best + 2),
            share=0.81,
            centre=centre + 0.3,
            centre_low=centre - 0.6,
            centre_high=centre + 1.1,
        ),
    )


def fake_scores() -> Scores:
    scorers = (
        layer_scores("block-influence", (), 4, 0),
        layer_scores("modality-block-influence", ("image", "text"), 9, 1),
        layer_scores("angular-distance", (), 20, 2),
    )
    tasks = {
        task: tuple(layer_scores(entry.scorer, (), centre, 10 * place + 7, samples=16) for entry in scorers)
        for place, (task, centre) in enumerate({"recognition": 5, "count": 12, "reading": 21, NASTY: 26}.items())
    }
    return Scores(num_layers=LAYERS, samples=64, scorers=scorers, tasks=tasks)


def fake_training() -> TrainRecord:
    components = [("vision encoder", 93_000_000, 0), ("projector", 4_100_000, 4_100_000), ("embeddings", 28_000_000, 0)]
    rows = [ComponentCount(component=name, total=total, trainable=on, tensors=9) for name, total, on in components]
    layers = [
        ComponentCount(
            component=f"layer {layer}", total=3_540_000, trainable=410_000 if layer in region() else 0, tensors=9
        )
        for layer in range(LAYERS)
    ]
    rows.append(ComponentCount(component="decoder layers", total=106_200_000, trainable=3_280_000, tensors=270))
    trainable = Trainable(method="lora", region=region(), components=tuple(rows), layers=tuple(layers))
    proof = "114 tensors are open and received a gradient; 412 are frozen and received none."
    return TrainRecord(
        trainable=trainable,
        proof=proof,
        samples=4000,
        steps=120,
        epochs=1.0,
        first_loss=2.412,
        last_loss=0.587,
        seconds=431.5,
        peak_memory_gib=3.21,
    )


def fake_eval(label: str) -> EvalRecord:
    tasks = []
    for place, (pack, task, metric, kind) in enumerate(TASKS):
        score = SCORES[label] - 0.03 * place if metric != "perplexity" else 3.217 + 0.01 * len(label)
        tasks.append(
            TaskScore(
                pack=pack,
                task=task,
                metric=metric,
                kind=kind,
                n=240 + place,
                score=score,
                low=score - 0.05,
                high=score + 0.05,
                unparsed=place,
            )
        )
    return EvalRecord(
        label=label,
        model=f"models/{label}",
        tasks=tuple(tasks),
        visual=SCORES[label],
        text=0.5,
        seconds=61.2,
        parameters=255_123_456 - (10_620_000 if label == "pruned" else 0),
        peak_memory_gib=1.53,
        size_bytes=510_400_000,
        num_layers=LAYERS - (3 if label == "pruned" else 0),
        intervals={"visual": (SCORES[label] - 0.06, SCORES[label] - 0.01)},
    )


def fake_answers(label: str, folder: Path) -> list[Prediction]:
    answers = []
    for place in range(36):
        pack, task, metric, _ = TASKS[place % 3]
        right = {"start": place % 4 == 0, "tuned": place % 5 != 0, "pruned": place % 7 != 0}[label]
        expected, wrong = (
            ("[0.20, 0.25, 0.60, 0.75]", "[0.30, 0.35, 0.80, 0.95]") if metric == "iou50" else ("red", "blue")
        )
        answers.append(
            Prediction(
                id=f"{task}-{place}",
                pack=pack,
                task=task,
                metric=metric,
                question=f"<image>\nWhat is it? {NASTY}",
                image=f"images/{place % 18}.png",
                expected=(expected,),
                answer=expected if right else wrong,
                score=float(right),
                unparsed=label == "start" and place % 9 == 1,
            )
        )
    return answers


def difference(
    label: str, pack: str, task: str, kind: str, metric: str, base: float, score: float, n: int, baseline: str = "start"
) -> Difference:
    kept = 100 * math.exp(base - score) if metric == "perplexity" else 100 * score / base
    return Difference(
        label=label,
        baseline=baseline,
        pack=pack,
        task=task,
        kind=kind,
        metric=metric,
        n=n,
        baseline_score=base,
        score=score,
        difference=score - base,
        low=score - base - 0.031,
        high=score - base + 0.042,
        retention=kept,
        retention_low=kept and kept - 4.2,
        retention_high=kept and kept + 5.1,
        right_to_wrong=None if metric == "perplexity" else 17,
        wrong_to_right=None if metric == "perplexity" else 61,
        mcnemar_p=None if metric == "perplexity" else 0.00000071,
        resolvable=0.052,
    )


def fake_rows(label: str, base: str) -> list[Difference]:
    """Return the comparison of two models: every task, then all visual and all text tasks."""
    rows = [
        difference(label, one.pack, one.task, one.kind, one.metric, one.score, other.score, one.n, base)
        for one, other in zip(fake_eval(base).tasks, fake_eval(label).tasks, strict=True)
    ]
    rows.append(difference(label, "*", "visual", "visual", "*", SCORES[base], SCORES[label], 723, base))
    return [*rows, difference(label, "*", "text", "text", "*", 0.512, 0.509, 243, base)]


def fake_retention() -> Retention:
    return Retention(
        baseline="start",
        repetitions=2000,
        rows=(*fake_rows("tuned", "start"), *fake_rows("pruned", "start")),
        interval="Pictures are drawn whole.",
        against={"tuned": "start", "pruned": "tuned"},
        held=tuple(fake_rows("pruned", "tuned")),
    )


def fake_gate() -> GateResult:
    rows = (
        GateRow(
            condition="visual>=90",
            label="pruned",
            scope="visual",
            threshold=90,
            retention=92.9,
            low=90.2,
            high=95.5,
            n=723,
            passed=True,
            resolvable=True,
            against="tuned",
        ),
        GateRow(
            condition="text>=99.5",
            label="pruned",
            scope="text",
            threshold=99.5,
            retention=99.4,
            low=95.2,
            high=104.5,
            n=243,
            passed=False,
            resolvable=False,
            needed_n=41_000,
            against="tuned",
        ),
    )
    return GateResult(gate="visual>=90,text>=99.5", baseline="start", rows=rows)


def build_run(folder: Path) -> Path:
    """Write every artifact of a run, and the pictures that its test pack refers to."""
    config = RunConfig.model_validate(
        {
            "model": {"path": "models/small-lvlm"},
            "data": {"train": ["data/shapes"]},
            "evaluate": {"packs": [str(folder / "packs" / "shapes"), str(folder / "packs" / "boxes")]},
            "prune": {"remove": 3},
            "report": {"title": f"A run called {NASTY}", "examples": 12},
        }
    )
    write_text(folder / "config.yaml", dump_config(config))
    for pack in ("shapes", "boxes"):
        (folder / "packs" / pack / "images").mkdir(parents=True)
        for place in range(18):
            colour = (40 + 12 * place, 90, 240 - 12 * place)
            Image.new("RGB", (64 + 40 * (place % 5), 64), colour).save(folder / "packs" / pack / f"images/{place}.png")
    write_document(folder / "scores.json", fake_scores())
    write_document(folder / "region.json", region())
    write_document(folder / "train.json", fake_training())
    steps = [
        {
            "step": step,
            "loss": 0.5 + 2 * math.exp(-step / 25) + 0.1 * math.sin(step * 1.7),
            "lr": 2e-4 * (1 - step / 120),
            "projector_lr": 2e-5 * (1 - step / 120),
            "grad_norm": 1 + 0.4 * math.cos(step),
            "seconds": 3.5,
        }
        for step in range(1, 121)
    ]
    write_text(folder / "train_log.jsonl", "".join(json.dumps(step) + "\n" for step in steps))
    kept = [layer for layer in range(LAYERS) if layer not in REMOVED]
    pruned = PruneRecord(
        region=region(),
        scorer="modality-block-influence",
        kept=tuple(kept),
        removed=REMOVED,
        old_to_new={old: new for new, old in enumerate(kept)},
        parameters_before=255_123_456,
        parameters_after=244_503_456,
        bytes_before=1_020_493_824,
        bytes_after=978_013_824,
        self_test=SelfTest(prompts=3, max_logit_difference=0.0, cached_equals_uncached=True),
    )
    write_document(folder / "prune.json", pruned)
    for label in SCORES:
        write_document(folder / "eval" / f"{label}.json", fake_eval(label))
        write_lines(folder / "eval" / f"{label}.predictions.jsonl", fake_answers(label, folder))
    write_document(folder / "eval" / "retention.json", fake_retention())
    write_document(folder / "eval" / "gate.json", fake_gate())
    write_document(folder / "run.json", fake_record())
    return folder


def fake_record() -> RunRecord:
    names = ("analyze", "select", "train", "prune", "evaluate")
    stages = {
        name: StageRecord(
            status="done",
            seconds=12.5 * (place + 1),
            peak_memory_gib=1.25 + place,
            key="k" * 16,
            outputs={f"{name}.json": f"{place}" * 64},
            finished="2026-01-02T03:04:05+00:00",
        )
        for place, name in enumerate(names)
    }
    return RunRecord(
        striate="0.1.0",
        versions={"torch": "2.13.0", "transformers": "5.23.0"},
        python="3.12.3",
        platform="Linux x86_64",
        device="cpu",
        seed=7,
        command="striate run my.yaml --set train.lr=1e-4",
        stages=stages,
        fingerprints={"model": "f00d" * 8, "data/shapes": "beef" * 8},
    )


@pytest.fixture(scope="session")
def make_run() -> Callable[[Path], Path]:
    return build_run


def unpacked(html: str) -> str:
    """The page as its script sees it when every choice of its menus was made once."""

    def opened(found: re.Match[str]) -> str:
        return f" hidden>{gzip.decompress(base64.b64decode(found[1])).decode()}"

    return re.sub(r' data-packed="([^"]*)" hidden>', opened, html)


@pytest.fixture(scope="session")
def unpack() -> Callable[[str], str]:
    return unpacked
