"""What the README, the docs and the shipped configs tell people to type is typed here, on a tiny model and pack."""

from __future__ import annotations

import importlib.util
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_kit import write_encoder, write_llm
from documented_commands import ROOT, Shown, named_options, python_blocks, shown_commands
from original_kit import CLIP, LLAVA, SIGLIP, whole_weights, write_base, write_lora, write_original, write_tower
from places_here import Here
from typer.main import get_command
from typer.testing import CliRunner

from striate.cli import app
from striate.errors import StriateError
from striate.pipeline.sweeps import sweep
from striate.pipeline.trials import prune_trials

COMMANDS = shown_commands()
PYTHON = python_blocks()
VERBS: dict[str, Any] = get_command(app).commands
SCORERS = ["block-influence", "modality-block-influence", "image-attention", "knock-out"]

# What stands here for the reader's own things.
PLACES = {
    "MODEL": "model",
    "PACK": "pack",
    "[PACK]": "[pack]",
    "[trees]": "[pack]",
    "RUN": "run",
    "striate-quickstart": "run",
    "photo.png": "pack/images/square_00.png",
    "a.png": "pack/images/square_00.png",
    "b.png": "pack/images/square_01.png",
    "run.yaml": "RUN.yaml",
    "SOURCE": "original",
    "CLIP": "clip",
    "VISION_TOWER": "clip",
    "X": "encoder",
    "Y": "llm",
    "/data/features": "features",
    "llava-hf/llava-1.5-7b-hf": "model",
    "google/siglip-so400m-patch14-384": "encoder",
    "Qwen/Qwen3-1.7B": "llm",
}
# Where a command's word means something else than elsewhere.
PLACES_IN = {
    "striate import SOURCE --base LANGUAGE_MODEL --vision VISION_TOWER --out DIR": {
        "SOURCE": "lora",
        "LANGUAGE_MODEL": "base",
        "VISION_TOWER": "siglip",
    },
    "striate merge ADAPTER --base FOLDER --out DIR": {"ADAPTER": "run/checkpoint", "FOLDER": "model"},
}
# What makes a measurement short; a tiny model has no time worth more.
SHORT = {"bench": ("--prompt-tokens", "24", "--new-tokens", "2", "--repeats", "1")}
# What makes a shipped config small.
REDUCED = {
    "model.path": "model",
    "data.train": "[pack]",
    "data.calibration": "[pack]",
    "evaluate.packs": "[pack]",
    "evaluate.limit": "2",
    "evaluate.bootstrap": "100",
    "analyze.samples": "2",
    "analyze.pairs": "2",
    "prune.samples": "4",
    "train.max_steps": "1",
    "train.batch_size": "2",
    "machine.micro_batch": "2",
    "machine.pack_tokens": "256",
    "machine.workers": "0",
    "machine.device": "cpu",
    "machine.dtype": "float32",
}
# Scorers of picture pairs want a model that tells pictures apart.
REDUCED_TOO = {"configs/function-map.yaml": {"analyze.scorers": "[image-attention, knock-out, knock-out-accuracy]"}}
# Commands that can't be run here, and why; they are parsed all the same.
NOT_RUN = {
    "striate run RUN.yaml --set machine.log_to='[tensorboard, wandb]'": "needs TensorBoard and W&B",
    "striate quickstart": "fetches public weights and questions; .ci/run types it",
    "striate run run.yaml --set train.method=qlora": "needs bitsandbytes and a CUDA device",
    "striate run RUN.yaml --set train.optimizer=adamw-8bit": "needs bitsandbytes and a CUDA device",
}
NOT_RUN["striate demo RUN"] = "serves until it is stopped; test_demo_page.py types it"
NOT_RUN |= dict.fromkeys(
    (
        "striate push RUN user/name",
        "striate push RUN user/my-lvlm --private",
        "striate push RUN user/my-lvlm --model tuned --base-model user/its-base",
        "striate push DIR user/my-lvlm --license apache-2.0 --overwrite",
    ),
    "publishes on the hub; test_push_verb.py types it to a stand-in",
)
NOT_RUN |= {
    f"striate sweep SWEEP.yaml --out /shared/sweep --on {where}": f"needs a cluster; {test} has one"
    for where, test in (("ray", "test_sweep.py"), ("slurm", "test_slurm_sweep.py"))
}
NOT_RUN["striate sweep configs/study/reduced.yaml --out study"] = "hours; test_sweep.py runs it small"
NOT_RUN["striate sweep configs/study/photos.yaml --out study"] = (
    "needs a model that a GPU aligns; test_study.py reads its plan"
)
NOT_RUN["striate sweep configs/study/regions.yaml --out study"] = "half an hour of a GPU; test_study.py reads its plan"
NOT_RUN["striate sweep configs/study/sizes.yaml --out sizes"] = "half an hour of a GPU; test_study.py reads its plan"
NOT_RUN["striate sweep configs/study/closer-modes.yaml --out closer"] = "minutes of a GPU; test_study.py reads its plan"
NOT_RUN["striate sweep configs/study/fast-modes.yaml --out modes"] = "minutes of a GPU; test_study.py reads its plan"
NOT_RUN["striate run configs/study/align.yaml --out aligned-b"] = (
    "a second language model, on a GPU; test_study.py reads its config"
)
# Commands that end with an error of their own here, and a part of what it says.
ENDS_WITH = {
    "striate evaluate --out striate-quickstart --gate 'visual>=95,language-reference>=90'": (
        "nothing called 'language-reference' is measured"
    ),
    "striate evaluate --out run --suite lm-eval:arc_easy,piqa": "pip install 'striate[lm-eval]'",
    "striate evaluate --out run --suite lm-eval:arc_easy,hellaswag --suite lmms-eval:mme": "pip install 'striate[",
}


