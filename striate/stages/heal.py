"""Heal: train a pruned model a little, towards the answers and towards what the whole model said of them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from torch import Tensor, nn

from striate.artifacts import HealRecord, PruneRecord, Region
from striate.config import HealSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.pictures import PictureLimits
from striate.data.samples import Sample
from striate.errors import TrainingError
from striate.healing.healed_layers import healed_layers
from striate.healing.objective import HealingObjective
from striate.healing.teacher_rows import TeacherRows
from striate.models.io.adapters import merged
from striate.models.io.card.card_facts import CardFacts
from striate.models.io.image_token_count import image_tokens_counted
from striate.models.surgery.renumber import renumbered
from striate.models.trainable.parameter_selection import is_adapted
from striate.models.visual_token_skipping.rule import skipping_of
from striate.progress import Progress, Silent
from striate.pruning.tested_save import save_tested
from striate.runs.peak_memory import peak_memory_gib, reset_peak_memory
from striate.training.checkpointing.checkpoints import CheckpointStore
from striate.training.checkpointing.resume_identity import Identity, identity
from striate.training.distributed.ranks import Ranks
from striate.training.job import TrainingJob
from striate.training.preflight_checks import check_training, warn_of_warmup
from striate.training.schedule import Plan
from striate.training.session import TrainingResult, train_in_place
from striate.training.setup import PreparedModel

_LOSSES = ("loss", "ce", "kl", "hidden")


@dataclass(frozen=True)
class Healing:
    """What heals a pruned model.

    Attributes:
        pruned: which layers are gone.
        samples: that are learned from (`healing.sample_mix.healing_samples`).
        teacher: what the whole model said of their answers (`healing.teacher_pass.teacher_rows`); None where
            nothing is learned of it.
        section: for how long, which layers, by which loss.
        train: the settings of training that `section` leaves open.
        machine: micro-batch and workers.
        seed: of the order of samples, of adapters' first values and of dropout.
    """

    pruned: PruneRecord
    samples: Sequence[Sample]
    teacher: TeacherRows | None
    section: HealSection
    train: TrainSection = field(default_factory=TrainSection)
    machine: MachineSection = field(default_factory=MachineSection)
    seed: int = 0


@image_tokens_counted()
def heal(
    model: nn.Module,
    processor: Any,
    healing: Healing,
    *,
    out: Path | None = None,
    work_dir: Path | None = None,
    log: Path | None = None,
    base_path: str = "",
    base_weights: str = "",
    broken: Literal["refuse", "skip"] = "refuse",
    overwrite: bool = False,
    test_inputs: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> tuple[nn.Module, HealRecord]:
    """Return the pruned `model`, trained in place and without adapters, and how it went.

    Args:
        model: the pruned model, plain.
        processor: its processor.
        healing: what is learned.
        out: folder to save to. The saved model is then loaded again and compared with the one in memory.
        work_dir: where checkpoints are kept, which stay there until the caller removes them; called again with the
            same arguments and a fresh model, healing goes on from the last. None keeps none.
        log: `heal_log.jsonl`, one line a step; None keeps none.
        base_path: where the pruned model is, as checkpoints name it.
        base_weights: a fingerprint of it; unfinished healing does not go on with another.
        broken: whether a sample that can't be used stops healing, or is left out.
        overwrite: whether unfinished healing that can't be gone on with is removed.
        test_inputs: left-padded prompts for the comparison after saving.
        progress: where to show it.

    Raises:
        SpecError: `heal.region` can't be read, or does not fit the pruned model.
        TrainingError: nothing to train, no teacher where the loss needs one, several processes, a failed proof, a loss
            that is not finite, or a work folder of another run.
        DataError: a sample that can't be used, or none that can.
        ArtifactError: a folder that can't be written, or `out` is not empty.
        ModelError: the saved model does not match the one in memory.
    """
    progress, section = progress or Silent(), healing.section
    _check(healing)
    region = healed_layers(section.region, healing.pruned)
    config = _settings(model, region, healing)
    check_training(model, region, healing.samples, config, out)
    facts = _identity(healing, region, config, base_path, base_weights)
    with ExitStack() as stack:
        spare = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = CheckpointStore(work_dir or spare / "work", facts, saves=work_dir is not None)
        log = log or spare / "heal_log.jsonl"
        limits = PictureLimits.of(healing.machine)
        job = TrainingJob(
            region,
            healing.samples,
            Collator(processor, config.max_length, True, limits, broken == "skip"),
            config,
            healing.machine,
            healing.seed,
            base_path,
            Plan.of(len(healing.samples), config, healing.machine),
            objective=HealingObjective(section, healing.teacher),
        )
        warn_of_warmup(job.plan, progress)
        checkpoint = store.find(log, overwrite, progress.say)
        reset_peak_memory(next(model.parameters()).device)
        prepared, result = train_in_place(model, processor, job, progress, store, log, checkpoint)
    record = _record(job, healing, prepared, result)
    progress.say(record.proof)
    healed = merged(prepared.model) if is_adapted(prepared.model) else prepared.model
    if out is not None:
        own = renumbered(healing.pruned.region, healing.pruned.old_to_new)
        card = CardFacts(base=base_path, method="", region=healing.pruned.region, prune=healing.pruned, heal=record)
        test = save_tested(healed, processor, out, region=own, card=card, test_inputs=test_inputs)
        record = record.model_copy(update={"self_test": test})
    return healed, record


def _check(healing: Healing) -> None:
    """Raise for what can't heal."""
    if not healing.section.on:
        raise TrainingError(
            "neither heal.steps nor heal.share is set",
            "how long healing takes: heal.steps, or heal.share of the data",
            "set one of them, for example heal.share=5%",
        )
    if healing.section.needs_teacher and healing.teacher is None:
        raise TrainingError(
            "heal.kl or heal.hidden is over 0, and there is nothing of the whole model to learn from",
            "what `teacher_rows` returns, taken before layers were removed",
            "pass it as teacher, or set heal.kl=0 and heal.hidden=0",
        )
    if (processes := Ranks.launched().world_size) > 1:
        raise TrainingError(f"healing on {processes} processes", "one process", "start it without a launcher")


