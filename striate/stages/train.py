"""Visual instruction tuning of a region and the projector; everything else stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from striate.artifacts import Region, SourceSeen, TrainRecord, ValidationRecord
from striate.config import MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.mixing import SampleSources
from striate.data.pictures import PictureLimits
from striate.data.samples import Sample
from striate.models.io.card.card_facts import CardFacts, Seen
from striate.models.io.image_token_count import image_tokens_counted
from striate.models.io.save import save_model
from striate.progress import Progress, Silent, warn
from striate.runs.peak_memory import peak_memory_gib, reset_peak_memory
from striate.training.batching.order import SeededOrder
from striate.training.checkpointing.checkpoints import Checkpoint, CheckpointStore
from striate.training.checkpointing.resume_identity import identity
from striate.training.distributed.ranks import Ranks
from striate.training.job import TrainingJob
from striate.training.lisa import lisa_record
from striate.training.preflight_checks import (
    check_broken,
    check_training,
    check_validation,
    warn_of_lisa,
    warn_of_warmup,
    warn_of_whole_steps,
)
from striate.training.schedule import Plan, told_micro_batch
from striate.training.session import TrainingResult, train_in_place
from striate.training.setup import PreparedModel
from striate.training.validation.watch import VALIDATION, Watch
from striate.training.whole_steps import whole_steps


@image_tokens_counted()
def train(
    model: Any,
    processor: Any,
    region: Region,
    samples: Sequence[Sample],
    config: TrainSection,
    machine: MachineSection,
    *,
    seed: int,
    out: Path,
    work_dir: Path,
    log: Path,
    base_path: str,
    broken: Literal["refuse", "skip"] = "refuse",
    base_weights: str = "",
    key: str = "",
    held_out: Sequence[Sample] = (),
    sources: SampleSources | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainRecord:
    """Return how the training went, after writing the tuned model to the folder `out`.

    The method of arXiv 2412.12785: only the decoder layers of the region and the projector are updated. `model` is
    tuned in place and left in eval mode; with LoRA its region gets adapters. `out` becomes a PEFT adapter folder
    (LoRA) or an ordinary checkpoint (full), with the processor and region.json, and loads without striate.

    Args:
        model: a plain LVLM on the device to train on.
        processor: its processor.
        region: which decoder layers train.
        samples: the training set.
        config: the science: method, learning rates, batch size, length.
        machine: micro-batch and workers.
        seed: of the order of samples, of first values and of dropout.
        out: the checkpoint folder, written whole or not at all; must be new or empty.
        work_dir: where unfinished training keeps its checkpoints, which are removed at the end. Called again with the
            same arguments and a fresh model it goes on from them, to the same weights as without interruption.
        log: `train_log.jsonl`, one line a step.
        base_path: where the base model is, as the adapter names it.
        broken: whether a sample that can't be used stops the training, or is left out.
        base_weights: a fingerprint of it; unfinished training does not go on with another.
        key: a fingerprint of all that the result follows from, which is kept with it.
        held_out: samples whose answer loss is measured while training, none of them among `samples`.
        sources: where the samples come from, for the record of what was seen of each.
        overwrite: whether unfinished training that can't be gone on with is removed.
        progress: where to show it.

    Raises:
        SpecError: `image_also` of `config` can't be read, or has no effect.
        ModelError: not an LVLM, an encoder-decoder, or a processor that is not the model's.
        TrainingError: nothing to train, a failed proof, a loss that is not finite, or a work folder of another run.
        DataError: a sample that can't be used, or none that can.
        ArtifactError: a folder that can't be written, or `out` is not empty.
    """
    config = config.settled(len(region), region.num_layers)
    check_training(model, region, samples, config, out)
    check_validation(config, held_out)
    ranks = _joined(model, broken)
    progress = progress if progress and ranks.is_main else Silent()
    facts = identity(region, config, samples, seed, base_path, base_weights, held_out=held_out, sources=sources)
    store = CheckpointStore(work_dir, facts)
    checkpoint = ranks.on_main(lambda: store.find(log, overwrite, progress.say))
    collator = Collator(processor, config.max_length, True, PictureLimits.of(machine), broken == "skip")
    plan = Plan.of(len(samples), config, machine, ranks.world_size)
    job = TrainingJob(region, samples, collator, config, machine, seed, base_path, plan, held_out, sources=sources)
    return _train(model, processor, job, progress, store, checkpoint, out=out, log=log, key=key)


def _joined(model: Any, broken: str) -> Ranks:
    """Return the processes of this training, which from now on exchange gradients."""
    ranks = Ranks.launched()
    check_broken(broken, ranks.world_size)
    ranks.join(next(model.parameters()).device)
    return ranks


def _train(
    model: Any,
    processor: Any,
    job: TrainingJob,
    progress: Progress,
    store: CheckpointStore,
    checkpoint: Checkpoint | None,
    *,
    out: Path,
    log: Path,
    key: str,
) -> TrainRecord:
    """Return how the training went, after writing the result, whole or not at all, with its card."""
    ranks = Ranks.launched()
    if not job.config.packing and (told := told_micro_batch(job.plan, job.machine)):
        progress.say(told)
    warn_of_lisa(job.region, job.config.resample, job.plan.steps, job.seed, progress)
    warn_of_whole_steps(job.config.image_whole_every, job.plan.steps, progress)
    warn_of_warmup(job.plan, progress)
    reset_peak_memory(next(model.parameters()).device)
    prepared, result = train_in_place(model, processor, job, progress, store, log, checkpoint)
    record = _record(job, prepared, result, ranks)
    card = _card(job, prepared, record)
    kept = {"key": key, "record": record.model_dump(mode="json"), "log": result.rows}
    ranks.on_main(lambda: save_model(prepared.model, processor, out, prepared.region, card, kept))
    ranks.on_main(store.remove)
    progress.say(record.proof)
    if record.skipped:
        warn(progress, f"{len(record.skipped)} broken samples were left out, which train.json names")
    return record


def _card(job: TrainingJob, prepared: PreparedModel, record: TrainRecord) -> CardFacts:
    """Return what the checkpoint's model card tells."""
    return CardFacts(
        base=job.base_path,
        method=job.config.method,
        region=prepared.region,
        trained=(prepared.trainable.trainable, prepared.trainable.total),
        seen=Seen.after(record.weights_step, record.samples, job.plan.batch_size, len(record.skipped)),
        lr=record.lr,
        sources=record.sources,
        adapter=job.config.method != "full",
    )


