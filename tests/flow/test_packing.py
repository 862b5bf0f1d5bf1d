"""Packed rows: which samples share one, that each learns as it does alone, and what is refused."""

from __future__ import annotations

import copy
import json
import multiprocessing
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from striate.artifacts import Region, TrainRecord
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.packing import SEGMENTS, even_rows, first_fit
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import TrainingError
from striate.stages.train import train
from striate.training.batching.micro_batches import Share, StepCollator, StepSampler
from striate.training.batching.order import SeededOrder
from striate.training.loss import answer_loss
from striate.training.packing.packed_attention import NAME, _row
from striate.training.packing.packing_check import Packing, check_packing

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
FULL = TrainSection(
    method="full", batch_size=6, epochs=2, lr=1e-3, projector_lr=5e-4, warmup_ratio=0, max_length=96, save_steps=1
)
PACKED = FULL.model_copy(update={"packing": True})
MACHINE = MachineSection(micro_batch=2, pack_tokens=100)
Run = Callable[..., TrainRecord]


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample]) -> Run:
    def start(loaded: Loaded, config: TrainSection, name: str, **more: Any) -> TrainRecord:
        options: dict[str, Any] = {"machine": MACHINE, "seed": 0, "base_path": "base", **more}
        folder = tmp_path / name
        return train(
            loaded.model,
            loaded.processor,
            REGION,
            samples,
            config,
            options.pop("machine"),
            out=folder / "checkpoint",
            work_dir=folder / "work",
            log=folder / "log.jsonl",
            **options,
        )

    return start


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_first_fit() -> None:
    assert first_fit([5, 3, 4, 2, 9, 1], 6) == [[4], [0, 5], [2, 3], [1]]
    assert first_fit([], 6) == []
    assert first_fit([6, 6], 6) == [[0], [1]]


def test_even_rows() -> None:
    # First-fit has 8 + 5 + 3 and 4.
    assert even_rows([8, 5, 4, 3], 16) == [[0, 3], [1, 2]]
    # The shortest row first would end with 3 + 2 + 2.
    assert even_rows([3, 3, 2, 2, 2], 6) == [[0, 1], [2, 3, 4]] == first_fit([3, 3, 2, 2, 2], 6)
    # One that is too long stays alone.
    assert even_rows([9, 2, 2], 6) == [[0], [1, 2]]
    assert even_rows([], 6) == []


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(8, 60))
def test_even_rows_are_as_many_and_no_longer(lengths: list[int], budget: int) -> None:
    even, fitted = even_rows(lengths, budget), first_fit(lengths, budget)
    assert sorted(index for row in even for index in row) == list(range(len(lengths)))
    assert len(even) == len(fitted)
    tokens = [[sum(lengths[index] for index in row) for row in rows] for rows in (even, fitted)]
    assert max(tokens[0], default=0) <= max(tokens[1], default=0)


def test_every_sample_once_an_epoch_on_any_number_of_processes(samples: list[Sample]) -> None:
    whole = list(StepSampler(SeededOrder(samples, 3, 6), Share(2)))
    assert [len(step) for step in whole] == [6, 6, 1]
    assert sorted(index for step in whole for index in step) == list(range(13))
    for budget in (None, 100):
        for processes in (2, 3):
            shares = [
                list(StepSampler(SeededOrder(samples, 3, 6), Share(2, budget, process, processes)))
                for process in range(processes)
            ]
            for number, step in enumerate(whole):
                dealt = [index for share in shares for index in share[number]]
                assert sorted(dealt) == sorted(step)


def test_a_row_holds_its_samples_whole(tiny_llava: Loaded, samples: list[Sample]) -> None:
    collator = Collator(tiny_llava.processor, 96, train=True)
    rows = StepCollator(collator, Share(2, 100))(list(enumerate(samples)))
    items = collator.encode_each(samples)
    found = []
    for row in rows:
        lengths = row[SEGMENTS][:, 0].tolist()
        ends = torch.tensor([0, *lengths]).cumsum(0).tolist()
        assert ends[-1] == row["input_ids"].shape[1] <= 100
        assert bool(row["attention_mask"].all())
        found += [row["input_ids"][0, start:end].tolist() for start, end in pairwise(ends)]
    assert sorted(found) == sorted(item.tokens["input_ids"][0].tolist() for item in items)
    image_tokens = sum(int(collator.image_mask(row).sum()) for row in rows)
    assert image_tokens == 4 * sum(row["pixel_values"].shape[0] for row in rows if "pixel_values" in row)
    answers = sum(int((row["labels"] != -100).sum()) for row in rows)
    assert answers == sum(int((item.tokens["labels"] != -100).sum()) for item in items)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_padded_batches(
    tiny_llava: Loaded, samples: list[Sample], checkpointing: bool
) -> None:
    collator = Collator(tiny_llava.processor, 96, train=True)
    chosen = [*samples[:4], samples[-1]]
    plain, packed = tiny_llava.model, copy.deepcopy(tiny_llava.model)
    answer_loss(plain, collator(chosen)).backward()
    packing = Packing(packed)
    if checkpointing:
        packed.train()
        packed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    row = packing.prepared(collator.pack(collator.encode_each(chosen)))
    with packing.serving(row, row) as inputs:
        loss = answer_loss(packed, inputs)
        loss.backward()
    torch.testing.assert_close(loss, answer_loss(plain, collator(chosen)), rtol=1e-6, atol=1e-6)
    wanted = dict(plain.named_parameters())
    for name, parameter in packed.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-5, msg=name)
    assert _row == [None]
    assert packed.config.text_config._attn_implementation != NAME


