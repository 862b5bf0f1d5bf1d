"""LISA: closed layers stay to the byte, every layer is sampled, and a resumed training gives the same bits."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_kit import Run, runner, weights

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, ResampleSection, TrainSection, parse_config
from striate.data.reading import read_samples
from striate.errors import ConfigError, TrainingError
from striate.models.io.load import Loaded
from striate.models.structure.anatomy import decoder_layers
from striate.selectors.spec.grammar import resolve
from striate.training.lisa import LisaSchedule, moving_layers, never_sampled, sampled_layers
from striate.training.trainer import RegionTrainer

ALL = Region(layers=(0, 1, 2, 3), num_layers=4, spec="all")
FULL = TrainSection(method="full", batch_size=4, epochs=2, lr=1e-3, weight_decay=0.1, max_length=96, save_steps=1)
FULL = FULL.model_copy(update={"resample": ResampleSection(active=2, every=2)})
LORA = FULL.model_copy(update={"method": "lora", "lr": 1e-2, "lora": LoraSection(r=4, alpha=8, dropout=0.3)})


class Listener:
    """A progress that calls back after every step, and remembers what was said."""

    def __init__(self, after: Callable[[int], None] = lambda step: None) -> None:
        self.steps = 0
        self.after = after
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def track(self, label: str, total: int) -> Any:
        from contextlib import nullcontext

        return nullcontext(self._advance)

    def _advance(self, count: int) -> None:
        self.steps += 1
        self.after(self.steps)


def stop_after(steps: int) -> Listener:
    def stop(step: int) -> None:
        if step == steps:
            raise KeyboardInterrupt

    return Listener(stop)


@pytest.fixture
def run(tmp_path: Path, pack_dir: Path) -> Run:
    return runner(tmp_path, read_samples(pack_dir), ALL, MachineSection(micro_batch=2))


def layer_weights(model: torch.nn.Module) -> dict[int, dict[str, torch.Tensor]]:
    """Every decoder layer's weights that may train: adapters where there are some."""
    found: dict[int, dict[str, torch.Tensor]] = {layer: {} for layer in range(4)}
    named = [(name, value) for name, value in weights(model).items() if "language_model.layers." in name]
    adapted = any("lora_" in name for name, _ in named)
    for name, value in named:
        if not adapted or "lora_" in name:
            found[int(name.partition("language_model.layers.")[2].partition(".")[0])][name] = value
    return found


def log_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("config", [FULL, LORA], ids=["full", "lora"])
def test_only_open_layers_move(run: Run, tiny_llava: Loaded, tmp_path: Path, config: TrainSection) -> None:
    states: list[dict[int, dict[str, torch.Tensor]]] = []

    def look(step: int) -> None:
        states.append(layer_weights(tiny_llava.model))

    record = run(tiny_llava, "run", config, progress=Listener(look))
    rows = log_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 9))
    assert all(len(row["open_layers"]) == 2 for row in rows)
    assert [row["open_layers"] for row in rows[::2]] == [row["open_layers"] for row in rows[1::2]]
    for (before, after), row in zip(pairwise(states), rows[1:], strict=True):
        moved = {
            layer
            for layer in range(4)
            if any(not torch.equal(before[layer][name], after[layer][name]) for name in before[layer])
        }
        assert moved == set(row["open_layers"])
    assert record.resampled is not None
    assert record.resampled.steps_open == {0: 4, 1: 4, 2: 4, 3: 4}
    assert (record.resampled.active, record.resampled.every, record.resampled.state) == (2, 2, "keep")
    assert record.proof.startswith("4 layers, proved in 2 sets that were open one after another; the first: ")
    assert "in 2 of 4 decoder layers and 4 tensors of the projector received finite gradients" in record.proof
    assert all(parameter.grad is None for parameter in tiny_llava.model.parameters())
    trained = [name for name, parameter in tiny_llava.model.named_parameters() if parameter.requires_grad]
    assert {int(name.partition("model.layers.")[2][0]) for name in trained if ".layers." in name} == {0, 1, 2, 3}