def _record(job: TrainingJob, prepared: PreparedModel, result: TrainingResult, ranks: Ranks) -> TrainRecord:
    """Return how the training went."""
    device = next(prepared.model.parameters()).device
    first, last = result.losses
    record = TrainRecord(
        trainable=prepared.trainable,
        lr=job.config.rate if job.region.layers else None,
        proof=result.proof,
        samples=job.plan.samples,
        steps=len(result.rows),
        epochs=len(result.rows) / job.plan.steps_per_epoch,
        first_loss=first,
        last_loss=last,
        seconds=result.seconds,
        peak_memory_gib=ranks.maximum(peak_memory_gib(device), device),
        tokens=result.tokens,
        padding=1 - result.tokens / max(1, result.slots),
        skipped=result.skipped,
        resampled=lisa_record(job.config.resample, job.region.layers, result.rows) if prepared.lisa else None,
        whole_steps=whole_steps(result.rows) if job.config.image_whole_every else None,
        image_check=prepared.image_check,
        validation=_validation(job, result.rows) if job.held_out else None,
    )
    return record.model_copy(update={"sources": _seen(job, record)})


def _seen(job: TrainingJob, record: TrainRecord) -> tuple[SourceSeen, ...]:
    """Return what the weights that were kept saw of each source, broken samples left out."""
    if job.sources is None:
        return ()
    times = SeededOrder(job.samples, job.seed, job.plan.batch_size).times_learned(record.weights_step)
    if record.skipped:
        times = [0 if job.name_of(index) in record.skipped else count for index, count in enumerate(times)]
    return job.sources.seen(times)


def _validation(job: TrainingJob, rows: Sequence[dict[str, Any]]) -> ValidationRecord:
    """Return what train.json holds of the validation of a training, whose log the `rows` are."""
    measured = [(row["step"], row[VALIDATION]) for row in rows if VALIDATION in row]
    watch = Watch(job.config, job.plan.steps, rows)
    kept = watch.best if watch.keeps_best and watch.best else len(rows)
    pictured = sum(bool(sample.images) for sample in job.held_out)
    return ValidationRecord(
        visual_samples=pictured,
        text_samples=len(job.held_out) - pictured,
        metric=watch.metric,
        first=_values(measured[0][1]),
        last=_values(measured[-1][1]),
        best=_values(dict(measured)[watch.best or measured[-1][0]]),
        best_step=watch.best or measured[-1][0],
        kept_step=kept,
        stopped_early=len(rows) < job.plan.steps,
        seconds=sum(one["seconds"] for _, one in measured),
    )


def _values(measured: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in measured.items() if name != "seconds"}
