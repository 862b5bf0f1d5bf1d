"""Packed rows on CUDA: PyTorch's variable-length kernel against one call a sample, forward and backward."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from striate.artifacts import Region
from striate.config import MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.models.interventions import varlen_attention
from striate.stages.train import train
from striate.training.loss import answer_loss
from striate.training.packing import packed_attention
from striate.training.packing.packed_attention import _MARK, PackedRow
from striate.training.packing.packing_check import Packing, check_packing

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LENGTHS = (300, 17, 129, 1, 576)


def attend(
    monkeypatch: pytest.MonkeyPatch, kernel: bool, tensors: list[torch.Tensor], **options: Any
) -> list[torch.Tensor]:
    """Return the attention's output and the gradients of queries, keys and values."""
    module = nn.Linear(1, 1)
    setattr(module, _MARK, True)
    row = PackedRow.of(LENGTHS, torch.device("cuda"))
    given = [tensor.clone().requires_grad_(True) for tensor in tensors]
    with monkeypatch.context() as patch:
        patch.setattr(packed_attention, "_row", [row])
        if not kernel:
            patch.setattr(varlen_attention, "KERNEL", None)
        out, _ = packed_attention.packed_attention(module, *given, None, **options)
    (out.float() * torch.linspace(-1, 1, out.numel(), device="cuda").view_as(out)).sum().backward()
    return [out.detach(), *(tensor.grad for tensor in given if tensor.grad is not None)]


@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize(("heads", "groups", "size"), [(32, 1, 128), (9, 3, 64), (8, 2, 96)])
def test_kernel_is_one_call_a_sample(
    monkeypatch: pytest.MonkeyPatch, window: int | None, heads: int, groups: int, size: int
) -> None:
    assert varlen_attention.KERNEL is not None, "this torch has no variable-length kernel with window and scale"
    torch.manual_seed(0)
    total = sum(LENGTHS)
    shapes = [(1, heads, total, size), *[(1, heads // groups, total, size)] * 2]
    tensors = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    options = {"scaling": size**-0.5, "sliding_window": window}
    fast = attend(monkeypatch, True, tensors, **options)
    plain = attend(monkeypatch, False, tensors, **options)
    for one, other in zip(fast, plain, strict=True):
        assert one.shape == other.shape
        assert float((one.float() - other.float()).norm() / other.float().norm()) < 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cache", ["off", "memory"])
@pytest.mark.parametrize("rule", [{}, {"image_tokens": "region", "image_check": None}], ids=["exact", "region"])
def test_training_packed_is_training_padded(
    tiny_llava: Loaded,
    pack_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    cache: Any,
    rule: dict[str, Any],
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    samples = read_samples(pack_dir)
    losses = []
    for packing in (False, True):
        model = copy.deepcopy(tiny_llava.model).to("cuda", dtype)
        config = TrainSection(method="full", batch_size=6, epochs=2, lr=1e-3, warmup_ratio=0, packing=packing, **rule)
        record = train(
            model,
            tiny_llava.processor,
            Region(layers=(1, 3), num_layers=4, spec="ids:1,3"),
            samples,
            config,
            MachineSection(micro_batch=3, pack_tokens=120, cache_vision=cache if packing else "off", workers=2),
            seed=0,
            out=tmp_path / str(packing) / "out",
            work_dir=tmp_path / str(packing) / "work",
            log=tmp_path / str(packing) / "log.jsonl",
            base_path="base",
        )
        losses.append((record.first_loss, record.last_loss))
    close = 1e-4 if dtype is torch.float32 else 2e-2
    assert losses[1] == pytest.approx(losses[0], rel=close)


def test_loss_on_the_kernel(tiny_llava: Loaded, pack_dir: Path) -> None:
    model = tiny_llava.model.to("cuda", torch.bfloat16)
    collator = Collator(tiny_llava.processor, 96, train=True)
    samples = read_samples(pack_dir)[:4]
    packing = Packing(model)
    assert "packing: 4 samples" in check_packing(model, packing, collator, collator.encode_each(samples), 96)
    row = {name: value.cuda() for name, value in packing.prepared(collator.pack(collator.encode_each(samples))).items()}
    with packing.serving(row, row) as inputs:
        packed = answer_loss(model, inputs)
    padded = answer_loss(model, {name: value.cuda() for name, value in collator(samples).items()})
    assert float(packed) == pytest.approx(float(padded), rel=1e-2)
