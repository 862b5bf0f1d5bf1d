"""Writes the model card: `README.md` of a checkpoint, with hub metadata, region, scores and the run's config."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from striate.artifacts import Difference, EvalRecord, HealRecord, PruneRecord, Region, SourceSeen, TaskScore
from striate.config import RunConfig, looks_like_hub_id
from striate.errors import ModelError
from striate.models.io.card_code import FENCE, example_code, fenced, quantisation_of
from striate.models.visual_token_skipping.visual_compute import (
    VISUAL_COMPUTE_FILE,
    VisualCompute,
    read_visual_compute,
)
from striate.printable import printable
from striate.storage.atomic import write_bytes
from striate.storage.local_places import without_places
from striate.storage.read_files import Form, parse_yaml, read_text
from striate.wording import PERPLEXITY, named_layers, perplexity, perplexity_of, plural, score_span

CARD_FILE = "README.md"
BASE_CARD = Form(ModelError, "a model card")
PIPELINE = "image-text-to-text"
METHODS = {"lora": "LoRA", "qlora": "QLoRA", "full": "full weights"}
MEASURED_BEFORE = " They were measured before the weights were {}."
UNKNOWN = "This card was written by striate, which does not know how the model was trained."
LESS_PERPLEXITY = (
    " (perplexity as such, lower is better; its retention is that of the model that is held against over its own)"
)
# What a table with floors tells more: of itself, in its head, and in the line below.
ABOVE_FLOOR = (
    " Its floor is its score with grey pictures in place of the right ones; above it is kept (score - floor) /"
    " (its score - floor).",
    " its floor | above the floor | 95% interval |",
    "---|---|---|",
)
SKIPPING = (
    "**Image tokens are computed only in layers {layers}**: in others they {keep} (visual token skipping)."
    " `striate.load_model` reads that from {file}. Plain transformers and PEFT load these weights too, but compute"
    " image tokens in every layer, which is another model than the one that was tuned and measured."
)


@dataclass(frozen=True)
class Seen:
    """How many different samples a training read, out of how many, and how often it went through all of them."""

    samples: int
    of: int
    epochs: float

    @classmethod
    def after(cls, steps: int, samples: int, batch_size: int, left_out: int = 0) -> Seen:
        """Return what `steps` steps of `batch_size` read of `samples`, of which `left_out` were broken.

        Every epoch reads each sample once, and its last step what is left.
        """
        per_epoch = max(1, math.ceil(samples / batch_size))
        read = samples if steps >= per_epoch else steps * batch_size
        return cls(max(0, read - left_out), samples, steps / per_epoch)


@dataclass(frozen=True)
class CardFacts:
    """What a card tells; whatever is not known yet is None or empty.

    Attributes:
        base: the model that this one was made from, a hub id or a folder.
        method: how the region was trained: `lora`, `qlora`, `full`; empty where nothing was.
        region: in the layer numbers of the base.
        trained: trained parameters and all parameters.
        seen: of how many samples it learned.
        lr: the learning rate of the region's layers.
        sources: what it saw of each place of its training data.
        adapter: whether the folder holds an adapter, which needs its base.
        kind: of an adapter of whose training nothing else is known, such as `lora`.
        merged: the number format of a model whose adapter was added into its weights.
        prune: which layers are gone.
        heal: how the pruned model was trained since.
        evaluation: scores of this model.
        differences: paired comparisons of this model with a baseline.
        config: of the run.
        named: what a person calls the base where its folder has another name: `builtin`.
        licence: of the base where its own card is not on this disk.
    """

    base: str
    method: str
    region: Region | None
    trained: tuple[int, int] | None = None
    seen: Seen | None = None
    lr: float | None = None
    sources: tuple[SourceSeen, ...] = ()
    adapter: bool = False
    kind: str = ""
    merged: str = ""
    prune: PruneRecord | None = None
    heal: HealRecord | None = None
    evaluation: EvalRecord | None = None
    differences: tuple[Difference, ...] = ()
    config: RunConfig | None = None
    named: str = ""
    licence: str | None = None


def write_card(folder: Path, facts: CardFacts) -> None:
    """Write the card of the checkpoint in `folder`, whole or not at all.

    Raises:
        ArtifactError: the folder can't be written.
    """
    write_bytes(folder / CARD_FILE, card_text(facts, folder.name, folder).encode())


def card_text(facts: CardFacts, folder: str, checkpoint: Path | None = None) -> str:
    """Return the card as Markdown below its YAML metadata.

    Args:
        facts: what the card tells.
        folder: the name that its example loads from.
        checkpoint: where the model is by now, to see whether image tokens skip layers of it.
    """
    compute = read_visual_compute(checkpoint) if checkpoint else None
    stored = quantisation_of(checkpoint) if checkpoint else ""
    parts = [
        f"# {_plain(folder)}: {', '.join(filter(None, (_plain(_base_name(facts)), _deed(facts))))}",
        f"{_summary(facts)} {stored}".rstrip(),
        _region(facts),
        _figures(facts, stored),
        _loading(facts, folder, checkpoint, compute),
        _config(facts),
        "Made with striate, after arXiv 2412.12785 (ACL 2025)." if _is_ours(facts) else UNKNOWN,
    ]
    body = "\n\n".join(part for part in parts if part)
    return f"---\n{_metadata(facts, folder)}\n---\n\n{body}\n"


def _is_ours(facts: CardFacts) -> bool:
    """Return whether striate made the model, and not its card alone."""
    return bool(facts.method or facts.prune or facts.region or facts.config)


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


def _metadata(facts: CardFacts, folder: str) -> str:
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
            dataset_type=_on_one_line(task.pack),
            dataset_name=_on_one_line(f"{task.pack}: {task.task}"),
            # Without a config of their own, tasks of one pack would be taken for one.
            dataset_config=_on_one_line(task.task),
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


def _base_name(facts: CardFacts) -> str:
    """Return a hub id as it is, and of a folder its last part: where it lay tells a reader nothing."""
    base = facts.base
    return facts.named or (base if looks_like_hub_id(base) else Path(base).name or base)


def _deed(facts: CardFacts) -> str:
    tuned = f"tuned in {len(facts.region)} of {facts.region.num_layers} layers" if facts.region and facts.method else ""
    gone = f"{plural(len(facts.prune.removed), 'layer')} removed" if facts.prune and facts.prune.removed else ""
    parts = [tuned or ("tuned" if facts.method else ""), gone]
    # Of a model whose making nobody noted, nothing is claimed.
    return ", ".join(part for part in parts if part) or ("unchanged" if facts.prune else "")


def _summary(facts: CardFacts) -> str:
    told = [f"Base model: `{_code(_base_name(facts))}`."]
    if facts.method:
        rate = f" at a learning rate of {facts.lr:g}" if facts.lr else ""
        told.append(f"Visual instruction tuning with {METHODS.get(facts.method, facts.method)}{rate}.")
    if facts.trained:
        trained, total = facts.trained
        told.append(f"{trained:,} of {total:,} parameters were trained ({100 * trained / (total or 1):.1f}%).")
    if facts.seen:
        told.append(_samples(facts.seen))
    if len(facts.sources) > 1:
        told.append(f"Of each source: {'; '.join(map(_source, facts.sources))}.")
    if facts.merged:
        adapter = f"An adapter ({METHODS.get(facts.kind, _code(facts.kind))})" if facts.kind else "The adapter"
        told.append(f"{adapter} is added into the weights, which are {facts.merged}.")
    if facts.prune:
        told.append(
            f"Parameters: {facts.prune.parameters_before:,} before pruning, {facts.prune.parameters_after:,} now."
        )
    if facts.heal:
        told.append(_healing(facts.heal))
    return " ".join(told)


def _samples(seen: Seen) -> str:
    epochs = f"{seen.epochs:.3g} {'epoch' if seen.epochs == 1 else 'epochs'}"
    return f"It was trained on {seen.samples:,} of {seen.of:,} samples, {epochs}."


def _source(source: SourceSeen) -> str:
    """Return what was seen of one place of the training data; of a path its name alone."""
    name = source.name if source.name.startswith("hf:") else source.name.rstrip("/").rpartition("/")[2]
    epochs = f"{source.epochs:.3g} {'epoch' if source.epochs == 1 else 'epochs'}"
    return f"`{_code(name)}` {source.seen:,} of {source.samples:,} samples, {epochs}"


def _healing(heal: HealRecord) -> str:
    layers = named_layers(heal.trainable.region.layers)
    text = f", {heal.text_samples:,} of them without a picture" if heal.text_samples else ""
    towards = ", towards the tuned model's own predictions" if heal.weights["kl"] or heal.weights["hidden"] else ""
    return (
        f"Healed after pruning: {plural(heal.steps, 'step')} on {plural(heal.samples, 'sample')}{text}, with"
        f" {METHODS.get(heal.method, heal.method)} of {layers} (new numbers){towards}."
    )


def _region(facts: CardFacts) -> str:
    region, removed = facts.region, facts.prune.removed if facts.prune else ()
    if region is None:
        return ""
    signs = {True: f"████████  {'trained' if facts.method else 'in the region'}", False: "░░░░░░░░"}
    rows = [
        f"{layer:3d} {'╳╳╳╳╳╳╳╳  removed' if layer in removed else signs[layer in region]}"
        for layer in reversed(range(region.num_layers))
    ]
    stack = "\n".join([f"{FENCE}text", "    ↑ output", *rows, "    ↑ input", FENCE])
    told = f"## Region\n\n`{_code(region.spec)}`: {named_layers(region.layers)} "
    return f"{told}of {region.num_layers}, counted from 0.\n\n{stack}{_moves(facts.prune)}"


def _moves(prune: PruneRecord | None) -> str:
    if prune is None or not prune.removed:
        return ""
    moved = ", ".join(f"{old}→{new}" for old, new in sorted(prune.old_to_new.items()))
    gone = named_layers(prune.removed)
    told = f"\n\nRemoved: {gone} (by {_plain(prune.scorer)}, of those outside the region). Old→new: {moved}."
    return told + (f"\n\n{prune.compensation.told}" if prune.compensation else "")


def _figures(facts: CardFacts, stored: str) -> str:
    if facts.evaluation is None:
        return ""
    changed = "quantised" if stored else "merged and rounded" if facts.merged else ""
    rows = {(row.pack, row.task, row.metric): row for row in facts.differences}
    floors = any(row.floor is not None for row in facts.differences)
    about, heads, rule = ABOVE_FLOOR if floors else ("", "", "")
    read = any(task.metric == PERPLEXITY for task in facts.evaluation.tasks)
    less = LESS_PERPLEXITY if read else ""
    lines = [
        "## Evaluation",
        "",
        f"Scores in % with 95% intervals{less}; retention against "
        f"{_reference(facts)} on the same items.{about}{MEASURED_BEFORE.format(changed) if changed else ''}",
        "",
        f"| task | metric | n | score | 95% interval | retention | 95% interval |{heads}",
        f"|---|---|---|---|---|---|---|{rule}",
        *(_whole_row(row) + _above_floor(row, floors) for row in facts.differences if row.pack == "*"),
        *(
            _row(task, row) + _above_floor(row, floors)
            for task in facts.evaluation.tasks
            for row in [rows.get((task.pack, task.task, task.metric))]
        ),
    ]
    return "\n".join(lines)


def _reference(facts: CardFacts) -> str:
    """Return what the model is held against, by its name in the run."""
    names = {"start": "the model before tuning (start)", "tuned": "the tuned model before layers were removed (tuned)"}
    if not facts.differences:
        return "no other model" if facts.prune is None else "no other model: the tuned one was not evaluated"
    return names.get(facts.differences[0].baseline, _plain(facts.differences[0].baseline))


def _row(task: TaskScore, row: Difference | None) -> str:
    score = perplexity(task.score) if task.metric == PERPLEXITY else f"{100 * task.score:.1f}"
    told = score_span(task.low, task.high, task.metric) or f"none: {task.no_interval}"
    cells = [f"{task.pack}: {task.task}", task.metric, str(task.n), score, told, *_retention(row)]
    return f"| {' | '.join(map(_plain, cells))} |"


def _whole_row(row: Difference) -> str:
    cells = [f"all {row.kind} tasks", "mean", str(row.n), f"{100 * row.score:.1f}", "", *_retention(row)]
    return f"| {' | '.join(cells)} |"


def _above_floor(row: Difference | None, shown: bool) -> str:
    """Return the cells of the floor, which stand in the table where any row has one."""
    if not shown:
        return ""
    if row is None or row.floor is None:
        return "  |  |  |"
    kept = _retention(row.kept_above_floor) if row.above_floor is not None else (f"none: {row.no_above_floor}", "")
    return f" {100 * row.floor:.1f} | {kept[0]} | {kept[1]} |"


def _retention(row: Difference | None) -> Sequence[str]:
    if row is None or row.retention is None:
        return "", ""
    if row.retention_low is None or row.retention_high is None:
        return f"{row.retention:.1f}%", f"none: {row.no_interval}"
    return f"{row.retention:.1f}%", f"{row.retention_low:.1f} to {row.retention_high:.1f}"


def _loading(facts: CardFacts, folder: str, checkpoint: Path | None, compute: VisualCompute | None) -> str:
    """Return how to load and ask the model, without striate where that gives the same one."""
    base = _base_name(facts) if facts.adapter else None
    code = "\n".join(["## Use", "", *fenced(example_code(folder, base, checkpoint, bool(compute)))])
    if compute is None:
        return code
    keep = "take a constant step" if compute.shift else "keep their state"
    layers = ", ".join(map(str, compute.layers)) or "none"
    return f"{code}\n\n{SKIPPING.format(layers=layers, keep=keep, file=VISUAL_COMPUTE_FILE)}"


def _config(facts: CardFacts) -> str:
    """Return the run's config, folded, without the places on the disk where it ran."""
    if facts.config is None:
        return ""
    text = yaml.safe_dump(without_places(facts.config.model_dump(mode="json")), sort_keys=False, allow_unicode=True)
    # A text of several lines may hold a fence of its own.
    fence = max([FENCE, *(f"{ticks}`" for ticks in re.findall("`+", text))], key=len)
    return f"<details><summary>Config of the run</summary>\n\n{fence}yaml\n{text}{fence}\n\n</details>"


def _on_one_line(text: str) -> str:
    """Return `text` without line breaks: a line of dashes would end the metadata."""
    return " ".join(printable(text).split())


def _code(text: str) -> str:
    """Return `text` for a code span."""
    return _on_one_line(text).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def _plain(text: str) -> str:
    """Return `text` as Markdown that shows it and no more: no element, no link and no picture."""
    return re.sub(r"([\[\]])", r"\\\1", _code(text))
