"""One session of a training: from the last whole checkpoint, or from the start, to the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from striate.artifacts import ImageCheck
from striate.data.checks.broken_samples import usable
from striate.progress import Advance, Noting, Progress
from striate.runs.peak_memory import peak_memory_gib
from striate.training.approximations import frozen_format
from striate.training.batching.micro_batches import StepCollator, StepSampler, share_of, stand_ins, touch_of
from striate.training.batching.order import SeededOrder
from striate.training.caching.vision_features import CachedFeatures, cached_features
from striate.training.callbacks import Proof
from striate.training.checkpointing.checkpoints import Checkpoint, CheckpointStore
from striate.training.checkpointing.trained_weights import load_trainable
from striate.training.compile.cuda_graphs import GRAPH_OPTIONS, GraphedSteps
from striate.training.compile.policy import LayerExecution, choose_execution
from striate.training.compile.regional import CompiledLayers, compiled_layers, frozen_encoders
from striate.training.distributed.full_parameters import unshard
from striate.training.distributed.ranks import Ranks
from striate.training.distributed.sharding import gather_whole_layers, may_lack_gradients, sharding
from striate.training.inputs.step_inputs import LabelPositions, SkippingInput, StepInput
from striate.training.inputs.wait_free import WaitFreeInputs
from striate.training.job import TrainingJob
from striate.training.metrics.metrics_log import MetricsLog
from striate.training.packing.packed_rows import Packing
from striate.training.packing.packing_check import check_packing
from striate.training.precision import checkpointed
from striate.training.schedule import training_arguments, vision_rate
from striate.training.setup import PreparedModel, prepared_for_training
from striate.training.trainer import RegionTrainer
from striate.training.validation.held_out_loss import HeldOutLoss
from striate.training.validation.validation import Validation
from striate.training.validation.watch import Watch
from striate.training.whole_steps import WholeSteps, computing_whole


@dataclass(frozen=True)
class TrainingResult:
    """How it went, earlier sessions included: the proof, losses in nats a token, and the log of all steps."""

    proof: str
    rows: list[dict[str, Any]]

    @property
    def losses(self) -> tuple[float, float]:
        """The losses of the first and the last step."""
        return self.rows[0]["loss"], self.rows[-1]["loss"]

    @property
    def seconds(self) -> float:
        """Seconds of all steps."""
        return float(sum(row["seconds"] for row in self.rows))

    @property
    def skipped(self) -> dict[str, str]:
        """Why broken samples were left out, by their names (`TrainingJob.name_of`)."""
        return {sample: why for row in self.rows for sample, why in row.get("skipped", {}).items()}

    @property
    def tokens(self) -> int:
        """Tokens of all samples learned from, as often as they were."""
        return sum(row.get("tokens", 0) for row in self.rows)

    @property
    def slots(self) -> int:
        """The same with padding."""
        return sum(row.get("slots", 0) for row in self.rows)


class TrainingSession:
    """Trains a prepared model in place, from a checkpoint or from the start, to the last step."""

    def __init__(
        self,
        job: TrainingJob,
        prepared: PreparedModel,
        execution: LayerExecution,
        store: CheckpointStore,
        cached: CachedFeatures | None,
        progress: Progress,
    ) -> None:
        """Take the model and how its layers run; `store` is where its checkpoints are, `cached` its vision features."""
        self._job, self._prepared, self._execution, self._store = job, prepared, execution, store
        self._ranks, self._cached, self._progress = Ranks.launched(), cached, progress
        self._model: nn.Module = prepared.model
        self._packing = Packing(self._model) if job.config.packing else None
        self._packing_proof = ""
        every = job.config.image_whole_every
        self._whole = WholeSteps(self._model, every) if every else None

    def run(self, log: Path, checkpoint: Checkpoint | None) -> TrainingResult:
        """Return how the training went, from `checkpoint` or from the start.

        Raises:
            TrainingError: a failed proof, or a loss that is not finite.
            ArtifactError: log or checkpoints can't be written.
        """
        steps, rows = self._job.plan.steps, checkpoint.rows if checkpoint else ()
        watch = Watch(self._job.config, steps, rows)
        self._ranks.on_main(lambda: self._store.restore_best(checkpoint))
        track = self._progress.track(self._job.objective.label, steps)
        with MetricsLog(log, rows, self._ranks.is_main) as metrics, track as advance:
            if checkpoint:
                self._progress.say(f"going on from step {checkpoint.step} of {steps}")
                advance(checkpoint.step)
            if checkpoint and (checkpoint.step >= steps or watch.stops):
                load_trainable(self._model, checkpoint.folder)
                proof = checkpoint.proof
            else:
                proof = self._train(metrics, self._noted(advance, metrics), checkpoint, watch)
            if watch.keeps_best:
                load_trainable(self._model, self._store.best)
                self._progress.say(f"the weights of step {watch.best} are kept, whose {watch.metric} is best")
        return TrainingResult(proof, self._ranks.broadcast(metrics.rows))

    def _noted(self, advance: Advance, metrics: MetricsLog) -> Advance:
        """Return what moves the bar on and shows loss, speed and memory beside it, where these can be shown."""
        if not isinstance(self._progress, Noting):
            return advance
        note, device = self._progress.note, next(self._model.parameters()).device

        def step(count: int) -> None:
            # Of a process whose peak can't be reset nothing is known.
            peak = peak_memory_gib(device)
            note(metrics.figures() + (f", {peak:.1f} GiB" if peak else ""))
            advance(count)

        return step

    def _train(
        self, metrics: MetricsLog, advance: Callable[[int], None], checkpoint: Checkpoint | None, watch: Watch
    ) -> str:
        """Return the proof of what trained, after the steps that are left."""
        gather_whole_layers(self._model, chain(*frozen_encoders(self._model)))
        with ExitStack() as stack:
            if self._job.config.frozen == "fp8":
                # Rounding to 8 bits magnifies what kernels round differently: rows are compared before it begins.
                self._prove_packing(self._model)
            stack.enter_context(checkpointed(self._model, self._job.config.gradient_checkpointing))
            stack.enter_context(frozen_format(self._model, self._prepared.region, self._job.config, self._progress.say))
            layers = stack.enter_context(self._layers())
            inputs = self._inputs()
            for part in inputs:
                stack.enter_context(part.installed())
            stack.enter_context(self._restored())
            longest = checkpoint.progressed.longest if checkpoint else 0
            trainer = self._trainer(metrics, advance, layers, inputs, longest, watch)
            stack.callback(trainer.end_workers)
            trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
            if self._execution.compiled:
                self._progress.say(layers.describe())
        return trainer.proof

    def _trainer(
        self,
        metrics: MetricsLog,
        advance: Callable[[int], None],
        layers: CompiledLayers,
        inputs: list[StepInput],
        longest: int | None,
        watch: Watch,
    ) -> RegionTrainer:
        """Return Hugging Face's Trainer for the session."""
        job, config = self._job, self._job.config
        share = share_of(self._ranks, job.plan.micro_batch, config, job.machine)
        touch = touch_of(self._ranks, config, job.samples, len(self._prepared.region))
        collator = job.objective.collator(self._cached.collator if self._cached else job.collator)
        proofs: list[Proof] = [partial(self._prove, layers)]
        if sharding() == "deepspeed":
            # Its engine keeps gradients to itself, so the proof is made while each process has the whole model, with
            # masters in float32 still: the engine gives them the model's format, and keeps masters of its own.
            proof = self._prove(layers, self._model)
            proofs = [lambda model: proof]
        if self._packing:
            proofs.append(self._prove_packing)
        return RegionTrainer(
            self._model,
            training_arguments(
                config,
                job.machine,
                job.plan,
                model=self._model,
                half=self._prepared.half,
                seed=job.seed,
                work_dir=self._store.work_dir,
                uneven=may_lack_gradients(self._model),
                saves=self._store.saves,
            ),
            StepSampler(SeededOrder(job.samples, job.seed, job.plan.batch_size), share),
            StepCollator(collator, share, stand_ins(job.samples), touch, fill=self._execution.fill),
            inputs,
            log=metrics,
            advance=advance,
            proofs=proofs,
            projector_lr=config.projector_lr,
            vision_lr=vision_rate(config),
            checkpointing=config.gradient_checkpointing,
            store=self._store,
            objective=job.objective,
            name_of=job.name_of,
            longest=longest,
            lisa=self._prepared.lisa,
            whole=self._whole,
            on_turn=layers.recheck,
            validation=self._validation(watch),
        )

    def _validation(self, watch: Watch) -> Validation | None:
        """Return what measures held-out samples, if there are any."""
        job = self._job
        if not job.held_out:
            return None
        held_out = HeldOutLoss(
            job.held_out,
            job.collator,
            batch_size=job.plan.micro_batch,
            workers=job.machine.workers,
            ranks=self._ranks,
        )
        validation = Validation(held_out, watch, self._progress.say)
        validation.check()
        return validation

    def _inputs(self) -> list[StepInput]:
        """Return what happens to a micro-batch before the model takes it, in order."""
        inputs: list[StepInput] = [LabelPositions(self._execution.answers), self._job.objective]
        if self._packing:
            inputs.append(self._packing)
        inputs.append(SkippingInput(self._model))
        if self._cached:
            inputs.append(self._cached)
        if self._on_card and not sharding():
            inputs.append(WaitFreeInputs(self._model, self._progress.say, self._prepared.autocast))
        if self._execution.graphs:
            inputs.append(GraphedSteps(self._model))
        return inputs

    @property
    def _on_card(self) -> bool:
        return next(self._model.parameters()).device.type == "cuda"

    def _layers(self) -> AbstractContextManager[CompiledLayers]:
        """Return a context in which the decoder layers run as the execution says."""
        execution = self._execution
        execution.tell(self._progress.say)
        return compiled_layers(
            self._model,
            self._progress.say,
            compiled=execution.compiled,
            recomputed=execution.recomputed,
            vision=self._cached is None,
            lengths_vary=True,
            options=GRAPH_OPTIONS if execution.graphs else None,
        )

    def _prove(self, layers: CompiledLayers, model: nn.Module) -> str:
        """Return the proof of what trains, made without the compiler."""
        with layers.uncompiled(), self._prepared.autocast():
            return self._prepared.prove(model)

    def _prove_packing(self, model: nn.Module) -> str:
        """Return how near the shortest and longest samples of the first step, in one row, come to each alone; once.

        Raises:
            TrainingError: they differ: this model can't be trained on packed rows.
        """
        if not self._packing_proof and self._packing:
            job = self._job
            order = list(SeededOrder(job.samples, job.seed, job.plan.batch_size))[: job.plan.batch_size]
            chosen = [job.samples[index] for index in dict.fromkeys([*order[:2], *order[-2:]])]
            items = job.collator.encode_each(usable(job.collator, chosen))
            compare = partial(check_packing, self._model, self._packing, job.collator, items, job.collator.max_length)
            with self._prepared.autocast():
                self._packing_proof = compare()
                if self._whole:
                    with computing_whole(self._model):
                        compare()
        return self._packing_proof

    @contextmanager
    def _restored(self) -> Iterator[None]:
        """Leave the model as it was in all but its weights, whatever the block does."""
        model: Any = self._model
        settings = vars(model.config)
        cache = {"use_cache": settings["use_cache"]} if "use_cache" in settings else {}
        own = set(vars(model))
        try:
            yield
        finally:
            # Mixed precision puts a wrapped forward method on the model itself; without it the class's is back.
            for name in {"forward", "_original_forward"} & (set(vars(model)) - own):
                delattr(model, name)
            # Trainer switches the cache off as soon as it is made.
            settings.pop("use_cache", None)
            settings.update(cache)
            model.zero_grad(set_to_none=True)
            if self._prepared.lisa:
                self._prepared.lisa.open_all()
            if self._whole:
                self._whole.leave()