@pytest.mark.parametrize(("config", "state", "steps"), [(FULL, "keep", 4), (LORA, "keep", 6), (FULL, "drop", 6)])
def test_resumed_is_uninterrupted(
    run: Run, tiny_llava: Loaded, tmp_path: Path, config: TrainSection, state: str, steps: int
) -> None:
    config = config.model_copy(
        update={"resample": ResampleSection.model_validate({"active": 1, "every": 2, "state": state})}
    )
    whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(3))
    record = run(whole, "whole", config)
    with pytest.raises(KeyboardInterrupt):
        run(killed, "cut", config, progress=stop_after(steps))
    torch.manual_seed(99)
    listener = Listener()
    again = run(resumed, "cut", config, progress=listener)
    assert f"going on from step {steps - 1} of 8" in listener.said
    expected = weights(whole.model)
    for name, tensor in weights(resumed.model).items():
        assert torch.equal(tensor, expected[name]), name
    keys = ("step", "loss", "open_layers")
    rows = [[tuple(str(row[key]) for key in keys) for row in log_of(tmp_path / name)] for name in ("whole", "cut")]
    assert rows[0] == rows[1]
    assert (again.proof, again.resampled) == (record.proof, record.resampled)


def test_another_state_of_the_optimizer_is_another_training(run: Run, tiny_llava: Loaded) -> None:
    kept, dropped = copy.deepcopy(tiny_llava), copy.deepcopy(tiny_llava)
    section = ResampleSection(active=1, every=1)
    config = FULL.model_copy(update={"resample": section, "epochs": 4.0})
    region = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
    run(kept, "kept", config, region)
    run(
        dropped, "dropped", config.model_copy(update={"resample": section.model_copy(update={"state": "drop"})}), region
    )
    ones, others = layer_weights(kept.model)[1], layer_weights(dropped.model)[1]
    assert any(not torch.equal(ones[name], others[name]) for name in ones)


@pytest.mark.parametrize("state", ["keep", "drop"])
def test_what_the_optimizer_knows(
    run: Run, tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch, state: str, tmp_path: Path
) -> None:
    """Kept: a closed layer's moments stay as they were, to the byte. Dropped: only open layers have moments."""
    config = FULL.model_copy(
        update={"resample": ResampleSection.model_validate({"active": 1, "every": 2, "state": state})}
    )
    known: list[dict[int, Any]] = []
    trainers: list[RegionTrainer] = []
    plain = RegionTrainer.create_optimizer

    def create(self: RegionTrainer, model: Any = None) -> Any:
        trainers.append(self)
        return plain(self, model)

    def look(step: int) -> None:
        trainer = trainers[0]
        assert trainer._lisa
        moments = {
            layer: [trainer.optimizer.state[tensor]["exp_avg"].clone() for tensor in tensors]
            for layer, tensors in trainer._lisa._schedule._tensors.items()
            if tensors[0] in trainer.optimizer.state
        }
        known.append(moments)

    monkeypatch.setattr(RegionTrainer, "create_optimizer", create)
    run(tiny_llava, "run", config, progress=Listener(look))
    opened = [set(row["open_layers"]) for row in log_of(tmp_path / "run")]
    for step, moments in enumerate(known):
        assert set(moments) == (set.union(*opened[: step + 1]) if state == "keep" else opened[step])
    for before, after, now in zip(known, known[1:], opened[1:], strict=False):
        for layer in before.keys() & after.keys():
            same = all(torch.equal(a, b) for a, b in zip(before[layer], after[layer], strict=True))
            assert same is (layer not in now)


def test_every_layer_open_is_ordinary_training(run: Run, tiny_llava: Loaded) -> None:
    plain, turned = copy.deepcopy(tiny_llava), copy.deepcopy(tiny_llava)
    assert run(plain, "plain", LORA.model_copy(update={"resample": ResampleSection()})).resampled is None
    listener = Listener()
    run(turned, "turned", LORA.model_copy(update={"resample": ResampleSection(active=4, every=1)}), progress=listener)
    assert "train.resample has no effect: all 4 layers of the region are open all the time" in listener.said
    expected = weights(plain.model)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(turned.model).items())


