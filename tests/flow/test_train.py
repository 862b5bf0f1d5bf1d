"""Training a region: what moves, what stays to the byte, what is written, and that the loss is the plain one."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from striate.artifacts import Region, TrainRecord
from striate.config import LoraSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.errors import ArtifactError, DataError, TrainingError
from striate.models.io.load import Loaded, load_model
from striate.progress import Silent
from striate.stages.train import train
from striate.training.batching.order import SeededOrder
from striate.training.loss import answer_loss
from striate.training.precision import FrozenModules, MasterWeights, checkpointed
from striate.training.schedule import Plan, told_micro_batch

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
ALL = Region(layers=(0, 1, 2, 3), num_layers=4, spec="all")
FULL = TrainSection(method="full", batch_size=4, lr=1e-3, projector_lr=5e-4, warmup_ratio=0, max_length=96)
LORA = FULL.model_copy(update={"method": "lora", "lora": LoraSection(r=4, alpha=8)})
MACHINE = MachineSection(micro_batch=2)
Run = Callable[..., TrainRecord]


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample], tiny_llava_dir: Path) -> Run:
    def start(loaded: Loaded, config: TrainSection, name: str = "run", region: Region = REGION, **more: Any) -> Any:
        options = {"samples": samples, "machine": MACHINE, "seed": 0, "base_path": str(tiny_llava_dir), **more}
        return train(
            loaded.model,
            loaded.processor,
            region,
            options.pop("samples"),
            config,
            options.pop("machine"),
            out=tmp_path / name / "checkpoint",
            work_dir=tmp_path / name / "work",
            log=tmp_path / name / "train_log.jsonl",
            **options,
        )

    return start


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def test_loss_is_the_plain_one(tiny_llava: Loaded, samples: list[Sample]) -> None:
    batch = Collator(tiny_llava.processor, 96, train=True)(samples[:3] + samples[-1:])
    plain_model, ours_model = copy.deepcopy(tiny_llava.model), tiny_llava.model
    plain = plain_model(**batch).loss
    ours = answer_loss(ours_model, batch)
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-6)
    plain.backward()
    ours.backward()
    wanted = dict(plain_model.named_parameters())
    for name, parameter in ours_model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, rtol=1e-4, atol=1e-6, msg=name)
    torch.testing.assert_close(answer_loss(ours_model, batch, 7) * 7, plain * (batch["labels"] != -100).sum())
    assert not tiny_llava.model.lm_head._forward_pre_hooks


def test_only_answers_reach_the_lm_head(tiny_llava: Loaded, samples: list[Sample]) -> None:
    batch = Collator(tiny_llava.processor, 96, train=True)(samples[:4])
    shapes = []
    tiny_llava.model.lm_head.register_forward_hook(lambda *args: shapes.append(tuple(args[2].shape)))
    answer_loss(tiny_llava.model, batch)
    assert shapes[0][:2] == (1, int((batch["labels"] != -100).sum()))


def test_region_all_is_an_ordinary_step(tiny_llava: Loaded, samples: list[Sample], run: Run) -> None:
    """Two steps of a handwritten loop, with the loss over all logits, give the same bits."""
    config = FULL.model_copy(update={"max_steps": 2, "scheduler": "constant", "max_grad_norm": 1e9})
    ordinary = copy.deepcopy(tiny_llava.model)
    run(tiny_llava, config, region=ALL, machine=MachineSection(micro_batch=4))
    language = list(ordinary.model.language_model.layers.parameters())
    projector = list(ordinary.model.multi_modal_projector.parameters())
    ordinary.requires_grad_(False)
    for parameter in language + projector:
        parameter.requires_grad_(True)
    groups = [{"params": projector, "lr": config.projector_lr}, {"params": language, "lr": config.lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0, fused=True)
    order = list(SeededOrder(samples, seed=0, batch_size=4))
    collator = Collator(tiny_llava.processor, config.max_length, train=True)
    for step in range(2):
        batch = collator([samples[index] for index in order[4 * step : 4 * step + 4]])
        labels = batch.pop("labels")
        logits, targets = ordinary(**batch).logits[:, :-1], labels[:, 1:]
        answered = targets != -100
        (cross_entropy(logits[answered], targets[answered], reduction="sum") / answered.sum()).backward()
        torch.nn.utils.clip_grad_norm_(language + projector, 1e9)
        optimizer.step()
        optimizer.zero_grad()
    expected = state(ordinary)
    for name, tensor in state(tiny_llava.model).items():
        assert torch.equal(tensor, expected[name]), name


def test_accumulation_is_one_batch(run: Run, tiny_llava: Loaded) -> None:
    """Answers of unequal length: the mean is over the tokens of the whole batch, not of means of micro-batches."""
    other = copy.deepcopy(tiny_llava)
    run(tiny_llava, FULL, "one", machine=MachineSection(micro_batch=4))
    run(other, FULL, "four", machine=MachineSection(micro_batch=1))
    expected = state(tiny_llava.model)
    for name, tensor in state(other.model).items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_frozen_is_byte_equal_and_chosen_moves(tiny_llava: Loaded, run: Run, config: TrainSection) -> None:
    before = state(tiny_llava.model)
    record = run(tiny_llava, config.model_copy(update={"epochs": 2}))
    after = {name.replace(".base_layer", ""): tensor for name, tensor in state(tiny_llava.model).items()}
    moved = {name for name, tensor in before.items() if name in after and not torch.equal(tensor, after[name])}
    if config.method == "lora":
        assert not moved
        adapters = {name for name in after if ".lora_B" in name}
        assert adapters
        assert all(after[name].any() and (".layers.1." in name or ".layers.3." in name) for name in adapters)
    else:
        assert all(".layers.1." in name or ".layers.3." in name or "multi_modal_projector" in name for name in moved)
        assert all("vision" not in name for name in moved)
        assert len(moved) == record.trainable.layers[1].tensors * 2 + 4
    assert "received finite gradients" in record.proof
    assert record.steps == 8
    assert record.epochs == 2
    assert record.samples == 13
    assert not tiny_llava.model.training


def test_same_seed_same_weights(run: Run, tiny_llava: Loaded) -> None:
    runs = [copy.deepcopy(tiny_llava) for _ in range(3)]
    for index, seed in enumerate((0, 0, 1)):
        torch.manual_seed(index)
        run(runs[index], LORA, f"seed-{index}", seed=seed)
    first, second, third = (state(loaded.model) for loaded in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], third[name]) for name in first)


def test_lora_checkpoint_loads_with_plain_peft(
    run: Run, tiny_llava: Loaded, tiny_llava_dir: Path, tmp_path: Path, samples: list[Sample]
) -> None:
    from peft import PeftModel
    from transformers import LlavaForConditionalGeneration

    before = copy.deepcopy(tiny_llava.model)
    run(tiny_llava, LORA.model_copy(update={"lr": 1e-2, "projector_lr": 1e-2}))
    out = tmp_path / "run" / "checkpoint"
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(tiny_llava_dir)
    assert json.loads((out / "region.json").read_text())["layers"] == [1, 3]
    assert "Model Card for Model ID" not in (out / "README.md").read_text()
    assert "tuned in 2 of 4 layers" in (out / "README.md").read_text()
    assert not (tmp_path / "run" / "work").exists()
    base = LlavaForConditionalGeneration.from_pretrained(tiny_llava_dir)
    loaded = PeftModel.from_pretrained(base, out).eval()
    batch = Collator(tiny_llava.processor, 96, train=False)(samples[:2])
    with torch.no_grad():
        expected = tiny_llava.model(**batch).logits
        assert torch.equal(loaded(**batch).logits, expected)
        assert torch.equal(load_model(out, device="cpu").model(**batch).logits, expected)
        assert not torch.allclose(before(**batch).logits, expected, atol=1e-3)


def test_full_checkpoint_loads_with_plain_transformers(
    run: Run, tiny_llava: Loaded, tmp_path: Path, samples: list[Sample]
) -> None:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

    run(tiny_llava, FULL)
    out = tmp_path / "run" / "checkpoint"
    loaded = LlavaForConditionalGeneration.from_pretrained(out).eval()
    processor = LlavaProcessor.from_pretrained(out, backend="pil")
    batch = Collator(processor, 96, train=False)(samples[:2])
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, tiny_llava.model(**batch).logits)


def test_log_has_a_line_a_step(run: Run, tiny_llava: Loaded, tmp_path: Path) -> None:
    record = run(tiny_llava, FULL.model_copy(update={"warmup_ratio": 0.3}))
    rows = [json.loads(line) for line in (tmp_path / "run" / "train_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    keys = {"step", "loss", "lr", "projector_lr", "grad_norm", "seconds", "tokens", "slots"}
    assert set(rows[0]) == keys
    assert all(0 < row["tokens"] <= row["slots"] for row in rows)
    assert (record.first_loss, record.last_loss) == (rows[0]["loss"], rows[-1]["loss"])
    assert rows[1]["lr"] == pytest.approx(FULL.lr / 2)
    assert rows[2]["lr"] == pytest.approx(FULL.lr)
    assert all(row["projector_lr"] == pytest.approx(row["lr"] / 2) for row in rows)
    assert record.seconds == pytest.approx(sum(row["seconds"] for row in rows))


def test_loss_falls(run: Run, tiny_llava: Loaded, samples: list[Sample]) -> None:
    one = [samples[0]] * 4
    record = run(tiny_llava, FULL.model_copy(update={"epochs": 20, "lr": 5e-3}), samples=one)
    assert record.last_loss < 0.2 * record.first_loss


def test_checkpointing_changes_no_gradient(tiny_llava: Loaded, samples: list[Sample], run: Run) -> None:
    other = copy.deepcopy(tiny_llava)
    run(tiny_llava, FULL, "plain")
    run(other, FULL.model_copy(update={"gradient_checkpointing": True}), "checkpointed")
    expected = state(tiny_llava.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in state(other.model).items())


def test_checkpointing_recomputes_frozen_layers_too(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model = tiny_llava.model
    layers = model.model.language_model.layers
    model.requires_grad_(False)
    layers[1].requires_grad_(True)
    calls = []
    layers[2].self_attn.register_forward_hook(lambda *_: calls.append(1))
    batch = Collator(tiny_llava.processor, 96, train=True)(samples[:1])
    with checkpointed(model, True):
        model.train()
        FrozenModules(model, checkpointing=True).set_eval()
        answer_loss(model, batch).backward()
    assert len(calls) == 2
    assert layers[1].mlp.training
    assert not layers[2].mlp.training
    assert not model.model.vision_tower.training


@pytest.mark.parametrize("lora", [False, True])
def test_checkpointing_keeps_no_activations_of_the_frozen_encoder(
    tiny_llava: Loaded, samples: list[Sample], lora: bool
) -> None:
    import peft

    from striate.models.trainable.apply import apply_region, lora_config

    model = tiny_llava.model
    tuned = peft.get_peft_model(model, lora_config(model, REGION, r=2)) if lora else model
    apply_region(tuned, REGION, "lora" if lora else "full")
    kept: list[bool] = []
    model.model.vision_tower.register_forward_hook(lambda _, __, out: kept.append(out.last_hidden_state.requires_grad))
    batch = Collator(tiny_llava.processor, 96, train=True)([sample for sample in samples if sample.images][:2])
    with checkpointed(tuned, True):
        answer_loss(tuned.train(), batch).backward()
    assert kept == [False]


def test_frozen_modules_and_lora_dropout(tiny_llava: Loaded) -> None:
    import peft

    from striate.models.trainable.apply import apply_region, lora_config

    tuned = peft.get_peft_model(tiny_llava.model, lora_config(tiny_llava.model, REGION, r=2, alpha=2, dropout=0.5))
    apply_region(tuned, REGION, "lora")
    tuned.train()
    FrozenModules(tuned, checkpointing=False).set_eval()
    training = {name for name, module in tuned.named_modules() if module.training}
    assert any(name.endswith("lora_dropout.default") for name in training)
    assert not any("vision_tower" in name or ".layers.0." in name or "base_layer" in name for name in training)


def test_half_precision_trains_in_float32(tiny_llava: Loaded) -> None:
    model = tiny_llava.model.to(torch.bfloat16)
    model.requires_grad_(False)
    model.lm_head.requires_grad_(True)
    weights = MasterWeights(model)
    assert weights.dtype == torch.bfloat16
    assert model.lm_head.weight.dtype == torch.float32
    assert model.model.language_model.norm.weight.dtype == torch.bfloat16
    weights.restore()
    assert model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_bfloat16_run(tiny_llava: Loaded, run: Run, config: TrainSection, samples: list[Sample]) -> None:
    tiny_llava.model.to(torch.bfloat16)
    record = run(tiny_llava, config.model_copy(update={"epochs": 15, "lr": 5e-3}), samples=samples[:1] * 4)
    assert record.last_loss < 0.5 * record.first_loss
    kinds = {tensor.dtype for name, tensor in tiny_llava.model.named_parameters() if ".lora_" not in name}
    assert kinds == {torch.bfloat16}
    assert "forward" not in vars(tiny_llava.model)


def test_order_is_of_seed_and_epoch_alone() -> None:
    samples = [Sample(str(size), (Message("user", "x" * (size % 17)),)) for size in range(50)]
    order = SeededOrder(samples, seed=1, batch_size=8)
    first = list(order)
    torch.rand(3)
    assert list(order) == first
    order.set_epoch(1)
    assert list(order) != first
    assert sorted(order) == list(range(50))
    assert list(SeededOrder(samples, seed=2, batch_size=8)) != first


def test_seed_and_epoch_do_not_stand_in_for_each_other() -> None:
    samples = [Sample(str(size), (Message("user", "x"),)) for size in range(50)]
    orders = []
    for seed in range(4):
        order = SeededOrder(samples, seed=seed, batch_size=1)
        for epoch in range(4):
            order.set_epoch(epoch)
            orders.append(tuple(order))
    assert len(set(orders)) == 16


def test_order_sorts_by_length_within_a_step_only() -> None:
    samples = [Sample(str(size), (Message("user", "x" * size),)) for size in range(50)]
    order = list(SeededOrder(samples, seed=1, batch_size=8))
    steps = [order[first : first + 8] for first in range(0, 50, 8)]
    assert all(step == sorted(step) for step in steps)
    unsorted = list(SeededOrder(samples, seed=1, batch_size=1))
    assert [set(step) for step in steps] == [set(unsorted[first : first + 8]) for first in range(0, 50, 8)]


@pytest.mark.parametrize(
    ("size", "most", "processes", "micro", "accumulation"),
    [(12, 8, 1, 6, 2), (12, 4, 1, 4, 3), (7, 3, 1, 1, 7), (4, 8, 1, 4, 1), (12, 8, 2, 6, 1), (18, 4, 3, 3, 2)],
)
def test_a_micro_batch_divides_what_falls_to_a_process(
    size: int, most: int, processes: int, micro: int, accumulation: int
) -> None:
    machine, config = MachineSection(micro_batch=most), TrainSection(batch_size=size)
    plan = Plan.of(100, config, machine, processes)
    assert (plan.micro_batch, plan.accumulation) == (micro, accumulation)
    assert bool(told_micro_batch(plan, machine)) == (micro < min(most, size // processes))


def test_a_batch_is_whole_on_every_process() -> None:
    with pytest.raises(TrainingError, match=r"train\.batch_size 9 is not a multiple of 2 processes"):
        Plan.of(100, TrainSection(batch_size=9), MachineSection(), 2)
    plan = Plan.of(100, TrainSection(batch_size=12), MachineSection(micro_batch=8))
    said = "micro-batches of 6: 8 (machine.micro_batch) do not divide a step's 12"
    assert told_micro_batch(plan, MachineSection(micro_batch=8)) == said


def test_errors(run: Run, tiny_llava: Loaded, samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="there are no training samples"):
        run(tiny_llava, FULL, samples=[])
    with pytest.raises(TrainingError, match="no training sample has a picture"):
        run(tiny_llava, FULL, samples=samples[-1:])
    with pytest.raises(DataError, match="does not fit"):
        run(tiny_llava, FULL.model_copy(update={"max_length": 16}), "short")
    nothing = Region(layers=(), num_layers=4, spec="none")
    with pytest.raises(TrainingError):
        run(tiny_llava, FULL.model_copy(update={"projector": "frozen"}), "nothing", region=nothing)
    with pytest.raises(TrainingError, match="float16 does not train on the CPU"):
        run(Loaded(copy.deepcopy(tiny_llava.model).half(), tiny_llava.processor), FULL)
    full = tmp_path / "taken" / "checkpoint"
    full.mkdir(parents=True)
    (full / "x").touch()
    with pytest.raises(ArtifactError, match="exists already"):
        run(tiny_llava, FULL, "taken")


def test_text_only_data_without_the_projector(run: Run, tiny_llava: Loaded, samples: list[Sample]) -> None:
    config = FULL.model_copy(update={"projector": "frozen"})
    projector = state(tiny_llava.model.model.multi_modal_projector)
    record = run(tiny_llava, config, samples=samples[-1:] * 4)
    assert record.steps == 1
    assert all(
        torch.equal(projector[name], tensor)
        for name, tensor in state(tiny_llava.model.model.multi_modal_projector).items()
    )


@pytest.mark.parametrize("packing", [False, True])
def test_the_projector_alone_learns_beside_micro_batches_of_plain_text(
    run: Run, tiny_llava: Loaded, samples: list[Sample], packing: bool
) -> None:
    mixed, trained = [*samples[:3], samples[-1]], []
    config = FULL.model_copy(update={"max_steps": 3, "packing": packing})
    for name, machine in (
        ("whole", MachineSection(micro_batch=4, pack_tokens=1024)),
        ("apart", MachineSection(micro_batch=1, pack_tokens=16)),
    ):
        loaded = Loaded(copy.deepcopy(tiny_llava.model), tiny_llava.processor)
        run(loaded, config, name, Region(layers=(), num_layers=4, spec="none"), samples=mixed, machine=machine)
        trained.append(state(loaded.model.model.multi_modal_projector))
    start = state(tiny_llava.model.model.multi_modal_projector)
    assert not any(torch.equal(start[name], tensor) for name, tensor in trained[0].items())
    torch.testing.assert_close(*trained)


def test_a_smaller_micro_batch_is_said(run: Run, tiny_llava: Loaded, samples: list[Sample]) -> None:
    said: list[str] = []

    class Lines(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    run(tiny_llava, FULL.model_copy(update={"max_steps": 1}), machine=MachineSection(micro_batch=3), progress=Lines())
    assert "micro-batches of 2: 3 (machine.micro_batch) do not divide a step's 4" in said
