"""Kept vision features: the same losses and weights as with pictures, one pass of the encoder, what is refused."""

from __future__ import annotations

import copy
import os
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file
from training_kit import Run, Said, losses, runner

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection, parse_config
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import ArtifactError, ModelError
from striate.models.interventions.vision_feature_tap import PIXELS, VisionTap
from striate.training.caching import vision_features as vision_cache
from striate.training.caching import vision_pass as vision_maker
from striate.training.caching.tensor_store import DiskStore, check_room, disk_writer
from striate.training.caching.vision_features import cached_features

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

REGION = Region(layers=(1, 3), num_layers=4, spec="ids:1,3")
FULL = TrainSection(method="full", batch_size=6, epochs=2, lr=1e-2, projector_lr=5e-3, warmup_ratio=0, max_length=96)
MACHINE = MachineSection(micro_batch=3, pack_tokens=120)


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)


@pytest.fixture
def run(tmp_path: Path, samples: list[Sample]) -> Run:
    machine = MACHINE.model_copy(update={"cache_folder": str(tmp_path / "kept")})
    start = runner(tmp_path, samples, REGION, machine)
    return lambda loaded, name, config=FULL, **more: start(loaded, name, config, **more)


def test_more_samples_than_files_may_be_open(run: Run, tiny_llava: Loaded, samples: list[Sample]) -> None:
    many = [replace(sample, id=f"{sample.id}-{turn}") for turn in range(30) for sample in samples]
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + len(many) // 2, limits[1]))
    try:
        config = FULL.model_copy(update={"max_steps": 1})
        run(tiny_llava, "many", config, samples=many, machine={"workers": 1, "cache_vision": "memory"})
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_samples_are_encoded_once_for_all_runs(
    run: Run, tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[bool] = []
    whole = vision_maker.FeatureMaker.run

    def counted(maker: Any, add: Any, *rest: Any) -> Any:
        passes.append(add is not None)
        return whole(maker, add, *rest)

    monkeypatch.setattr(vision_maker.FeatureMaker, "run", counted)
    config, disk = FULL.model_copy(update={"max_steps": 2}), {"machine": {"cache_vision": "disk", "workers": 1}}
    run(copy.deepcopy(tiny_llava), "first", config, **disk)
    assert passes == [True]
    run(copy.deepcopy(tiny_llava), "second", config, **disk)
    assert passes == [True]
    assert torch.equal(losses(tmp_path / "first"), losses(tmp_path / "second"))
    longer = config.model_copy(update={"max_length": 97})
    run(copy.deepcopy(tiny_llava), "third", longer, **disk)
    run(tiny_llava, "fourth", longer, **disk)
    assert passes == [True, False]
    assert torch.equal(losses(tmp_path / "fourth"), losses(tmp_path / "second"))


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_training_is_the_same(
    run: Run, tiny_llava: Loaded, tmp_path: Path, where: str, packing: bool, method: str
) -> None:
    config = FULL.model_copy(
        update={"packing": packing, "method": method, "lora": LoraSection(r=4, alpha=8, dropout=0.0)}
    )
    other = copy.deepcopy(tiny_llava)
    run(tiny_llava, "pictures", config)
    progress = Said()
    calls: list[int] = []
    tower = other.model.model.vision_tower
    first = next(module for module in tower.modules() if isinstance(module, torch.nn.Conv2d))
    first.register_forward_hook(lambda *args: calls.append(1))
    run(other, "kept-features", config, machine={"cache_vision": where}, progress=progress)
    torch.testing.assert_close(losses(tmp_path / "kept-features"), losses(tmp_path / "pictures"), rtol=1e-5, atol=1e-5)
    wanted = dict(tiny_llava.model.named_parameters())
    for name, parameter in other.model.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    # The first picture, the others, two to compare, the proof, and for packed rows one row and four samples.
    assert len(calls) <= 2 + 2 + 1 + 5 * packing
    said = "\n".join(progress.said)
    assert "vision features of 12 pictures: about 0.00 GiB" in said
    assert "vision features: 4 samples get the hidden states of their pictures (within" in said


def test_runs_share_the_disk(run: Run, tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = {"machine": {"cache_vision": "disk"}}
    first, second, changed = (copy.deepcopy(tiny_llava) for _ in range(3))
    progress = Said()
    run(first, "first", **disk, progress=progress)
    [folder] = (tmp_path / "kept").iterdir()
    assert f"vision features written to {folder}" in progress.said
    tensor = load_file(str(folder / "features.safetensors"))["features"]
    # The twelve files hold four different pictures.
    assert tensor.shape == (4, 4, 16)
    computed: list[int] = []
    original = VisionTap.features

    def count(self: VisionTap, pictures: Any) -> torch.Tensor:
        computed.append(pictures[PIXELS].shape[0])
        return original(self, pictures)

    monkeypatch.setattr(VisionTap, "features", count)
    progress = Said()
    run(second, "second", FULL.model_copy(update={"lr": 2e-2}), **disk, progress=progress)
    assert f"vision features read from {folder}" in progress.said
    # One picture, to see what the encoder's output looks like.
    assert computed == [1]
    with torch.no_grad():
        next(changed.model.model.vision_tower.parameters()).add_(1.0)
    run(changed, "changed", **disk)
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_another_run_wrote_them_first(
    run: Run, tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = {"machine": {"cache_vision": "disk"}}
    run(copy.deepcopy(tiny_llava), "first", **disk)
    [folder] = (tmp_path / "kept").iterdir()
    hidden = folder.rename(tmp_path / "meanwhile")
    original = vision_maker.FeatureMaker.run

    def late(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        if hidden.exists():
            hidden.rename(folder)
        return found

    monkeypatch.setattr(vision_maker.FeatureMaker, "run", late)
    run(tiny_llava, "second", **disk)
    assert list((tmp_path / "kept").iterdir()) == [folder]


def test_resumed_is_uninterrupted(run: Run, tiny_llava: Loaded) -> None:
    class Killed(Said):
        left = 3

        def track(self, label: str, total: int) -> Any:
            from contextlib import nullcontext

            return nullcontext(self.advance if label == "train" else lambda count: None)

        def advance(self, count: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    config = FULL.model_copy(update={"save_steps": 1})
    whole, killed, resumed = (copy.deepcopy(tiny_llava) for _ in range(3))
    machine = {"cache_vision": "memory"}
    run(whole, "whole", config, machine=machine)
    with pytest.raises(KeyboardInterrupt):
        run(killed, "cut", config, machine=machine, progress=Killed())
    run(resumed, "cut", config, machine=machine)
    expected = whole.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in resumed.model.state_dict().items())


def test_bfloat16_is_kept_in_half_precision_where_that_changes_nothing(
    tiny_llava: Loaded, samples: list[Sample]
) -> None:
    model = tiny_llava.model.to(torch.bfloat16).requires_grad_(False)
    progress = Said()
    machine = MACHINE.model_copy(update={"cache_vision": "memory"})
    collator = Collator(tiny_llava.processor, 96, train=True)
    options: dict[str, Any] = {"half": torch.bfloat16, "progress": progress}
    cache = cached_features(model, tiny_llava.processor, samples, collator, machine, **options)
    assert cache
    [item] = cache.collator.encode_each(samples[:1])
    assert item.pictures[vision_cache.FEATURES].dtype == torch.bfloat16
    assert "bfloat16" in progress.said[0]
    assert PIXELS not in item.pictures


def test_a_changed_picture_is_found(run: Run, tiny_llava: Loaded, tmp_path: Path, samples: list[Sample]) -> None:
    disk = {"machine": {"cache_vision": "disk"}}
    run(copy.deepcopy(tiny_llava), "first", **disk)
    one, two = samples[0].images[0], samples[1].images[0]
    status = one.stat()
    content = two.read_bytes()
    one.write_bytes(content[: status.st_size] + b"\0" * (status.st_size - len(content)))
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))
    if one.stat().st_size != status.st_size:
        pytest.skip("the pictures have other sizes")
    with pytest.raises(ArtifactError, match="has no features of the picture of sample"):
        run(copy.deepcopy(tiny_llava), "second", **disk)


def test_no_room(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"vision features need 1048576\.0 GiB, and the disk of"):
        check_room(2**50, tmp_path / "not" / "there")
    if sys.platform == "linux":
        with pytest.raises(ArtifactError, match=r"and memory has .* GiB free[\s\S]*use machine.cache_vision=disk"):
            check_room(2**50, None)


def test_features_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    with pytest.raises(AttributeError), disk_writer(tmp_path / "cut") as writer:
        writer.add("a", None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    with disk_writer(tmp_path / "whole") as writer:
        writer.add("a", torch.ones(2, 3, dtype=torch.bfloat16))
        writer.add("b", torch.arange(3, dtype=torch.bfloat16).expand(1, 3))
    store = DiskStore(tmp_path / "whole")
    assert "a" in store
    assert "c" not in store
    assert store.get("b").tolist() == [[0, 1, 2]]
    (tmp_path / "whole" / "features.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match="holds no whole vision features"):
        DiskStore(tmp_path / "whole")


def test_models_whose_features_can_not_be_kept(tiny_llava: Loaded) -> None:
    with pytest.raises(ModelError, match=r"machine\.cache_vision does not work .* its vision encoder is not frozen"):
        VisionTap(tiny_llava.model.requires_grad_(True))


def test_words_that_yaml_takes_for_truth_values() -> None:
    raw = {"model": {"path": "m"}, "data": {"train": ["d"]}}
    config = parse_config(raw, ["machine.cache_vision=off", "machine.compile=off"])
    assert (config.machine.cache_vision, config.machine.compile) == ("off", "off")
    assert parse_config(raw, ["machine.compile=on"]).machine.compile == "on"
