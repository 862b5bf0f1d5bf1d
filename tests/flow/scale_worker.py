"""One of two gloo processes: trains the tiny LLaVA in several ways and writes what came out to a folder.

Run by test_scale_out.py with the environment of a launcher: `python scale_worker.py FOLDER SCENARIO...`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
import torch
from conftest import build_loaded, build_pack

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, ResampleSection, TrainSection
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.errors import StriateError
from striate.stages.train import train
from striate.training import session
from striate.training.callbacks import MetricsCallback
from striate.training.compile.regional import CompiledLayers
from striate.training.distributed.gradient_sync import GradientSync
from striate.training.distributed.ranks import Ranks
from striate.training.distributed.sharding import WRAP_VARIABLE, sharding
from striate.training.metrics.async_metrics import Facts
from striate.training.trainer import RegionTrainer

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
FULL = TrainSection(
    method="full", batch_size=4, lr=1e-2, projector_lr=5e-3, warmup_ratio=0, max_length=96, save_steps=1
)
LORA = FULL.model_copy(update={"method": "lora", "lora": LoraSection(r=4, alpha=8, dropout=0.0)})
# Answers like none in training: their loss goes up and down.
LR_UP_AND_DOWN = 0.1
MACHINE = MachineSection(micro_batch=1, pack_tokens=120)


def mixed_samples(folder: Path) -> list[Sample]:
    """Return 12 samples with a picture and 8 without, so that many steps have processes with text alone."""
    pictured = read_samples(folder)[:-1]
    words = ("Is ice cold?", "Is fire cold?", "Is snow white?", "Is the sky green?")
    texts = [
        Sample(f"text-{index}", (Message("user", words[index % 4]), Message("assistant", "no" if index % 2 else "yes")))
        for index in range(8)
    ]
    return [*pictured, *texts]


def run(folder: Path, name: str, config: TrainSection, **more: Any) -> dict[str, Any]:
    """Return the log and the weights' digest of one training."""
    loaded = build_loaded()
    loaded.model.to(more.get("dtype", torch.float32))
    samples, held_out = mixed_samples(folder / "pack"), more.get("held_out", [])
    place = folder / name
    with compiled_for_cpu() as lines:
        record = train(
            loaded.model,
            loaded.processor,
            REGION,
            [sample for sample in samples if sample not in held_out],
            config,
            more.get("machine", MACHINE),
            seed=0,
            out=place / "checkpoint",
            work_dir=place / "work",
            log=place / "log.jsonl",
            base_path="base",
            held_out=held_out,
        )
    state = {key: value for key, value in loaded.model.state_dict().items() if not hasattr(value, "full_tensor")}
    if Ranks.launched().is_main:
        torch.save(state, place / "state.pt")
    losses = [record.first_loss, record.last_loss]
    return {"loss": losses, "proof": record.proof, "padding": record.padding, "compiled": lines}