def test_gradient_checkpointing_changes_nothing(run: Run, tiny_llava: Loaded) -> None:
    plain, checkpointed = copy.deepcopy(tiny_llava), copy.deepcopy(tiny_llava)
    run(plain, "plain", FULL)
    run(checkpointed, "checkpointed", FULL.model_copy(update={"gradient_checkpointing": True}))
    expected = weights(plain.model)
    for name, tensor in weights(checkpointed.model).items():
        torch.testing.assert_close(tensor, expected[name], msg=name)


def test_closed_adapters_have_their_dropout_off(
    run: Run, tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[set[int]] = []
    check = LisaSchedule.check_gradients

    def look(self: LisaSchedule) -> None:
        check(self)
        names = [
            name
            for name, module in tiny_llava.model.named_modules()
            if isinstance(module, torch.nn.Dropout) and module.training and "lora_dropout" in name
        ]
        seen.append({int(name.partition("language_model.layers.")[2][0]) for name in names})

    monkeypatch.setattr(LisaSchedule, "check_gradients", look)
    run(tiny_llava, "run", LORA)
    assert seen == [set(row["open_layers"]) for row in log_of(tmp_path / "run")]


def test_too_few_steps_are_said_beforehand(run: Run, tiny_llava: Loaded) -> None:
    config = FULL.model_copy(update={"max_steps": 3, "resample": ResampleSection(active=1, every=2)})
    listener = Listener()
    record = run(tiny_llava, "run", config, progress=listener)
    assert record.resampled
    idle = [layer for layer, steps in record.resampled.steps_open.items() if not steps]
    assert len(idle) == 2
    said = f"layers {idle[0]}, {idle[1]} will not train: 3 steps, with 1 layer open for 2 steps, are too few"
    assert any(line.startswith(said) for line in listener.said)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_sampling_is_fair(layers: int, active: int, seed: int) -> None:
    active = min(active, layers)
    names = [3 * layer for layer in range(layers)]
    hands = sampled_layers(names, active, seed)
    counts = dict.fromkeys(names, 0)
    for _ in range(3 * layers):
        hand = next(hands)
        assert len(set(hand)) == active
        assert list(hand) == sorted(hand)
        for layer in hand:
            counts[layer] += 1
        assert max(counts.values()) - min(counts.values()) <= 1
    assert sum(counts.values()) == 3 * layers * active


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_moving_region_is_uniform_and_comes_everywhere(layers: int, active: int) -> None:
    active = min(active, layers)
    names = [3 * layer for layer in range(layers)]
    rounds = math.ceil(layers / active)
    hands = list(islice(moving_layers(names, active), 2 * rounds))
    assert hands[0] == tuple(3 * layer for layer in resolve(f"uniform:{active}", layers).layers)
    assert hands[:rounds] == hands[rounds:]
    assert set().union(*hands) == set(names)
    for hand, after in pairwise(hands[:rounds]):
        assert len(set(hand)) == active
        assert after == tuple(sorted(names[(names.index(layer) + 1) % layers] for layer in hand))


def test_a_moving_region_trains_its_open_layers(run: Run, tiny_llava: Loaded, tmp_path: Path) -> None:
    turns = ResampleSection(active=2, every=3, order="moving", state="drop")
    record = run(tiny_llava, "run", FULL.model_copy(update={"resample": turns}))
    assert [row["open_layers"] for row in log_of(tmp_path / "run")] == [[0, 2]] * 3 + [[1, 3]] * 3 + [[0, 2]] * 2
    assert record.resampled is not None
    assert (record.resampled.order, record.resampled.steps_open) == ("moving", {0: 5, 1: 3, 2: 5, 3: 3})
    assert never_sampled(ALL, turns, 3, 0) == (1, 3)


def test_samples_follow_from_the_seed() -> None:
    def some(seed: int) -> list[tuple[int, ...]]:
        hands = sampled_layers(range(16), 2, seed)
        return [next(hands) for _ in range(24)]

    assert some(1) == some(1) != some(2)
    assert len(set(some(1))) > 12
    region = Region(layers=(0, 1, 2), num_layers=4, spec="bottom:3")
    assert never_sampled(region, ResampleSection(active=2, every=5), 6, 0) == ()
    assert len(never_sampled(region, ResampleSection(active=2, every=5), 5, 0)) == 1
    assert never_sampled(region, ResampleSection(), 1, 0) == ()


def test_a_stray_gradient_stops(tiny_llava: Loaded) -> None:
    turns = LisaSchedule(tiny_llava.model, ALL, ResampleSection(active=1, every=1), 0)
    turns.open_for_step(0, None)
    for tensors in turns._tensors.values():
        for tensor in tensors:
            tensor.grad = torch.zeros_like(tensor)
    with pytest.raises(
        TrainingError, match=rf"layers {turns.open_layers[0]} are open, and layers 0, 1, 2, 3 received gradients"
    ):
        turns.check_gradients()


def test_every_layer_is_proved_before_the_first_step(run: Run, tiny_llava: Loaded) -> None:
    """A layer whose turn would come late, and that no gradient reaches, stops the training at once."""
    layer = decoder_layers(tiny_llava.model)[2]
    plain = layer.forward

    def detached(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            out = plain(*args, **kwargs)
        return args[0] + (out - args[0]).detach()

    layer.forward = detached
    config = FULL.model_copy(update={"resample": ResampleSection(active=1, every=100)})
    with pytest.raises(TrainingError, match=r"chosen tensors received no gradient: .*layers\.2\."):
        run(tiny_llava, "run", config)


def test_half_precision_keeps_turns(run: Run, tiny_llava: Loaded, tmp_path: Path) -> None:
    tiny_llava.model.to(torch.bfloat16)
    before = layer_weights(tiny_llava.model)
    config = FULL.model_copy(update={"max_steps": 2, "resample": ResampleSection(active=1, every=2)})
    run(tiny_llava, "run", config)
    after = layer_weights(tiny_llava.model)
    moved = {
        layer for layer in range(4) if any(not torch.equal(before[layer][n], after[layer][n]) for n in before[layer])
    }
    assert moved == {layer for row in log_of(tmp_path / "run") for layer in row["open_layers"]}
    assert {tensor.dtype for tensor in tiny_llava.model.parameters()} == {torch.bfloat16}


def test_what_a_person_gets_wrong(run: Run, tiny_llava: Loaded, tmp_path: Path) -> None:
    config = FULL.model_copy(update={"resample": ResampleSection(active=3)})
    with pytest.raises(
        TrainingError, match=r"train\.resample\.active is 3, and region 'ids:1,3' has 2 layers"
    ) as caught:
        run(tiny_llava, "few", config, Region(layers=(1, 3), num_layers=4, spec="ids:1,3"))
    assert "1 to 2 layers open at a time" in str(caught.value)
    with pytest.raises(TrainingError, match="region 'none' has 0 layers"):
        run(tiny_llava, "none", config, Region(layers=(), num_layers=4, spec="none"))
    assert not (tmp_path / "few").exists()
    raw = {"model": {"path": "m"}, "data": {"train": ["d"]}}
    for setting, words in {
        "train.resample.every=0": "train.resample.every: Input should be greater than or equal to 1",
        "train.resample.active=0": "train.resample.active: Input should be greater than or equal to 1",
        "train.resample.every=5": "every, state and order have no effect without active",
        "train.resample.state=drop": "every, state and order have no effect without active",
        "train.resample.order=moving": "every, state and order have no effect without active",
        "train.resample.order=move": "train.resample.order: Input should be 'random' or 'moving'",
        "train.resample.evry=5": "did you mean 'train.resample.every'?",
    }.items():
        with pytest.raises(ConfigError) as refused:
            parse_config(raw, [setting])
        assert words in str(refused.value)
    section = parse_config(raw, ["train.resample.active=2", "train.resample.every=5"]).train.resample
    assert (section.active, section.every, section.state) == (2, 5, "keep")
