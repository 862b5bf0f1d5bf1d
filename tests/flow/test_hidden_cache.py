"""Kept hidden states: the weights of plain training, no work below the region, what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from training_kit import Run, Said, losses, runner

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection, parse_config
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import ArtifactError, ConfigError, ModelError, TrainingError
from striate.training.caching import tensor_store as kept_store
from striate.training.caching.hidden_states import HIDDEN, keep_hidden
from striate.training.caching.token_store import load_items, save_items
from striate.training.compile import policy as speed

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(2, 3), num_layers=4, spec="ids:2,3")
LORA = LoraSection(r=4, alpha=8, dropout=0.0)
FULL = TrainSection(
    method="full", train_projector=False, batch_size=6, epochs=2, lr=1e-2, warmup_ratio=0, max_length=96, lora=LORA
)
MACHINE = MachineSection(micro_batch=3, pack_tokens=120)


class Killed(Said):
    """A progress that ends the process in the middle of training."""

    left = 3

    def track(self, label: str, total: int) -> Any:
        return nullcontext(self.advance if label == "train" else lambda count: None)

    def advance(self, count: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample]) -> Run:
    machine = MACHINE.model_copy(update={"cache_folder": str(tmp_path / "kept")})
    start = runner(tmp_path, samples, REGION, machine)
    return lambda loaded, name, config=FULL, **more: start(loaded, name, config, **more)


def counted(loaded: Loaded) -> list[str]:
    """Return a list that gets a word for every call, with gradients, of the vision encoder and of the first layer."""
    calls: list[str] = []

    def note(word: str) -> Callable[..., None]:
        return lambda *_: calls.append(word) if torch.is_grad_enabled() else None

    core = loaded.model.model
    core.vision_tower.register_forward_hook(note("vision"))
    core.language_model.layers[0].self_attn.register_forward_hook(note("layer"))
    return calls


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_is_the_same(
    run: Run, tiny_llava: Loaded, tmp_path: Path, where: str, packing: bool, method: str
) -> None:
    config = FULL.model_copy(update={"packing": packing, "method": method})
    other = copy.deepcopy(tiny_llava)
    record = run(tiny_llava, "whole", config)
    progress = Said()
    calls = counted(other)
    found = run(other, "kept-states", config, machine={"cache_hidden": where}, progress=progress)
    torch.testing.assert_close(losses(tmp_path / "kept-states"), losses(tmp_path / "whole"), rtol=1e-5, atol=1e-5)
    wanted = dict(tiny_llava.model.named_parameters())
    for name, parameter in other.model.named_parameters():
        # By norm: AdamW turns rounding of a gradient near zero into a step of that one weight.
        assert (parameter - wanted[name]).norm() <= 1e-4 * wanted[name].norm(), name
    assert found.tokens == record.tokens
    # In the proof alone.
    assert calls == ["vision", "layer"]
    said = "\n".join(progress.said)
    assert "hidden states before layer 2 of 13 samples: about 0.00 GiB in" in said
    assert "hidden states before layer 2: 4 samples get the last hidden states that the whole model gives them" in said


def test_a_sweep_shares_the_disk_and_reads_no_picture_again(
    run: Run, tiny_llava: Loaded, tmp_path: Path, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = {"machine": {"cache_hidden": "disk"}}
    first, second, lower, changed = (copy.deepcopy(tiny_llava) for _ in range(4))
    progress = Said()
    run(first, "first", **disk, progress=progress)
    [folder] = (tmp_path / "kept").iterdir()
    assert f"hidden states written to {folder}" in progress.said
    opened: list[Any] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *more: opened.append(path) or original(path, *more))
    progress = Said()
    region = Region(layers=(2,), num_layers=4, spec="ids:2")
    run(second, "second", FULL.model_copy(update={"lr": 2e-2}), **disk, region=region, progress=progress)
    assert f"hidden states read from {folder}" in progress.said
    # A few samples are compared and one proves what trains; the others' pictures stay closed.
    assert len(set(opened)) < len({path for sample in samples for path in sample.images})
    run(lower, "lower", **disk, region=Region(layers=(1, 3), num_layers=4, spec="ids:1,3"))
    with torch.no_grad():
        changed.model.model.language_model.layers[1].mlp.up_proj.weight.add_(0.1)
    run(changed, "changed", **disk)
    assert len(list((tmp_path / "kept").iterdir())) == 3


def test_resumed_is_uninterrupted(run: Run, tiny_llava: Loaded) -> None:
    config = FULL.model_copy(update={"save_steps": 1})
    whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(3))
    machine = {"cache_hidden": "disk"}
    run(whole, "whole", config, machine=machine)
    with pytest.raises(KeyboardInterrupt):
        run(killed, "cut", config, machine=machine, progress=Killed())
    run(resumed, "cut", config, machine=machine)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


@pytest.mark.parametrize(
    ("train_more", "machine_more"),
    [
        ({"image_tokens": "region"}, {}),
        ({"gradient_checkpointing": True}, {}),
        ({"resample": {"active": 1, "every": 1}}, {}),
        ({}, {"memory_budget": 0.02}),
        ({}, {"workers": 1}),
        ({"packing": True}, {"compile": "on"}),
    ],
    ids=["region-only", "checkpointing", "in turns", "budget", "worker", "compiled"],
)
def test_with_other_modes(
    run: Run,
    tiny_llava: Loaded,
    tmp_path: Path,
    samples: list[Sample],
    train_more: dict[str, Any],
    machine_more: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "fast_layers", partial(speed.fast_layers, backend="eager"))
    # AdamW moves a weight by the learning rate however small its gradient is: rounding shows at large ones.
    settings = {**FULL.model_dump(), "max_steps": 2, "lr": 1e-3, **train_more}
    config = TrainSection.model_validate(settings)
    other = copy.deepcopy(tiny_llava)
    # Few lengths: each is compiled.
    few = samples[:3]
    run(tiny_llava, "whole", config, machine=machine_more, samples=few)
    progress = Said()
    run(other, "kept-states", config, machine={"cache_hidden": "disk", **machine_more}, samples=few, progress=progress)
    assert ("2 of 4 decoder layers run compiled" in " ".join(progress.said)) == ("compile" in machine_more)
    torch.testing.assert_close(losses(tmp_path / "kept-states"), losses(tmp_path / "whole"), rtol=1e-5, atol=1e-5)
    wanted = dict(tiny_llava.model.named_parameters())
    for name, parameter in other.model.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=1e-3, atol=1e-5, msg=name)


def test_half_precision_is_kept_in_half_precision(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model = tiny_llava.model.to(torch.bfloat16).requires_grad_(False)
    progress = Said()
    collator = Collator(tiny_llava.processor, 96, train=True)
    machine = MACHINE.model_copy(update={"cache_hidden": "memory"})
    options: dict[str, Any] = {"half": torch.bfloat16, "folder": Path("none"), "progress": progress}
    cache = keep_hidden(model, tiny_llava.processor, REGION, samples, collator, FULL, machine, **options)
    assert cache
    [item] = cache.collator.encode_each(samples[:1])
    assert item.tokens[HIDDEN].dtype == torch.bfloat16
    assert item.tokens[HIDDEN].shape == (1, item.length, 32)
    assert not item.pictures
    assert "bfloat16" in progress.said[0]


def test_refusals(run: Run, tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"machine": {"cache_hidden": "memory"}}
    with pytest.raises(TrainingError) as trains:
        run(copy.deepcopy(tiny_llava), "projector", FULL.model_copy(update={"train_projector": True}), **memory)
    assert str(trains.value) == (
        "machine.cache_hidden keeps what comes out of the projector, and train.train_projector trains it\n"
        "  allowed: a frozen projector, or kept vision features (machine.cache_vision)\n"
        "  next:    use --set train.train_projector=false, or machine.cache_vision in the place of machine.cache_hidden"
    )
    with pytest.raises(TrainingError, match=r"are both set: on hidden states no picture is read"):
        run(copy.deepcopy(tiny_llava), "both", machine={"cache_hidden": "memory", "cache_vision": "memory"})
    dropping = copy.deepcopy(tiny_llava)
    dropping.model.model.language_model.extra = torch.nn.Dropout(0.1)
    with pytest.raises(ModelError) as dropped:
        run(dropping, "dropout", **memory)
    assert str(dropped.value) == (
        "machine.cache_hidden does not work with this model and region: model.language_model.extra drops values at"
        " random while training\n"
        "  allowed: decoder layers that hand on nothing but hidden states, with all that lies below the region frozen\n"
        "  next:    use machine.cache_hidden=off"
    )
    monkeypatch.setattr(kept_store, "_free_memory", lambda: 1000)
    with pytest.raises(ArtifactError) as full:
        run(copy.deepcopy(tiny_llava), "full", **memory)
    assert str(full.value) == (
        "hidden states need 0.0 GiB, and memory has 0.0 GiB free\n"
        "  allowed: room for those of all training samples\n"
        "  next:    use machine.cache_hidden=disk, or off"
    )


def test_a_state_that_is_put_in_above_the_layer_is_found(run: Run, tiny_llava: Loaded) -> None:
    """As Qwen3-VL does for its first layers: features of the picture are added between decoder layers."""
    core = tiny_llava.model.model

    def add(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        seen.append(kwargs.get("pixel_values"))

    seen: list[Any] = []
    tiny_llava.model.register_forward_pre_hook(lambda _, args, kwargs: add(None, args, kwargs, None), with_kwargs=True)
    core.language_model.layers[2].register_forward_hook(
        lambda _, args, output: output + (0.5 if seen[-1] is not None else 0.0)
    )
    with pytest.raises(ModelError, match=r"run on from layer 2, the model's last hidden states differ, by \d"):
        run(tiny_llava, "injected", machine={"cache_hidden": "memory"})


def test_damaged_folders(run: Run, tiny_llava: Loaded, tmp_path: Path) -> None:
    disk = {"machine": {"cache_hidden": "disk"}}
    run(copy.deepcopy(tiny_llava), "first", **disk)
    [folder] = (tmp_path / "kept").iterdir()
    (folder / "tokens.json").write_text("{}")
    with pytest.raises(ArtifactError, match=r"holds no whole samples: .*\n.*machine.cache_hidden=disk or machine"):
        run(copy.deepcopy(tiny_llava), "second", **disk)


def test_samples_come_back_as_they_were(tiny_llava: Loaded, samples: list[Sample], tmp_path: Path) -> None:
    items = Collator(tiny_llava.processor, 96, train=True).encode_each(samples)
    # Masks of pixels are as large as the pictures.
    masks = [torch.ones(1, 2, index + 1, 3, dtype=torch.bool) for index in range(len(items) - 1)]
    for item, mask in zip(items, masks, strict=False):
        item.pictures["pixel_attention_mask"] = mask
    save_items(tmp_path, items)
    for found, item in zip(load_items(tmp_path), items, strict=True):
        assert found.tokens.keys() == item.tokens.keys()
        assert found.pictures.keys() == item.pictures.keys()
        assert all(torch.equal(tensor, item.tokens[name]) for name, tensor in found.tokens.items())
        assert all(torch.equal(tensor, item.pictures[name]) for name, tensor in found.pictures.items())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["machine.cache_hidden=disk"], r"machine.cache_hidden keeps what comes out of the projector"),
        (
            ["machine.cache_hidden=disk", "machine.cache_vision=disk", "train.train_projector=false"],
            r"machine.cache_hidden and machine.cache_vision are both set: use one of them",
        ),
        (["machine.cache_hidden=ram"], r"machine.cache_hidden: Input should be 'off', 'memory' or 'disk'"),
    ],
)
def test_settings_that_do_not_go_together(settings: list[str], said: str) -> None:
    raw = {"model": {"path": "m"}, "data": {"train": ["d"]}}
    with pytest.raises(ConfigError, match=said):
        parse_config(raw, settings)
    config = parse_config(raw, ["machine.cache_hidden=off"])
    assert config.machine.cache_hidden == "off"
