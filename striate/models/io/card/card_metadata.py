"""The metadata of a model card, which the hub reads: licence, base, tags, scores; and those of a card on this disk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from striate.artifacts import EvalRecord, TaskScore
from striate.config import looks_like_hub_id
from striate.errors import ModelError
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.card.card_markdown import on_one_line
from striate.storage.read_files import Form, parse_yaml, read_text
from striate.wording import PERPLEXITY, perplexity_of

CARD_FILE = "README.md"
BASE_CARD = Form(ModelError, "a model card")
PIPELINE = "image-text-to-text"


def license_of(base: str) -> str | None:
    """Return the licence that the base model's own card names, where there is a card on this disk."""
    named = _card_fields(_card_of(base)).get("license")
    return named if isinstance(named, str) else None


def has_figures(folder: Path) -> bool:
    """Return whether the card in a checkpoint's folder has its test scores."""
    return "model-index" in _card_fields(folder / CARD_FILE)


def _card_of(base: str) -> Path:
    """Return where the card of a folder or hub id is on this disk, if it has one there."""
    if looks_like_hub_id(base) and not Path(base).is_dir():
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(base, CARD_FILE)
        return Path(found) if isinstance(found, str) else Path(base) / CARD_FILE
    return Path(base) / CARD_FILE


def _card_fields(path: Path) -> dict[str, Any]:
    """Return the metadata of a card; none where it is missing or damaged."""
    try:
        fields = read_text(path, BASE_CARD).split("---")
        metadata = parse_yaml(fields[1], str(path), BASE_CARD) if len(fields) > 2 and not fields[0].strip() else None
    except ModelError:
        # A card that nothing depends on: its author's slip must not cost a training.
        return {}
    return metadata if isinstance(metadata, dict) else {}


def metadata(facts: CardFacts, folder: str) -> str:
    """Return the metadata as YAML, without the lines around it; `folder` is the name of the model."""
    from huggingface_hub import ModelCardData

    base = facts.base if looks_like_hub_id(facts.base) else None
    data = ModelCardData(
        base_model=base,
        base_model_relation=("adapter" if facts.adapter else "finetune") if base else None,
        library_name="peft" if facts.adapter else "transformers",
        license=license_of(facts.base) or facts.licence,
        model_name=folder,
        pipeline_tag=PIPELINE,
        tags=_tags(facts),
        eval_results=_results(facts.evaluation) or None,
    )
    return str(data.to_yaml())


def _tags(facts: CardFacts) -> list[str]:
    method = facts.method or facts.kind
    named = [("visual-region", facts.region is not None), (method, method in ("lora", "qlora"))]
    removed = facts.prune is not None and bool(facts.prune.removed)
    return ["striate", *(name for name, on in [*named, ("layer-pruning", removed)] if on)]


def _results(record: EvalRecord | None) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=PIPELINE if task.kind == "visual" else "text-generation",
            dataset_type=on_one_line(task.pack),
            dataset_name=on_one_line(f"{task.pack}: {task.task}"),
            # Without a config of their own, tasks of one pack would be taken for one.
            dataset_config=on_one_line(task.task),
            metric_type=task.metric,
            metric_value=value,
            metric_name=f"{task.metric}, n = {task.n}{_named_interval(task)}",
        )
        for task in (record.tasks if record else ())
        # A number without an end is none that the hub takes.
        if math.isfinite(value := _named_value(task.score, task.metric))
    ]


def _named_value(score: float, metric: str) -> float:
    """Return a score as the hub has it: a share, or perplexity."""
    return round(perplexity_of(score) if metric == PERPLEXITY else score, 4)


def _named_interval(task: TaskScore) -> str:
    if task.low is None or task.high is None:
        return ""
    low, high = (_named_value(end, task.metric) for end in (task.low, task.high))
    return f", 95% interval {low:.4f} to {high:.4f}"