def test_all_commands_are_found() -> None:
    lines = {shown.line for shown in COMMANDS}
    assert set(NOT_RUN) | set(ENDS_WITH) | set(PLACES_IN) <= lines
    assert {shown.arguments[0] for shown in COMMANDS} >= set(VERBS) - {"version", "prune"}
    assert "striate inspect MODEL --region uniform:25%" in lines
    assert len(PYTHON) >= 8


def test_every_command_parses() -> None:
    for shown in COMMANDS:
        verb, *rest = shown.arguments
        assert verb in VERBS, shown
        try:
            VERBS[verb].make_context(verb, rest)
        except Exception as error:
            raise AssertionError(f"{', '.join(shown.pages)} tell to type: {shown.line}") from error


def test_verbs_and_options_that_running_text_names_exist() -> None:
    for page, verb, option in named_options():
        assert verb in VERBS, f"{page} names `striate {verb}`"
        known = {name for parameter in VERBS[verb].params for name in parameter.opts}
        assert not option or option in known, f"{page} names {option} of `striate {verb}`"


def _call(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory, saved_pack: Path, llava_builder: Callable[..., Any]) -> Path:
    """A folder with all that the commands name: models, a pack, configs, a finished run."""
    folder = tmp_path_factory.mktemp("reader")
    loaded = llava_builder(num_layers=8)
    loaded.model.save_pretrained(folder / "model")
    loaded.processor.save_pretrained(folder / "model")
    shutil.copytree(saved_pack, folder / "pack")
    _write_photos(saved_pack, folder / "photos")
    shutil.copytree(ROOT / "configs", folder / "configs")
    write_encoder(folder / "encoder", "siglip")
    write_llm(folder / "llm", "llama")
    write_tower(folder / "clip", CLIP)
    write_original(folder / "original", LLAVA, whole_weights(LLAVA))
    write_tower(folder / "siglip", SIGLIP)
    write_base(folder / "base")
    write_lora(folder / "lora", base="base")
    raw = {
        "model": {"path": str(folder / "model")},
        "data": {"train": [str(folder / "pack")]},
        "analyze": {"samples": 4, "scorers": SCORERS, "by": "task"},
        "train": {"lr": 1e-2, "batch_size": 2, "max_steps": 1, "lora": {"r": 2, "alpha": 4}},
        # What takes least time; the shipped configs prune by the defaults.
        "prune": {"remove": 1, "scorer": "modality-block-influence", "compensate": "none"},
        "evaluate": {"packs": [str(folder / "pack")], "limit": 4, "max_new_tokens": 2, "bootstrap": 100},
        "machine": {"micro_batch": 2, "device": "cpu"},
    }
    (folder / "RUN.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    (folder / "SWEEP.yaml").write_text("{base: RUN.yaml, grid: {train.lr: [0.01]}}", encoding="utf-8")
    done = _call("run", str(folder / "RUN.yaml"), "--out", str(folder / "run"))
    assert done.exit_code == 0, done.output
    for name in ("other", "run-a", "run-b", "runs/map", "runs/a"):
        shutil.copytree(folder / "run", folder / name)
    return folder


def _write_photos(pack: Path, folder: Path) -> None:
    """Write photos with a table of their names and labels."""
    shutil.copytree(pack / "images", folder / "2026")
    names = [f"2026/{picture.name}" for picture in sorted((pack / "images").iterdir())]
    rows = "".join(f"{name},{('oak', 'beech')[number % 2]}\n" for number, name in enumerate(names))
    (folder / "labels.csv").write_text(f"file,label\n{rows}", encoding="utf-8")


@pytest.fixture
def readers_folder(reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, as `reader` is, which is the current one."""
    folder = Path(shutil.copytree(reader, tmp_path / "reader"))
    monkeypatch.chdir(folder)
    for name, value in {"PROMPT_TOKENS": 24, "NEW_TOKENS": 2, "REPEATS": 1}.items():
        monkeypatch.setattr(prune_trials, name, value)
    monkeypatch.setattr(sweep, "_places", lambda *_: Here())
    return folder


def _typed(shown: Shown) -> list[str]:
    """Return a command's arguments with what stands here for the reader's own things, small where a config is not."""
    places = {**PLACES, **PLACES_IN.get(shown.line, {})}
    arguments = []
    for word in shown.arguments:
        key, sign, value = word.partition("=")
        arguments.append(f"{key}={places.get(value, value)}" if sign else places.get(word, word))
    arguments += SHORT.get(arguments[0], ())
    shipped_runs = [word for word in shown.arguments if word.startswith("configs/") and arguments[0] != "sweep"]
    for shipped in shipped_runs:
        for key, value in {**REDUCED, **REDUCED_TOO.get(shipped, {})}.items():
            arguments += ["--set", f"{key}={value}"]
    return arguments


@pytest.mark.parametrize(
    "shown", [shown for shown in COMMANDS if shown.line not in NOT_RUN], ids=lambda shown: shown.line
)
def test_every_command_runs(shown: Shown, readers_folder: Path) -> None:
    arguments = _typed(shown)
    out = arguments[arguments.index("--out") + 1] if "--out" in arguments else ""
    if any(word.endswith(".yaml") for word in arguments):
        shutil.rmtree(out or "run", ignore_errors=True)
    done = _call(*arguments)
    # What is piped is plain text.
    assert "\x1b" not in done.output
    if shown.line in ENDS_WITH:
        assert (done.exit_code, ENDS_WITH[shown.line] in done.output) == (1, True), done.output
    else:
        assert done.exit_code == 0, f"{done.output}\n{done.exception!r}"
        assert not out or Path(out).exists(), f"{out} was not made"


# What stands in Python blocks for the reader's own things.
PYTHON_PLACES = {'"llava-hf/llava-1.5-7b-hf"': '"model"', '"PACK"': '"pack"', '"calibration"': '"pack"'}
PYTHON_PLACES |= {'"runs/my-run"': '"run"', '"DIR"': '"model"'}


class _Trainer:
    """A trainer of another package: it remembers what it was given."""

    def __init__(self, model: Any, args: Any, **given: Any) -> None:
        self.model, self.given = model, given

    def train(self) -> None:
        """Count what would train."""
        assert any(tensor.requires_grad for tensor in self.model.parameters())


@pytest.mark.parametrize(("page", "body"), PYTHON, ids=[f"{page}-{place}" for place, (page, _) in enumerate(PYTHON)])
def test_every_python_block_runs(page: str, body: str, readers_folder: Path) -> None:
    import striate
    from striate.scorers.streaming.view import LayerView, Tally

    for theirs, ours in PYTHON_PLACES.items():
        body = body.replace(theirs, ours)
    loaded = striate.load_model("model")
    names = {"striate": striate, "Path": Path, "model": loaded.model, "processor": loaded.processor, "args": None}
    names |= {"SFTTrainer": _Trainer, "Trainer": _Trainer, "dataset": [], "collator": None}
    names |= {"LayerView": LayerView, "Tally": Tally, "math": math}
    if "run_suites" in body and importlib.util.find_spec("lm_eval") is None:
        with pytest.raises(StriateError, match=r"pip install 'striate\[lm-eval\]'"):
            exec(body, names)
        return
    exec(body, names)
