"""The run folder: what is up to date, what is done again, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fault_kit import FAULTS, Fault, FileOperations, faulty, forked, operations_of

from striate.config import RunConfig, load_config, parse_config
from striate.errors import ArtifactError
from striate.runs.folder import RunFolder, open_run
from striate.runs.peak_memory import begin_stage_peak, peak_memory_gib, reset_peak_memory, stage_peak_gib
from striate.storage import file_digests, held_folders
from striate.storage.atomic import new_folder, write_text
from striate.storage.fingerprints import fingerprint, fingerprint_of
from striate.wording import gibibytes

CONFIG = parse_config({"model": {"path": "m"}, "data": {"train": ["d"]}})


class Said:
    """A progress that remembers what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    def track(self, label: str, total: int) -> Any:
        raise AssertionError("no bar here")


def opened(path: Path, *overrides: str, overwrite: bool = False) -> RunFolder:
    config = RunConfig.model_validate(parse_config(CONFIG.model_dump(), overrides))
    return open_run(path, config, Said(), command="striate run x", device=lambda: "cpu", overwrite=overwrite)


def run_stage(run: RunFolder, inputs: dict[str, Any], text: str, write: Any = Path.write_text) -> None:
    with run.stage("select", inputs, ["out.txt"]) as stage:
        if stage.stale:
            write(run.path / "out.txt", text)


def refused(*arguments: Any, **more: Any) -> str:
    with pytest.raises(ArtifactError) as caught:
        opened(*arguments, **more)
    return str(caught.value)


def test_new_folder_has_config_and_record(tmp_path: Path) -> None:
    opened(tmp_path / "a" / "run")
    assert sorted(path.name for path in (tmp_path / "a" / "run").iterdir()) == ["config.yaml", "run.json"]
    record = json.loads((tmp_path / "a" / "run" / "run.json").read_text())
    assert (record["seed"], record["device"], record["command"]) == (0, "cpu", "striate run x")
    assert {"torch", "transformers", "peft"} <= record["versions"].keys()
    assert record["stages"] == {}


def test_the_folder_keeps_a_config_without_what_counts_for_one_call(tmp_path: Path) -> None:
    asked = parse_config(CONFIG.model_dump(), ["evaluate.suites=['lm-eval:piqa']", "evaluate.others={a: b}"])
    run = open_run(tmp_path / "run", asked, Said(), command="", device=lambda: "cpu", kept=CONFIG)
    assert run.config == asked
    assert load_config(tmp_path / "run" / "config.yaml") == CONFIG


def test_stage_runs_once(tmp_path: Path) -> None:
    for _ in range(2):
        run = opened(tmp_path / "run")
        run_stage(run, {"a": 1}, "x")
    assert isinstance(run.progress, Said)
    assert run.progress.lines == ["select: up to date"]
    stage = run.record.stages["select"]
    assert (stage.status, stage.key) == ("done", fingerprint_of({"a": 1}))
    assert stage.seconds > 0
    assert stage.peak_memory_gib > 0
    assert stage.outputs == {"out.txt": fingerprint(tmp_path / "run" / "out.txt")}


