"""Steps on CUDA that nothing waits in: no questions to the device, recorded kernels, attention of short samples."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import peft
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.models.structure.anatomy import decoder_layers
from striate.models.trainable.apply import apply_region, lora_config
from striate.stages.train import train
from striate.training.batching.label_positions import ANSWERS, find_answers
from striate.training.compile import policy as speed
from striate.training.compile.cuda_graphs.recorded import CudaRecorder
from striate.training.compile.regional import FastLayers, fast_layers
from striate.training.compile.short_attention import short_attention
from striate.training.compile.short_choice import short_samples
from striate.training.loss import answer_loss
from striate.training.precision import FrozenModules, MasterWeights
from striate.training.step_hints.attention_mask import mask_known
from striate.training.step_hints.image_embeds import PicturePlaces
from striate.training.step_inputs import StepTrainer

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
LORA = LoraSection(r=4, alpha=8, dropout=0.2)


@pytest.mark.parametrize(("packing", "cache"), [(False, "off"), (True, "off"), (True, "memory")])
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("compiled", ["off", "on"])
def test_no_step_waits(
    tiny_llava: Loaded,
    pack_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    packing: bool,
    cache: Any,
    method: Any,
    compiled: Any,
) -> None:
    """From the fourth step to the seventh of nine PyTorch raises wherever the CPU waits for the device."""
    whole = StepTrainer.training_step
    steps = []

    def watched(self: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        steps.append(1)
        torch.cuda.set_sync_debug_mode("error" if 4 <= len(steps) <= 7 else "default")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(StepTrainer, "training_step", watched)
    model = copy.deepcopy(tiny_llava.model).to("cuda", torch.bfloat16)
    config = TrainSection(method=method, lora=LORA, batch_size=4, max_steps=9, max_length=96, packing=packing)
    try:
        train(
            model,
            tiny_llava.processor,
            REGION,
            [one for one in read_samples(pack_dir) if one.images][:4],
            config,
            MachineSection(micro_batch=2, compile=compiled, graphs="off", pack_tokens=400, cache_vision=cache),
            seed=0,
            out=tmp_path / "out",
            work_dir=tmp_path / "work",
            log=tmp_path / "log.jsonl",
            base_path="base",
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(steps) == 9
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 9


def opened(loaded: Loaded, method: str) -> Any:
    """Return a copy of the model on the device, opened as training opens it."""
    torch.manual_seed(0)
    model: Any = copy.deepcopy(loaded.model).to("cuda", torch.bfloat16)
    if method == "lora":
        model = peft.get_peft_model(model, lora_config(model, REGION, r=4, alpha=8, dropout=0.2))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.02)
    apply_region(model, REGION, method)
    MasterWeights(model)
    return model.train()


def steps_of(
    model: Any, batches: list[Any], recorder: CudaRecorder | None
) -> tuple[list[float], list[torch.Tensor], FastLayers]:
    """Return the losses of two micro-batches a step, the weights at the end, and the layers."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-3, fused=True)
    frozen = FrozenModules(model, False)
    torch.manual_seed(5)
    losses = []
    with fast_layers(model, compiled=True, recorder=recorder) as layers:
        for _ in range(5):
            for batch in batches:
                frozen.set_eval()
                with torch.autocast("cuda", torch.bfloat16):
                    loss = answer_loss(model, batch)
                loss.backward()
                losses.append(loss.detach())
            torch.nn.utils.clip_grad_norm_(trainable, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return [float(loss) for loss in losses], [one.detach().clone() for one in trainable], layers


@pytest.mark.parametrize("method", ["full", "lora"])
def test_recorded_kernels_train_alike(tiny_llava: Loaded, pack_dir: Path, method: str) -> None:
    """Five steps of two micro-batches, weights changed between; dropout draws the same. Kernels are the same too."""
    collator = Collator(tiny_llava.processor, 96, train=True)
    samples = [one for one in read_samples(pack_dir) if one.images]
    batches = []
    for pair in (samples[:2], samples[:2][::-1]):
        batch = collator(pair)
        batch[ANSWERS] = find_answers(batch.pop("labels"), 16)
        batches.append({name: value.cuda() for name, value in batch.items()})
    model = opened(tiny_llava, method)
    other = copy.deepcopy(model)
    losses, weights, _ = steps_of(model, batches, None)
    found, after, layers = steps_of(other, batches, CudaRecorder())
    assert layers.graphs is not None
    assert not layers.graphs.refused
    assert layers.graphs.replayed == 8 * len(decoder_layers(model))
    assert layers.graphs.missed == 0
    assert found == pytest.approx(losses, rel=2e-2)
    for one, expected in zip(after, weights, strict=True):
        assert float((one - expected).norm() / expected.norm()) < 1e-2


def test_recorded_steps_do_not_wait(tiny_llava: Loaded, pack_dir: Path) -> None:
    """Forward and backward, replayed, with places known on the CPU."""
    batch = Collator(tiny_llava.processor, 96, train=True)([one for one in read_samples(pack_dir) if one.images][:2])
    ids, mask = batch["input_ids"], batch["attention_mask"]
    batch[ANSWERS] = find_answers(batch.pop("labels"))
    batch = {name: value.cuda() for name, value in batch.items()}
    model = opened(tiny_llava, "lora")
    FrozenModules(model, False).set_eval()
    places = PicturePlaces(model)
    with fast_layers(model, compiled=True, recorder=CudaRecorder()) as layers:
        with torch.autocast("cuda", torch.bfloat16):
            places.check(model, {name: value for name, value in batch.items() if name != ANSWERS}, ids)
        assert not places.refused
        try:
            for step in range(6):
                torch.cuda.set_sync_debug_mode("error" if step >= 3 else "default")
                with mask_known(mask), places.placing(ids), torch.autocast("cuda", torch.bfloat16):
                    loss = answer_loss(model, batch)
                loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert layers.graphs is not None
    assert layers.graphs.replayed == 4 * len(decoder_layers(model))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_with_graphs_and_packing(
    tiny_llava: Loaded, pack_dir: Path, tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole stage: rows filled up, kernels recorded, the losses of training without."""
    monkeypatch.setattr(speed, "SHORT_MS", 1e9)
    losses: list[tuple[float, float]] = []
    said: list[str] = []
    choices: tuple[Any, ...] = ("off", "auto")
    for graphs in choices:
        model = copy.deepcopy(tiny_llava.model).to("cuda", torch.bfloat16)
        lines: Any = type("Lines", (), {"say": said.append, "track": lambda *_: Track()})
        record = train(
            model,
            tiny_llava.processor,
            REGION,
            read_samples(pack_dir)[:6],
            TrainSection(
                method=method,
                lora=LORA.model_copy(update={"dropout": 0.0}),
                batch_size=6,
                max_steps=8,
                max_length=96,
                lr=1e-3,
                packing=True,
            ),
            MachineSection(compile="on", graphs=graphs, pack_tokens=1024),
            seed=0,
            out=tmp_path / graphs / "out",
            work_dir=tmp_path / graphs / "work",
            log=tmp_path / graphs / "log.jsonl",
            base_path="base",
            progress=lines,
        )
        losses.append((record.first_loss, record.last_loss))
    print("\n".join(said))
    assert any("CUDA graphs of 1 form of batches" in line for line in said), said
    assert losses[1] == pytest.approx(losses[0], rel=5e-2)


class Track:
    """A progress bar that shows nothing."""

    def __enter__(self) -> Any:
        return lambda count=1: None

    def __exit__(self, *_: Any) -> None:
        pass


@pytest.mark.parametrize(("heads", "shared", "size"), [(9, 3, 64), (4, 4, 128), (6, 2, 32)])
@pytest.mark.parametrize("tokens", [5, 84, 128])
def test_attention_of_short_samples(heads: int, shared: int, size: int, tokens: int) -> None:
    """Output and gradients against PyTorch's operator in float32, for padded rows and one packed row."""
    torch.manual_seed(0)
    for lengths in (None, [tokens, 3, 0, tokens, 1, 0]):
        rows, total = (4, tokens) if lengths is None else (1, sum(lengths))
        ends = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0).to("cuda", torch.int32)
        tensors = [
            torch.randn(rows, total, count, size, device="cuda", dtype=torch.bfloat16).transpose(1, 2)
            for count in (heads, shared, shared)
        ]
        given = torch.randn(rows, total, heads, size, device="cuda", dtype=torch.bfloat16)
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        output = short_attention(*leaves, ends, size**-0.5)
        found = [output, *torch.autograd.grad(output, leaves, given)]
        exact = [tensor.float().detach().requires_grad_() for tensor in tensors]
        parts = zip(*(one.split(lengths or [total], dim=2) for one in exact), strict=True)
        how: dict[str, Any] = {"is_causal": True, "enable_gqa": True}
        outputs = [scaled_dot_product_attention(one, two, three, **how) for one, two, three in parts if one.shape[2]]
        plain = torch.cat(outputs, dim=2).transpose(1, 2)
        expected = [plain, *torch.autograd.grad(plain, exact, given.float())]
        for one, other in zip(found, expected, strict=True):
            assert float((one.float() - other).norm() / other.norm()) < 1e-2


def test_the_choice_of_attention_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    with short_samples(9, 3, 64, 256, said.append):
        pass
    print(said)
    assert len(said) == 1
    assert " ms against " in said[0]
