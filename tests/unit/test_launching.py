"""Shipped launcher configs are ones that Accelerate reads; verbs say where they can't be launched; folders are held."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from striate.cli import app
from striate.errors import ArtifactError
from striate.storage.held_folders import hold

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
KINDS = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "zero3": "DEEPSPEED"}
HOLDER = "import sys, pathlib\nfrom striate.storage.held_folders import hold\nowner = pathlib.Path\n"
HOLDER += "class Owner: pass\none = Owner(); hold(pathlib.Path(sys.argv[1]), one); print('held', flush=True); input()"
# The child is what a data worker is: it is left behind where its parent is killed. It tells its number itself: by then
# it has let go of what the fork gave it.
FORKER = HOLDER.replace(
    "print('held', flush=True)",
    "import os, time\nif not os.fork(): print(os.getpid(), flush=True); time.sleep(60); os._exit(0)\nNone",
)


class Owner:
    """Something that uses a run folder."""


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_reads_the_config(name: str) -> None:
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    path = CONFIGS / f"{name}.yaml"
    config: Any = load_config_from_file(str(path))
    assert str(config.distributed_type).endswith(KINDS[name])
    known = vars(launch_command_parser().parse_args(["x"]))
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    inner = {**raw.get("fsdp_config", {}), **raw.get("deepspeed_config", {})}
    assert set(inner) <= set(known)
    assert f"configs/accelerate/{name}.yaml" in path.read_text(encoding="utf-8")


def test_all_configs_are_known() -> None:
    assert {path.stem for path in CONFIGS.iterdir()} == set(KINDS)


@pytest.mark.parametrize("verb", ["analyze", "select", "prune", "evaluate"])
def test_other_verbs_are_for_one_process(verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "RUN.yaml"
    config.write_text("model: {path: m}\ndata: {train: [d]}\n", encoding="utf-8")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = CliRunner().invoke(app, [verb, str(config), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert "a launcher started this verb on 2 processes" in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is held there")
def test_a_run_folder_is_held_by_one_process(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "held\n"
    one, two = Owner(), Owner()
    with pytest.raises(ArtifactError, match="another striate is at work in"):
        hold(tmp_path, one)
    other.communicate("\n")
    hold(tmp_path, one)
    hold(tmp_path, two)
    del one
    with_two = subprocess.run(
        [sys.executable, "-c", HOLDER, str(tmp_path)], input="\n", capture_output=True, text=True, check=False
    )
    assert "another striate is at work" in with_two.stderr
    del two
    free = subprocess.run(
        [sys.executable, "-c", HOLDER, str(tmp_path)], input="\n", capture_output=True, text=True, check=False
    )
    assert free.stdout == "held\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "the environment has WORLD_SIZE='abc'\n  allowed: a whole number from 1\n"),
        ({"WORLD_SIZE": "0"}, "the environment has WORLD_SIZE='0'"),
        ({"WORLD_SIZE": "-2"}, "the environment has WORLD_SIZE='-2'"),
        ({"WORLD_SIZE": ""}, "the environment has WORLD_SIZE=''"),
        ({"WORLD_SIZE": "9" * 5000}, "the environment has WORLD_SIZE='9999"),
        ({"WORLD_SIZE": "2", "RANK": "x\x1b[1m"}, r"the environment has RANK='x\x1b[1m'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "the environment has RANK='2'\n  allowed: a whole number from 0 to 1\n"),
        ({"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "one"}, "the environment has LOCAL_RANK='one'"),
        ({"LOCAL_RANK": "one"}, "the environment has LOCAL_RANK='one'"),
        ({"LOCAL_RANK": "0"}, "the environment has LOCAL_RANK='0'\n  allowed: no such variable where there"),
        ({"ACCELERATE_USE_FSDP": "abc"}, "the environment has ACCELERATE_USE_FSDP='abc'\n  allowed: true, false, 1, 0"),
    ],
)
def test_what_a_launcher_says_is_read_or_refused(
    variables: dict[str, str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "RUN.yaml"
    config.write_text("model: {path: m}\ndata: {train: [d]}\n", encoding="utf-8")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    result = CliRunner().invoke(app, ["train", str(config), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: {said}")


def test_the_launchers_words_are_one_place() -> None:
    from striate.storage.launcher import Launch, launch

    assert launch() == Launch()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
            patch.setenv(name, value)
        assert launch() == Launch(3, 1, 4)


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is held there")
def test_a_killed_process_holds_no_folder_by_its_children(tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", FORKER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    child = int(parent.stdout.readline().split()[0])
    parent.kill()
    parent.wait()
    try:
        os.kill(child, 0)
        owner = Owner()
        assert hold(tmp_path, owner)
    finally:
        os.kill(child, signal.SIGKILL)