def test_missing_output_is_made_again(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run_stage(run, {}, "x")
    (run.path / "out.txt").unlink()
    run_stage(run, {}, "x")
    assert (run.path / "out.txt").read_text() == "x"


def test_changed_output_is_refused_then_overwritten(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run_stage(run, {}, "x")
    (run.path / "out.txt").write_text("mine")
    with pytest.raises(ArtifactError) as caught:
        run_stage(run, {}, "x")
    assert f"{run.path / 'out.txt'} was changed after select wrote it" in str(caught.value)
    with pytest.raises(ArtifactError, match="was changed after select wrote it"):
        run.output("select", "out.txt", {})
    assert (run.path / "out.txt").read_text() == "mine"
    run.overwrite = True
    run_stage(run, {}, "x")
    assert (run.path / "out.txt").read_text() == "x"


def test_other_inputs_are_refused_then_overwritten(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run_stage(run, {"a": 1}, "x")
    with pytest.raises(ArtifactError) as caught:
        run_stage(run, {"a": 2}, "y")
    assert str(caught.value) == (
        f"{run.path / 'out.txt'} was made from other inputs than select has now\n"
        "  allowed: a run folder whose stages follow from each other\n"
        "  next:    use --overwrite to do this stage again, or another --out"
    )
    assert (run.path / "out.txt").read_text() == "x"
    run.overwrite = True
    run_stage(run, {"a": 2}, "y")
    assert (run.path / "out.txt").read_text() == "y"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("x")])
def test_failed_stage_is_noted_and_done_again(tmp_path: Path, error: BaseException) -> None:
    run = opened(tmp_path / "run")

    def fail() -> None:
        with run.stage("select", {}, ["out.txt"]):
            (run.path / "out.txt").write_text("half")
            raise error

    with pytest.raises(type(error)):
        fail()
    run = opened(tmp_path / "run")
    assert run.record.stages["select"].status == "failed"
    with pytest.raises(ArtifactError, match=r"has no out.txt yet"):
        run.output("select", "out.txt", {})
    run_stage(run, {}, "whole")
    assert (run.path / "out.txt").read_text() == "whole"


def test_unfinished_work_stays_for_the_same_inputs_only(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    seen: list[bool] = []

    def interrupted(inputs: dict[str, Any]) -> None:
        with run.stage("train", inputs, ["out.txt"], unfinished=["scratch"]):
            seen.append((run.path / "scratch").exists())
            (run.path / "scratch").mkdir(exist_ok=True)
            raise KeyboardInterrupt

    for inputs, overwrite in (({}, False), ({}, False), ({}, True), ({"a": 2}, True)):
        run.overwrite = overwrite
        with pytest.raises(KeyboardInterrupt):
            interrupted(inputs)
    assert seen == [False, True, True, False]


def test_output_before_its_stage(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    with pytest.raises(ArtifactError) as caught:
        run.output("evaluate:start", "eval/start.json", {})
    assert str(caught.value) == (
        f"{run.path} has no eval/start.json yet\n"
        "  allowed: a run folder where `striate evaluate` has run\n"
        "  next:    run `striate evaluate` first"
    )


def test_output_of_other_inputs(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run_stage(run, {"a": 1}, "x")
    assert run.output("select", "out.txt", {"a": 1}) == fingerprint(run.path / "out.txt")
    with pytest.raises(ArtifactError) as caught:
        run.output("select", "out.txt", {"a": 2})
    assert "was made from other inputs than select has now" in str(caught.value)
    assert "run `striate select --overwrite` first" in str(caught.value)


def test_other_config_is_refused_once_something_is_done(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run = opened(tmp_path / "run", "train.lr=1")
    run_stage(run, {}, "x")
    before = (run.path / "config.yaml").read_bytes()
    assert refused(tmp_path / "run", "train.lr=2", "data.train=[e]") == (
        f"{run.path} holds a run of another config: data.train: ('d',) -> ('e',); train.lr: 1.0 -> 2.0\n"
        "  allowed: the same config (machine:, report:, and what evaluate compares may differ)\n"
        "  next:    choose another --out, or use --overwrite to do the stages again that it changes"
    )
    assert (run.path / "config.yaml").read_bytes() == before
    opened(tmp_path / "run", "train.lr=1", "machine.micro_batch=1", "report.title=x")
    assert opened(tmp_path / "run", "train.lr=2", overwrite=True).config.train.lr == 2


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert refused(tmp_path / "mine") == (
        f"{tmp_path / 'mine'} exists and is no run folder\n"
        "  allowed: a new or empty folder, or one that striate made\n  next:    choose another --out"
    )
    assert refused(tmp_path / "mine", overwrite=True)
    assert "exists and is no run folder" in refused(tmp_path / "mine" / "thesis.tex")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_damaged_record_or_config(tmp_path: Path) -> None:
    run = opened(tmp_path / "run")
    run_stage(run, {}, "x")
    (run.path / "config.yaml").rename(run.path / "gone.yaml")
    with pytest.raises(Exception, match=r"can't read .*config\.yaml: No such file"):
        opened(tmp_path / "run")
    (run.path / "run.json").write_text("{")
    assert "run.json is not a RunRecord" in refused(tmp_path / "run")


def test_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    assert "can't write" in refused(tmp_path / "file" / "run")

    def denied(*args: Any, **kwargs: Any) -> Any:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", denied)
    assert f"can't write {tmp_path / 'new'}: Permission denied" in refused(tmp_path / "new")


def test_of_two_that_begin_one_new_folder_the_second_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with mock.patch("striate.runs.folder.hold", side_effect=lambda *_: opened_elsewhere(path)):
        assert f"another striate is at work in {path}" in refused(path)


def opened_elsewhere(path: Path) -> bool:
    """Let another process open the folder, as this one is about to, and keep it until this one has tried."""
    ready, done = os.pipe(), os.pipe()
    if not (child := os.fork()):
        with mock.patch("striate.runs.folder.hold", held_folders.hold):
            held = opened(path)
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(int(held.path != path))
    os.read(ready[0], 1)
    try:
        return held_folders.hold(path, held_folders)
    finally:
        os.write(done[1], b"x")
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("moved", [True, False])
def test_a_folder_that_is_moved_or_removed_comes_back_no_half(tmp_path: Path, moved: bool) -> None:
    run = opened(tmp_path / "run")
    run.path.rename(tmp_path / "elsewhere") if moved else shutil.rmtree(run.path)
    with pytest.raises(ArtifactError) as caught:
        run_stage(run, {}, "x", write_text)
    assert str(caught.value) == (
        f"{run.path} was moved or removed while striate worked in it\n"
        "  allowed: a run folder that stays where it is until striate has ended\n"
        "  next:    move it back and start the same command again, which goes on from the last checkpoint"
    )
    with pytest.raises(ArtifactError, match="was moved or removed"), new_folder(run.path / "checkpoint"):
        pytest.fail("the folder must not be made")
    assert not run.path.exists()


def test_what_a_kill_left_of_the_first_files_is_a_new_folder(tmp_path: Path) -> None:
    """Earlier versions wrote the config before the record."""
    run = opened(tmp_path / "run")
    (run.path / "run.json").unlink()
    (run.path / ".run.json.0123abcd.partial").write_text("{")
    del run
    run = opened(tmp_path / "run", "train.lr=1")
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "run.json"]


def test_a_config_of_a_persons_own_is_not_written_over(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model: {path: m}  # mine\ndata: {train: [d]}\n")
    assert "exists and is no run folder" in refused(tmp_path)
    assert "mine" in config.read_text()


def a_run(path: Path) -> None:
    """A run of two stages, one of which makes a folder."""
    run = opened(path)
    run_stage(run, {}, "x", write_text)
    with run.stage("prune", {}, ["pruned"]) as stage:
        if stage.stale:
            with new_folder(run.path / "pruned") as folder:
                (folder / "model").write_text("weights")


def whole_run(path: Path) -> dict[str, str]:
    measured = r'"(seconds|peak_memory_gib|finished)": ("[^"]*"|[^,]*)'
    files = [file for file in path.rglob("*") if file.is_file()]
    return {str(file.relative_to(path)): re.sub(measured, "", file.read_text()) for file in files}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_operation_costs_nothing(tmp_path: Path, fault: Fault) -> None:
    path, log = tmp_path / "run", tmp_path / "log"
    operations = operations_of(lambda: a_run(path), path, log)
    whole = whole_run(path)
    assert len(operations) > 30
    for at in range(0, len(operations), 5 if fault == "kill" else 11):
        shutil.rmtree(path)
        code = faulty(lambda: a_run(path), FileOperations(path, at, fault), log)
        if code == 1:
            assert "ArtifactError: can't write" in log.read_text(), operations[at]
        assert forked(lambda: a_run(path), log) == 0, (operations[at], log.read_text())
        assert whole_run(path) == whole, operations[at]


def test_fingerprint_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.json").write_text("1")
    first = fingerprint(tmp_path / "a")
    assert first == fingerprint(tmp_path / "a")
    (tmp_path / "a" / "x.json").write_text("2")
    second = fingerprint(tmp_path / "a")
    (tmp_path / "a" / "x.json").rename(tmp_path / "a" / "y.json")
    assert len({first, second, fingerprint(tmp_path / "a")}) == 3
    with pytest.raises(ArtifactError, match=r"can't read .*: No such file"):
        fingerprint(tmp_path / "none")


def test_fingerprint_sees_shards_that_an_index_names_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "1.safetensors").write_text("1")
    without = fingerprint(tmp_path)
    names = {"weight_map": {"a": "shards/1.safetensors", "b": "../../etc/x.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(names))
    before = fingerprint(tmp_path)
    (tmp_path / "shards" / "1.safetensors").write_text("2")
    assert len({without, before, fingerprint(tmp_path)}) == 3
    for damaged in ("", "[]", '{"weight_map": [1]}', "[" * 10**5):
        (tmp_path / "model.safetensors.index.json").write_text(damaged)
        fingerprint(tmp_path)


@pytest.fixture
def reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read for their digests."""
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    seen: list[str] = []
    digest = file_digests.digest_of
    monkeypatch.setattr(file_digests, "digest_of", lambda file: (seen.append(file.name), digest(file))[1])
    return seen


def aged(path: Path, content: bytes) -> Path:
    """Return `path`, written long enough ago that a change shows in its times."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    time.sleep(0.12)
    return path


def test_only_what_changed_is_read_again(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = tmp_path / "m" / "large.safetensors", tmp_path / "m" / "small.json"
    aged(large, bytes(9 * 2**20))
    aged(small, b"1")
    first = fingerprint(tmp_path / "m")
    # Another process knows what this one noted.
    monkeypatch.setattr(file_digests, "_known", {})
    assert fingerprint(tmp_path / "m") == first
    assert sorted(reads) == ["large.safetensors", "small.json"]
    status = large.stat()
    with large.open("r+b") as stream:
        stream.seek(4 * 2**20 + 7)
        stream.write(b"x")
    # Its times set back do not hide the change.
    os.utime(large, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert fingerprint(tmp_path / "m") != first
    assert reads.count("large.safetensors") == 2
    assert reads.count("small.json") == 1


def test_a_file_that_was_just_written_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    for content in (b"1", b"2"):
        (tmp_path / "x.json").write_bytes(content)
        seen = {fingerprint(tmp_path / "x.json") for _ in range(2)}
        assert len(seen) == 1
    assert len(reads) == 4


@pytest.mark.parametrize("damage", [b"", b"x\n{}", b"\xff"])
def test_digests_that_are_damaged_are_made_again(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    aged(tmp_path / "m" / "large.safetensors", bytes(9 * 2**20))
    first = fingerprint(tmp_path / "m")
    (noted,) = (tmp_path / "cache" / "digests").iterdir()
    noted.write_bytes(damage or noted.read_bytes().replace(b"0", b"1"))
    monkeypatch.setattr(file_digests, "_known", {})
    assert fingerprint(tmp_path / "m") == first
    assert len(reads) == 2


def test_fingerprint_of_values_ignores_order() -> None:
    assert fingerprint_of({"a": 1, "b": [2]}) == fingerprint_of({"b": [2], "a": 1})
    assert fingerprint_of({"a": 1}) != fingerprint_of({"a": 2})


def held(mebibytes: int) -> None:
    """Take memory and write into every page of it, then give it back."""
    taken = bytearray(mebibytes * 2**20)
    taken[::4096] = b"1" * len(taken[::4096])


def test_peak_memory_is_that_of_its_own_stage() -> None:
    begin_stage_peak("cpu")
    before = stage_peak_gib("cpu")
    held(200)
    # A model's own peak is reset within the stage, whose peak that does not lower.
    reset_peak_memory("cpu")
    assert peak_memory_gib("cpu") < before + 0.1
    assert stage_peak_gib("cpu") > before + 0.18
    begin_stage_peak("cpu")
    assert stage_peak_gib("cpu") < before + 0.1


def test_a_peak_that_can_not_be_reset_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", refused)
        begin_stage_peak("cpu")
        assert (peak_memory_gib("cpu"), stage_peak_gib("cpu"), gibibytes(0)) == (0, 0, "–")
    begin_stage_peak("cpu")