@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_packed_is_training_padded(run: Run, tiny_llava: Loaded, tmp_path: Path, method: str) -> None:
    lora = {"method": method, "lora": LoraSection(r=4, alpha=8, dropout=0.0)}
    other = copy.deepcopy(tiny_llava)
    padded = run(tiny_llava, FULL.model_copy(update=lora), "padded")
    packed = run(other, PACKED.model_copy(update=lora), "packed")
    losses = [[row["loss"] for row in rows_of(tmp_path / name / "log.jsonl")] for name in ("padded", "packed")]
    torch.testing.assert_close(torch.tensor(losses[0]), torch.tensor(losses[1]), rtol=1e-5, atol=1e-5)
    wanted = dict(tiny_llava.model.named_parameters())
    for name, parameter in other.model.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=1e-3, atol=2e-5, msg=name)
    assert "packing: 4 samples in one row get the hidden states they get alone" in packed.proof
    assert packed.padding == 0
    assert padded.padding > 0
    assert packed.tokens == padded.tokens > 0


def test_resumed_is_uninterrupted(run: Run, tiny_llava: Loaded) -> None:
    from contextlib import nullcontext

    class Killed:
        left = 4

        def say(self, text: str) -> None:
            pass

        def track(self, label: str, total: int) -> Any:
            return nullcontext(self.advance)

        def advance(self, count: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    config = PACKED.model_copy(update={"method": "lora", "lora": LoraSection(r=4, alpha=8, dropout=0.3)})
    whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(3))
    run(whole, config, "whole")
    with pytest.raises(KeyboardInterrupt):
        run(killed, config, "cut", progress=Killed())
    run(resumed, config, "cut")
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_workers_change_nothing(run: Run, tiny_llava: Loaded) -> None:
    other = copy.deepcopy(tiny_llava)
    run(tiny_llava, PACKED, "alone")
    run(other, PACKED, "workers", machine=MACHINE.model_copy(update={"workers": 1}))
    # Left to the garbage collector they would hold up whatever runs then for five seconds.
    assert not multiprocessing.active_children()
    expected = tiny_llava.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in other.model.state_dict().items())


def test_a_leak_between_samples_is_refused(
    tiny_llava: Loaded, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    collator = Collator(tiny_llava.processor, 96, train=True)
    packing = Packing(tiny_llava.model)
    items = collator.encode_each(samples[:3])
    assert check_packing(tiny_llava.model, packing, collator, items, 96).startswith("packing: 3 samples")

    def leak(row: dict[str, torch.Tensor], on_cpu: dict[str, torch.Tensor]) -> Any:
        whole = torch.tensor([[row["input_ids"].shape[1], 0]])
        return original(row, {**on_cpu, SEGMENTS: whole})

    original = packing.serving
    monkeypatch.setattr(packing, "serving", leak)
    told = r"samples in one row change each other's hidden states, by \d+\.\d% \(by rounding: 0\.0%\)"
    with pytest.raises(TrainingError, match=told):
        check_packing(tiny_llava.model, packing, collator, items, 96)


@pytest.mark.parametrize(("share", "refused"), [(5e-5, False), (2e-4, True)])
def test_the_smallest_leak_that_is_refused(
    tiny_llava: Loaded, samples: list[Sample], share: float, refused: bool
) -> None:
    """In packed rows alone every token gets a share of the state of the token before it."""
    collator = Collator(tiny_llava.processor, 96, train=True)
    items = collator.encode_each(samples[:3])
    longest = max(item.tokens["input_ids"].shape[1] for item in items)

    def leak(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        return output + share * output.roll(1, dims=1) if output.shape[1] > longest else output

    tiny_llava.model.model.language_model.norm.register_forward_hook(leak)
    packing = Packing(tiny_llava.model)
    if refused:
        with pytest.raises(TrainingError, match="samples in one row change each other's hidden states"):
            check_packing(tiny_llava.model, packing, collator, items, 96)
    else:
        check_packing(tiny_llava.model, packing, collator, items, 96)


def test_coarse_rounding_is_no_leak(tiny_llava: Loaded, samples: list[Sample]) -> None:
    """A model whose kernels round by 2% at every size of batch anew, as a deep one in bfloat16 may."""
    collator = Collator(tiny_llava.processor, 96, train=True)

    def round_anew(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(output.shape, generator=torch.Generator().manual_seed(output.numel()))
        return output + 0.02 * output.norm() / output.numel() ** 0.5 * noise

    tiny_llava.model.model.language_model.norm.register_forward_hook(round_anew)
    items = collator.encode_each(samples[:3])
    found = check_packing(tiny_llava.model, Packing(tiny_llava.model), collator, items, 96)
    share = float(found.split("(within ")[1].rstrip(")"))
    assert 0.01 < share < 0.06


def test_layers_that_mix_tokens_otherwise_are_refused(tiny_llava: Loaded) -> None:
    tiny_llava.model.config.text_config.layer_types = ["linear_attention"] * 4
    with pytest.raises(TrainingError, match=r"train\.packing does not work with this model: it has layers of linear"):
        Packing(tiny_llava.model)