@contextlib.contextmanager
def compiled_for_cpu() -> Iterator[list[str]]:
    """Let layers that are to run compiled be compiled without kernels; yield what is then said of them."""
    lines: list[str] = []
    plain = session.compiled_layers

    @contextlib.contextmanager
    def compiled_layers(*args: Any, compiled: bool, **more: Any) -> Iterator[CompiledLayers]:
        # Which weights the backward pass keeps, that may be released, is the choice of the compiler's second half.
        backend = "aot_eager_decomp_partition" if sharding() else "eager"
        with plain(*args, compiled=compiled, backend=backend, **more) as layers:
            yield layers
            if compiled:
                lines.append(layers.describe().partition(" (")[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "compiled_layers", compiled_layers)
        yield lines


@contextlib.contextmanager
def interrupted_after(step: int) -> Iterator[None]:
    """Interrupt every process at the end of a step, as Ctrl-C in a terminal does."""
    original = MetricsCallback._write

    def write(self: MetricsCallback, facts: Facts, loss: float, norm: float | None) -> None:
        original(self, facts, loss, norm)
        if facts.step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(MetricsCallback, "_write", write)
        yield


@contextlib.contextmanager
def without_room(rank: int) -> Iterator[None]:
    """Let one process's disk be full when it writes its random state into the second checkpoint."""
    plain, name = torch.save, f"rng_state_{rank}.pth"

    def save(value: Any, path: Any, *args: Any, **more: Any) -> None:
        if Path(path).name == name and "checkpoint-2" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        plain(value, path, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", save)
        yield


@contextlib.contextmanager
def sharded() -> Iterator[None]:
    """Shard weights with FSDP2: Accelerate does so on accelerators alone, so its state is told after it was made."""
    from accelerate.utils import DistributedType

    plain = RegionTrainer.create_accelerator_and_postprocess
    wanted = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }

    def create(self: RegionTrainer) -> None:
        from accelerate.utils import FullyShardedDataParallelPlugin

        plain(self)
        state = self.accelerator.state
        state._shared_state["distributed_type"] = state.distributed_type = DistributedType.FSDP
        state._shared_state["fsdp_plugin"] = state.fsdp_plugin = FullyShardedDataParallelPlugin()
        self.is_fsdp_enabled = True

    os.environ.update(wanted)
    RegionTrainer.create_accelerator_and_postprocess = create  # type: ignore[method-assign]
    try:
        yield
    finally:
        RegionTrainer.create_accelerator_and_postprocess = plain  # type: ignore[method-assign]
        for name in (*wanted, WRAP_VARIABLE):
            os.environ.pop(name, None)


@contextlib.contextmanager
def never_wrapped() -> Iterator[None]:
    """Fail when DistributedDataParallel is made: tensors that take turns are exchanged without it."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("wrapped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.parallel.DistributedDataParallel, "__init__", refuse)
        yield


def exchanged() -> dict[str, Any]:
    """Return the gradients after an exchange, as lists: of two formats, turned, closed, missing here and everywhere."""
    index = Ranks.launched().rank
    shapes = [(3, 2), (2, 5), (4,), (2, 2), (3,), (2,)]
    kinds = [torch.bfloat16 if number == 2 else torch.float32 for number in range(6)]
    tensors = [
        torch.nn.Parameter(torch.full(shape, float(index), dtype=kind))
        for shape, kind in zip(shapes, kinds, strict=True)
    ]
    turned, shut, here, nowhere = 1, 3, 4, 5
    for number, tensor in enumerate(tensors):
        if number not in (shut, nowhere) and not (number == here and index):
            count = torch.arange(tensor.numel(), dtype=tensor.dtype)
            tensor.grad = ((count + 1) * (1 + 2 * index) * (number + 1)).view(tensor.shape)
    tensors[turned].grad = tensors[turned].grad.t().contiguous().t()
    tensors[shut].requires_grad_(False)
    sync = GradientSync(tensors, may_lack_gradients=True)
    sync.broadcast_parameters()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("striate.training.distributed.gradient_sync.BUCKET_BYTES", 60)
        sync.average_gradients()
    return {
        "gradients": [None if one.grad is None else one.grad.flatten().tolist() for one in tensors],
        "values": [float(one.detach().float().sum()) for one in tensors],
    }


def scenario(folder: Path, name: str) -> dict[str, Any]:
    """Return what the scenario called `name` gives."""
    machine = MACHINE.model_copy(update={"micro_batch": 2})
    if name.endswith("-compiled"):
        config = FULL if "full" in name else LORA
        with sharded() if name.startswith("sharded") else contextlib.nullcontext():
            return run(folder, name, config, machine=machine.model_copy(update={"compile": "on"}))
    if name == "lora":
        # Checkpointed decoder layers change no gradient, and run again outside of the forward pass.
        together = {"gradient_checkpointing": Ranks.launched().world_size > 1}
        return run(folder, name, LORA.model_copy(update=together), machine=machine)
    if name == "int8":
        return run(folder, name, LORA.model_copy(update={"frozen": "int8"}), machine=machine)
    if name == "full-small":
        return run(folder, name, FULL)
    if name == "packed":
        return run(folder, name, FULL.model_copy(update={"packing": True}))
    if name == "resumed":
        with interrupted_after(3):
            run(folder, name, FULL)
        return run(folder, name, FULL)
    if name.endswith("whole-steps"):
        with sharded() if name.startswith("sharded") else contextlib.nullcontext():
            return run(folder, name, LORA.model_copy(update={"image_tokens": "region", "image_whole_every": 2}))
    if name.startswith("turns"):
        together = {"resample": ResampleSection(active=1, every=2, state="drop" if name == "turns-lora" else "keep")}
        config = (LORA if name == "turns-lora" else FULL).model_copy(update=together)
        if name == "turns-lora" and Ranks.launched().world_size > 1:
            with interrupted_after(3):
                run(folder, name, config)
        with never_wrapped():
            return run(folder, name, config)
    if "validated" in name:
        with sharded() if name.startswith("sharded") else contextlib.nullcontext():
            return validated(folder, name)
    if name == "exchange":
        return exchanged()
    if name.startswith("full-disk"):
        try:
            with without_room(int(name[-1])):
                return run(folder, name, FULL)
        except StriateError as error:
            return {"error": str(error)}
    if name == "bad-batch":
        try:
            return run(folder, name, FULL.model_copy(update={"batch_size": 3}))
        except StriateError as error:
            return {"error": str(error)}
    with sharded():
        if name == "sharded-resumed":
            with interrupted_after(3):
                run(folder, name, LORA)
            return run(folder, name, LORA)
        if name == "sharded-int8":
            return run(folder, name, LORA.model_copy(update={"frozen": "int8"}))
        if name == "sharded-packed":
            return run(folder, name, FULL.model_copy(update={"packing": True}))
        return run(folder, name, FULL if name == "sharded-full" else LORA)


def validated(folder: Path, name: str) -> dict[str, Any]:
    """Return what a training gives that measures an odd number of batches, and keeps its best weights."""
    watched = {"validate_every": 1, "keep": "best", "metric_for_best_model": "text_loss", "lr": LR_UP_AND_DOWN}
    config = LORA.model_copy(update=watched)
    texts = [Sample(f"odd-{n}", (Message("user", f"{n}?"), Message("assistant", "STRIPE 9,7"))) for n in range(5)]
    held_out = [*mixed_samples(folder / "pack")[:3], *texts]
    if Ranks.launched().world_size > 1:
        with interrupted_after(4):
            run(folder, name, config, held_out=held_out)
    return run(folder, name, config, held_out=held_out)


def main(chosen: Callable[[Path, str], dict[str, Any]] = scenario) -> None:
    """Run the scenarios of the command line, in order."""
    folder, names = Path(sys.argv[1]), sys.argv[2:]
    ranks = Ranks.launched()
    if ranks.is_main and not (folder / "pack").exists():
        build_pack(folder / "pack")
    _freeze()
    ranks.join(torch.device("cpu"))
    ranks.barrier()
    for name in names:
        result = chosen(folder, name)
        text = json.dumps(result)
        (folder / f"{name}.{ranks.rank}.json").write_text(text, encoding="utf-8")
        _freeze()
        ranks.barrier()
    if ranks.world_size > 1:
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        # All is written; threads of PyTorch's that outlive the group now and then abort an interpreter that ends.
        os._exit(0)


def _freeze() -> None:
    """Let garbage collections pass over what there is, which is all that was imported: each training makes some."""
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