def train_in_place(
    model: Any,
    processor: Any,
    job: TrainingJob,
    progress: Progress,
    store: CheckpointStore,
    log: Path,
    checkpoint: Checkpoint | None,
) -> tuple[PreparedModel, TrainingResult]:
    """Return the trained model, its weights whole and in their own formats, and how the training went.

    Args:
        model: plain, on the device to train on; with LoRA its region gets adapters.
        processor: its processor.
        job: what is trained, on what.
        progress: where to show it.
        store: where checkpoints go.
        log: the file that gets a line a step.
        checkpoint: to go on from; None begins.

    Raises:
        StriateError: as `TrainingSession.run`, or the model can't be prepared as the job says.
    """
    execution = choose_execution(model, job)
    with prepared_for_training(model, job) as prepared:
        if prepared.image_check:
            progress.say(_told(prepared.image_check))
        cached = cached_features(
            prepared.model,
            processor,
            job.samples,
            job.collator,
            job.machine,
            half=prepared.half,
            progress=progress,
            held_out=job.held_out,
        )
        result = TrainingSession(job, prepared, execution, store, cached, progress).run(log, checkpoint)
    unshard(prepared.model, prepared.weights.dtypes, prepared.names)
    return prepared, result


def _told(check: ImageCheck) -> str:
    """Return in one line what a rule for image tokens costs the start model."""
    where = "held-out" if check.held_out else "training"
    return (
        f"image tokens skip layers: the answers' loss of the start model is {check.ruled:.3f} so and {check.whole:.3f}"
        f" in whole layers ({check.samples} {where} samples; train.image_check allows {check.allowed:g} more)"
    )
