"""Cached vision features: the same losses and weights as with pictures, one pass of the encoder, what is refused."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import resource
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from training_kit import Run, Said, losses, runner

from striate.artifacts import Region
from striate.config import LoraSection, MachineSection, TrainSection, parse_config
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Sample
from striate.errors import ArtifactError, DataError, ModelError
from striate.models.interventions.vision_feature_tap import PIXELS, VisionTap
from striate.storage.held_folders import hold
from striate.training.caching.collator import FEATURES
from striate.training.caching.tensor_store import StoredTensors, TensorWriter, check_room, write_once
from striate.training.caching.vision_features import _read_samples, _write_samples, cached_features
from striate.training.caching.vision_pass import VisionPass

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
    machine = MACHINE.model_copy(update={"cache_folder": str(tmp_path / "cache")})
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
    whole = VisionPass.run

    def counted(self: Any, add: Any, *rest: Any) -> Any:
        passes.append(add is not None)
        return whole(self, add, *rest)

    monkeypatch.setattr(VisionPass, "run", counted)
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


# Each two of the three choices meet.
@pytest.mark.parametrize(
    ("method", "packing", "where"),
    [("full", False, "disk"), ("full", True, "memory"), ("lora", False, "memory"), ("lora", True, "disk")],
)
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
    run(other, "cached", config, machine={"cache_vision": where}, progress=progress)
    torch.testing.assert_close(losses(tmp_path / "cached"), losses(tmp_path / "pictures"), rtol=1e-5, atol=1e-5)
    wanted = dict(tiny_llava.model.named_parameters())
    for name, parameter in other.model.named_parameters():
        torch.testing.assert_close(parameter, wanted[name], rtol=1e-3, atol=1e-5, msg=name)
    # The first picture, the others, two to compare, the proof, and for packed rows one row and four samples.
    assert len(calls) <= 2 + 2 + 1 + 5 * packing
    said = "\n".join(progress.said)
    assert "vision features of 12 pictures: about 0.00 GiB" in said
    assert "vision features: 4 samples get the hidden states of their pictures (within" in said


def test_memory_and_disk_hold_the_same_bits(tiny_llava: Loaded, samples: list[Sample], tmp_path: Path) -> None:
    model, collator = tiny_llava.model.requires_grad_(False), Collator(tiny_llava.processor, 96, train=True)
    batches = []
    for where, workers in (("memory", 0), ("memory", 1), ("disk", 1)):
        machine = MACHINE.model_copy(
            update={"cache_vision": where, "cache_folder": str(tmp_path / "cache"), "workers": workers}
        )
        cached = cached_features(model, tiny_llava.processor, samples, collator, machine, half=None, progress=Said())
        assert cached
        batches.append(cached.collator(samples))
    for batch in batches[1:]:
        assert batch.keys() == batches[0].keys()
        assert all(torch.equal(tensor, batches[0][name]) for name, tensor in batch.items())


def test_runs_share_the_disk(run: Run, tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = {"machine": {"cache_vision": "disk"}}
    first, second, changed = (copy.deepcopy(tiny_llava) for _ in range(3))
    progress = Said()
    run(first, "first", **disk, progress=progress)
    [folder] = (tmp_path / "cache").iterdir()
    assert f"vision features written to {folder}" in progress.said
    # The twelve files hold four different pictures.
    assert [tuple(tensor.shape) for tensor in StoredTensors(folder).values()] == 4 * [(1, 4, 16)]
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
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_another_run_wrote_them_first(
    run: Run, tiny_llava: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = {"machine": {"cache_vision": "disk"}}
    run(copy.deepcopy(tiny_llava), "first", **disk)
    [folder] = (tmp_path / "cache").iterdir()
    hidden = folder.rename(tmp_path / "meanwhile")
    original = VisionPass.run

    def late(self: Any, *args: Any) -> Any:
        found = original(self, *args)
        if hidden.exists():
            hidden.rename(folder)
        return found

    monkeypatch.setattr(VisionPass, "run", late)
    run(tiny_llava, "second", **disk)
    assert list((tmp_path / "cache").iterdir()) == [folder]


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


def test_bfloat16_is_cached_in_half_precision_where_that_changes_nothing(
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
    assert item.pictures[FEATURES].dtype == torch.bfloat16
    assert "bfloat16" in progress.said[0]
    assert PIXELS not in item.pictures


def test_a_changed_picture_gets_features_of_its_own(
    run: Run, tiny_llava: Loaded, tmp_path: Path, samples: list[Sample]
) -> None:
    disk = {"machine": {"cache_vision": "disk"}}
    run(copy.deepcopy(tiny_llava), "first", **disk)
    one, two = samples[0].images[0], samples[1].images[0]
    status = one.stat()
    content = two.read_bytes()
    one.write_bytes(content[: status.st_size] + b"\0" * (status.st_size - len(content)))
    os.utime(one, ns=(status.st_atime_ns, status.st_mtime_ns))
    if one.stat().st_size != status.st_size:
        pytest.skip("the pictures have other sizes")
    run(copy.deepcopy(tiny_llava), "second", **disk)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not torch.equal(losses(tmp_path / "second"), losses(tmp_path / "first"))
    one.unlink()
    with pytest.raises(DataError, match=r"sample .*: can't read picture"):
        cached_features(
            tiny_llava.model.requires_grad_(False),
            tiny_llava.processor,
            samples,
            Collator(tiny_llava.processor, 96, train=True),
            MACHINE.model_copy(update=disk["machine"]),
            half=None,
            progress=Said(),
        )


def test_no_room(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"vision features need 1048576\.0 GiB, and the disk of"):
        check_room(2**50, tmp_path / "not" / "there")
    if sys.platform == "linux":
        with pytest.raises(ArtifactError, match=r"and memory has .* GiB free[\s\S]*use machine.cache_vision=disk"):
            check_room(2**50, None)


def test_tensors_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def interrupted(writer: TensorWriter) -> None:
        writer.add("a", torch.ones(2))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_once(tmp_path / "cut", interrupted)
    assert not list(tmp_path.iterdir())
    tensors = {
        "mask": torch.tensor([[True, False, True]]),
        "half": torch.arange(3, dtype=torch.bfloat16).expand(2, 3),
        "number": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "turned": torch.arange(6).view(2, 3).t(),
    }
    folder = tmp_path / "whole"
    assert write_once(folder, lambda writer: [writer.add(*item) for item in tensors.items()])
    assert not write_once(folder, interrupted)
    # As a worker process gets it.
    stored = pickle.loads(pickle.dumps(StoredTensors(folder)))
    assert list(stored) == list(tensors)
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor)


def test_what_one_writes_the_others_wait_for(tmp_path: Path) -> None:
    begun, go, worked = threading.Event(), threading.Event(), []

    def work(writer: TensorWriter) -> None:
        worked.append(1)
        begun.set()
        assert go.wait(30)
        writer.add("a", torch.ones(2))

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(write_once, tmp_path / "one", work)
        assert begun.wait(30)
        others = [pool.submit(write_once, tmp_path / "one", work) for _ in range(2)]
        # Without the lock they would be at work by now.
        assert not wait(others, timeout=0.5).done
        go.set()
        assert [done.result() for done in (first, *others)] == [True, False, False]
    assert worked == [1]


def test_a_lock_that_goes_while_it_is_looked_for_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, gone = os.mkdir, []

    def mkdir(path: Any, *rest: Any, **more: Any) -> None:
        if Path(path).name == ".one.lock" and not gone:
            gone.append(path)
            # It was there, and whoever had it removes it now.
            raise FileExistsError(errno.EEXIST, "File exists", str(path))
        make(path, *rest, **more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    assert write_once(tmp_path / "one", lambda writer: writer.add("a", torch.ones(2)))
    assert gone
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_a_worker_that_outlives_a_failed_pass_keeps_nobody_waiting(tmp_path: Path) -> None:
    workers: list[int] = []

    def fails(writer: TensorWriter) -> None:
        # As a loader's worker process is, which the exception's traceback keeps.
        if not (child := os.fork()):
            time.sleep(60)
            os._exit(0)
        workers.append(child)
        raise ValueError("damaged")

    try:
        with pytest.raises(ValueError, match="damaged"):
            write_once(tmp_path / "one", fails)
        waited: list[int] = []
        assert write_once(tmp_path / "one", lambda writer: writer.add("a", torch.ones(2)), lambda: waited.append(1))
        assert waited == []
        assert [path.name for path in tmp_path.iterdir()] == ["one"]
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)


def test_a_folder_that_this_process_holds_may_have_features_in_it(tmp_path: Path) -> None:
    class Owner:
        """Of the folder."""

    owner = Owner()
    assert hold(tmp_path, owner)
    assert write_once(tmp_path / "one", lambda writer: writer.add("a", torch.ones(2)))


def test_samples_that_share_an_id_have_one_order_in_all_processes(tmp_path: Path, pack_dir: Path) -> None:
    code = """
