"""Writes the model card: `README.md` of a checkpoint, with hub metadata, region, scores and the run's config."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from striate.artifacts import HealRecord, PruneRecord, SourceSeen
from striate.config import looks_like_hub_id
from striate.models.io.card.card_code import FENCE, example_code, fenced, quantisation_of
from striate.models.io.card.card_facts import CardFacts, Seen
from striate.models.io.card.card_figures import figures
from striate.models.io.card.card_markdown import code_span, plain
from striate.models.io.card.card_metadata import CARD_FILE, metadata
from striate.models.visual_token_skipping.visual_compute import (
    VISUAL_COMPUTE_FILE,
    VisualCompute,
    read_visual_compute,
)
from striate.storage.atomic import write_bytes
from striate.storage.local_places import without_places
from striate.wording import named_layers, plural

METHODS = {"lora": "LoRA", "qlora": "QLoRA", "full": "full weights"}
UNKNOWN = "This card was written by striate, which does not know how the model was trained."
SKIPPING = (
    "**Image tokens are computed only in layers {layers}**: in others they {keep} (visual token skipping)."
    " `striate.load_model` reads that from {file}. Plain transformers and PEFT load these weights too, but compute"
    " image tokens in every layer, which is another model than the one that was tuned and measured."
)


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
        f"# {plain(folder)}: {', '.join(filter(None, (plain(_base_name(facts)), _deed(facts))))}",
        f"{_summary(facts)} {stored}".rstrip(),
        _region(facts),
        figures(facts, stored),
        _loading(facts, folder, checkpoint, compute),
        _config(facts),
        "Made with striate, after arXiv 2412.12785 (ACL 2025)." if _is_ours(facts) else UNKNOWN,
    ]
    body = "\n\n".join(part for part in parts if part)
    return f"---\n{metadata(facts, folder)}\n---\n\n{body}\n"


def _is_ours(facts: CardFacts) -> bool:
    """Return whether striate made the model, and not its card alone."""
    return bool(facts.method or facts.prune or facts.region or facts.config)


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
    told = [f"Base model: `{code_span(_base_name(facts))}`."]
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
        adapter = f"An adapter ({METHODS.get(facts.kind, code_span(facts.kind))})" if facts.kind else "The adapter"
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
    return f"`{code_span(name)}` {source.seen:,} of {source.samples:,} samples, {epochs}"


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
    told = f"## Region\n\n`{code_span(region.spec)}`: {named_layers(region.layers)} "
    return f"{told}of {region.num_layers}, counted from 0.\n\n{stack}{_moves(facts.prune)}"


def _moves(prune: PruneRecord | None) -> str:
    if prune is None or not prune.removed:
        return ""
    moved = ", ".join(f"{old}→{new}" for old, new in sorted(prune.old_to_new.items()))
    gone = named_layers(prune.removed)
    told = f"\n\nRemoved: {gone} (by {plain(prune.scorer)}, of those outside the region). Old→new: {moved}."
    return told + (f"\n\n{prune.compensation.told}" if prune.compensation else "")


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