def _settings(model: nn.Module, region: Region, healing: Healing) -> TrainSection:
    """Return the settings of training: image tokens are computed where the model computes them already.

    Raises:
        TrainingError: layers would heal that compute no image tokens.
    """
    region_then = healing.pruned.region
    config = healing.section.training(healing.train.settled(len(region_then), region_then.num_layers))
    if not any(sample.images for sample in healing.samples):
        config = config.model_copy(update={"projector": "frozen"})
    rule = skipping_of(model)
    if rule is None:
        return config
    computing = set(rule.compute.layers)
    if len(computing) == region.num_layers:
        rule.remove()
        return config
    if not set(region.layers) <= computing:
        raise TrainingError(
            f"heal.region {healing.section.region!r} has layers that compute no image tokens in this model",
            f"layers {', '.join(map(str, sorted(computing)))} of the pruned model",
            "use heal.region=region",
        )
    also = ",".join(map(str, sorted(computing - set(region.layers))))
    return config.model_copy(update={"image_tokens": "region", "image_also": f"ids:{also}" if also else "none"})


def _identity(healing: Healing, region: Region, config: TrainSection, base_path: str, base_weights: str) -> Identity:
    """Return what two sessions of one healing must share: as of a training, the loss and the teacher besides."""
    same = identity(region, config, healing.samples, healing.seed, base_path, base_weights)
    own: dict[str, Any] = {f"heal.{name}": getattr(healing.section, name) for name in ("ce", "kl", "hidden", "top_k")}
    return replace(same, facts={**same.facts, **own, "teacher": healing.teacher.digest if healing.teacher else ""})


def _record(job: TrainingJob, healing: Healing, prepared: PreparedModel, result: TrainingResult) -> HealRecord:
    """Return how healing went."""
    section = healing.section
    third = max(1, len(result.rows) // 3)
    return HealRecord(
        layers=section.region,
        method=job.config.method,
        lr=job.config.rate,
        weights={"ce": section.ce, "kl": section.kl, "hidden": section.hidden},
        top_k=section.top_k if section.kl else 0,
        trainable=prepared.trainable,
        proof=result.proof,
        samples=job.plan.samples,
        text_samples=sum(not sample.images for sample in job.samples),
        steps=job.plan.steps,
        epochs=job.plan.steps / job.plan.steps_per_epoch,
        first=_mean_losses(result.rows[:third]),
        last=_mean_losses(result.rows[-third:]),
        seconds=result.seconds,
        peak_memory_gib=peak_memory_gib(next(prepared.model.parameters()).device),
        tokens=result.tokens,
        skipped=result.skipped,
    )


def _mean_losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the mean of each loss over steps: of one step it says most about which samples it had."""
    return {name: fmean(row[name] for row in rows) for name in _LOSSES if name in rows[0]}