import sys
from pathlib import Path
from unittest import mock
from striate.config import MachineSection
from striate.data.reading import read_samples
from dataclasses import replace
from striate.training.caching import vision_features

class Seen(Exception):
    pass

def keys(samples):
    print([(sample.id, sample.messages[0].text) for sample in samples])
    raise Seen

samples = [replace(sample, id="same") for sample in read_samples(Path(sys.argv[1]))]
collator = mock.Mock(skips_broken=False)
with mock.patch.object(vision_features, "VisionTap"), mock.patch.object(vision_features, "picture_keys", keys):
    for place in (3, 5):
        try:
            vision_features.cached_features(
                None, None, samples[place:], collator, MachineSection(cache_vision="disk"),
                half=None, progress=None, held_out=samples[:place],
            )
        except Seen:
            pass
"""
    said = {
        line
        for seed in ("0", "1")
        for line in subprocess.run(
            [sys.executable, "-c", code, str(pack_dir)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    }
    assert len(said) == 1


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"can't write .*one: .*\n.*folders all the way to it"):
        write_once(tmp_path / "file" / "one", lambda writer: writer.add("a", torch.ones(2)))


def test_runs_that_hold_out_others_share_one_pass(
    run: Run, tiny_llava: Loaded, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    whole = VisionPass.run

    def counted(self: Any, *rest: Any) -> Any:
        passes.append(len(self.keys))
        return whole(self, *rest)

    monkeypatch.setattr(VisionPass, "run", counted)
    config, disk = FULL.model_copy(update={"max_steps": 1}), {"machine": {"cache_vision": "disk"}}
    for name, first in (("first", 0), ("second", 2)):
        held_out = samples[first : first + 2]
        rest = [sample for sample in samples if sample not in held_out]
        run(copy.deepcopy(tiny_llava), name, config, samples=rest, held_out=held_out, **disk)
    assert passes == [len(samples)]
    # In memory nothing is stored that only another run would want.
    run(tiny_llava, "third", config, samples=rest, held_out=held_out, machine={"cache_vision": "memory"})
    assert passes == [len(samples), len(rest)]


@pytest.mark.parametrize("damage", ["cut", "flipped", "index", "missing", "pipe"])
def test_damaged_folders_are_refused(run: Run, tiny_llava: Loaded, tmp_path: Path, damage: str) -> None:
    disk = {"machine": {"cache_vision": "disk"}}
    run(copy.deepcopy(tiny_llava), "first", **disk)
    [place] = (tmp_path / "cache").iterdir()
    [tokens] = [path for path in place.iterdir() if path.is_dir()]
    for folder in (tokens, place):
        index, data = (folder / "index.txt").read_bytes(), (folder / "tensors.bin").read_bytes()
        if damage == "cut":
            (folder / "tensors.bin").write_bytes(data[:-1])
        elif damage == "flipped":
            middle = len(data) // 2
            (folder / "tensors.bin").write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        elif damage == "index":
            (folder / "index.txt").write_bytes(index.replace(b"float32", b"float64").replace(b"int64", b"int32"))
        else:
            (folder / "tensors.bin").unlink()
            if damage == "pipe":
                os.mkfifo(folder / "tensors.bin")
        with pytest.raises(
            ArtifactError, match=rf"{folder.name} holds no whole tensors: .*\n.*machine.cache_vision=disk"
        ):
            run(copy.deepcopy(tiny_llava), "second", **disk)
        (folder / "index.txt").write_bytes(index)
        (folder / "tensors.bin").unlink(missing_ok=True)
        (folder / "tensors.bin").write_bytes(data)


def test_samples_come_back_as_they_were(tiny_llava: Loaded, samples: list[Sample], tmp_path: Path) -> None:
    items = Collator(tiny_llava.processor, 96, train=True).encode_each(samples)
    # Masks of pixels are as large as the pictures, and not every sample has one.
    for index, item in enumerate(items[:-1]):
        item.pictures["pixel_attention_mask"] = torch.ones(1, 2, index + 1, 3, dtype=torch.bool)
    write_once(tmp_path / "tokens", lambda writer: _write_samples(writer, items))
    for found, item in zip(_read_samples(tmp_path / "tokens", len(items)), items, strict=True):
        assert found.tokens.keys() == item.tokens.keys()
        assert found.pictures.keys() == item.pictures.keys()
        assert all(torch.equal(tensor, item.tokens[name]) for name, tensor in found.tokens.items())
        assert all(torch.equal(tensor, item.pictures[name]) for name, tensor in found.pictures.items())


def test_models_whose_features_can_not_be_cached(tiny_llava: Loaded) -> None:
    with pytest.raises(ModelError, match=r"machine\.cache_vision does not work .* its vision encoder is not frozen"):
        VisionTap(tiny_llava.model.requires_grad_(True))


def test_words_that_yaml_takes_for_truth_values() -> None:
    raw = {"model": {"path": "m"}, "data": {"train": ["d"]}}
    config = parse_config(raw, ["machine.cache_vision=off", "machine.compile=off"])
    assert (config.machine.cache_vision, config.machine.compile) == ("off", "off")
    assert parse_config(raw, ["machine.compile=on"]).machine.compile == "on"
