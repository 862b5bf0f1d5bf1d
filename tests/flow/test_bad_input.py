"""Everything a person can get wrong, through the real command line: exit code 1, the text, nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from striate.cli import app
from striate.training.checkpointing.checkpoints import COMPLETE, WEIGHTS
from striate.training.trainer import RegionTrainer

Prepare = Callable[["Place"], Any]


@dataclass
class Place:
    """Where a case plays: a model, a pack and RUN.yaml of its own, and the run folder that it asks for."""

    root: Path
    model: Path
    pack: Path
    config: Path
    monkeypatch: pytest.MonkeyPatch

    @property
    def out(self) -> Path:
        return self.root / "out"

    def train_rows(self, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        rows = json.loads((self.pack / "train.json").read_text())
        change(rows)
        (self.pack / "train.json").write_text(json.dumps(rows, indent=1))

    def test_row(self, **keys: Any) -> None:
        lines = (self.pack / "test.jsonl").read_text().splitlines()
        lines[1] = json.dumps({**json.loads(lines[1]), **keys})
        (self.pack / "test.jsonl").write_text("\n".join(lines) + "\n")

    def truncate(self, name: str, share: float) -> None:
        content = (self.pack / name).read_bytes()
        (self.pack / name).write_bytes(content[: int(len(content) * share)])


@dataclass
class Case:
    """One mistake: what the person sets or types, what they did before, and the text that must answer it."""

    name: str
    text: str
    settings: tuple[str, ...] = ()
    prepare: Prepare | None = None
    command: tuple[str, ...] = ("run", "CONFIG", "--out", "OUT")
    left: tuple[str, ...] = field(default=("config.yaml", "run.json"))
    more: tuple[str, ...] = ()


NOTHING: tuple[str, ...] = ()
STARTED = ("config.yaml", "run.json")
ANALYZED = (*STARTED, "scores.json")
SELECTED = (*ANALYZED, "region.json")
CHECK = ("check", "CONFIG")
STAGE: dict[str, Any] = {"command": ("select", "CONFIG", "--out", "OUT"), "left": STARTED}


def _text_only(place: Place) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    shutil.rmtree(place.model)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=16, **sizes)).save_pretrained(place.model)


def _full_disk(place: Place) -> None:
    original = Path.write_bytes

    def write(self: Path, *args: Any, **more: Any) -> int:
        if self.name.startswith(".scores.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, *args, **more)

    place.monkeypatch.setattr(Path, "write_bytes", write)


def _full_disk_at_checkpoint(place: Place) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    place.monkeypatch.setattr("peft.PeftModel.save_pretrained", save)


def _not_a_number(place: Place) -> None:
    original = RegionTrainer.compute_loss

    def loss(self: RegionTrainer, *args: Any, **more: Any) -> Any:
        found = original(self, *args, **more)
        return found * float("nan") if self.state.global_step == 2 else found

    place.monkeypatch.setattr(RegionTrainer, "compute_loss", loss)


def _run_of_another_config(place: Place) -> None:
    done = CliRunner().invoke(app, ["select", str(place.config), "--out", str(place.out)])
    assert done.exit_code == 0, done.output


def _foreign_folder(place: Place) -> None:
    place.out.mkdir()
    (place.out / "thesis.tex").write_text("mine")


def _file_in_the_way(place: Place) -> None:
    place.out.write_text("mine")


def _parent_is_a_file(place: Place) -> None:
    (place.root / "file").write_text("x")


def _leaving_link(place: Place) -> None:
    outside = place.root / "secret.png"
    shutil.copy(place.pack / "images" / "square_00.png", outside)
    (place.pack / "images" / "square_00.png").unlink()
    (place.pack / "images" / "square_00.png").symlink_to(outside)


def _set(**keys: Any) -> Prepare:
    """Return a preparation that changes the first training sample."""
    return lambda place: place.train_rows(lambda rows: rows[0].update(keys))


def _turns(*pairs: tuple[str, str]) -> Prepare:
    """Return a preparation that gives the first training sample these turns."""
    return _set(conversations=[{"from": speaker, "value": text} for speaker, text in pairs])


def _corrupt(place: Place) -> None:
    place.truncate("images/square_00.png", 0.5)


def _line_of_pixels(place: Place) -> None:
    Image.new("1", (1, 20_000)).save(place.pack / "images" / "square_00.png")


UNTIL_HELD = ("prune.remove=1", "prune.until='visual>=9'", "prune.until_packs=['ROOT/held']")


def _held(place: Place, change: Callable[[], Any]) -> None:
    """Put a changed copy of the pack beside it, which itself stays whole."""
    shutil.copytree(place.pack, place.root / "whole")
    change()
    place.pack.rename(place.root / "held")
    (place.root / "whole").rename(place.pack)


def _long(place: Place) -> None:
    turns = [{"from": "human", "value": "is " * 300}, {"from": "gpt", "value": "yes"}]
    (place.root / "long.json").write_text(json.dumps([{"id": "long", "conversations": turns}]), encoding="utf-8")


REGION: dict[str, Any] = {"left": STARTED}
CASES = [
    # region SPECs
    Case("unknown selector", "region 'unifrom:2': unknown selector 'unifrom'", ("select.region=unifrom:2",), **REGION,
         more=("did you mean 'uniform'? see `striate ls selectors`",)),
    Case("bare number", "did you mean 'uniform:8'?", ("select.region='8'",), **REGION),
    Case("ratio of zero", "region 'uniform:0%': 0% is no layer at all", ("select.region=uniform:0%",), **REGION),
    Case("ratio above one", "region 'uniform:120%': 120% is more than all layers", ("select.region=uniform:120%",),
         **REGION),
    Case("more layers than there are", "5 layers asked of a model with 4 layers", ("select.region=top:5",), **REGION),
    Case("layer out of range", "region 'ids:0,4' names layer 4, but the model has 4 layers\n  allowed: layers 0 to 3",
         ("select.region=ids:0,4",), **REGION),
    Case("very long SPEC", "has layers out of order or twice", (f"select.region=ids:{'1,' * 200}1",), **REGION),
    Case("layer twice", "has layers out of order or twice: [1, 1]", ("select.region=ids:1,1",), **REGION),
    Case("bad seed", "random:2@seedx", ("select.region=random:2@seedx",), **REGION),
    Case("region file that is missing", "can't read none/region.json: No such file or directory",
         ("select.region=none/region.json",), **REGION),
    Case("published list on another depth", "region 'paper:", ("select.region=paper:uniform",), **REGION),
    Case("scorer that was not run", "needs scores of 'angular-distance', and analyze.scorers does not name it",
         ("select.region=scores:angular-distance:2",), left=STARTED, more=("add 'angular-distance' to analyze.sc",)),
    Case("scores before analyze", "has no scores.json yet\n  allowed: a run folder where `striate analyze` has run",
         ("select.region=scores:block-influence:2",), **STAGE),
    Case("empty region, no adapter", "region 'none' gives LoRA no linear layer to adapt", ("select.region=none",),
         more=("the projector alone trains with train.projector=lora, or train.method=full",)),
    Case("empty region, no adapter, checked", "region 'none' gives LoRA no linear layer", ("select.region=none",),
         command=CHECK, left=NOTHING),
    Case("half precision on a CPU", "float16 does not train on the CPU", ("machine.dtype=float16",)),
    Case("half precision on a CPU, checked", "float16 does not train on the CPU", ("machine.dtype=float16",),
         command=CHECK, left=NOTHING),
    Case("a thousand workers", "machine.workers", ("machine.workers=1000",), command=CHECK, left=NOTHING),
    Case("a gate of what is not measured", "nothing called 'x' is measured", ("evaluate.gate='x>=99'",),
         command=CHECK, left=NOTHING, more=("fix evaluate.gate",)),
    Case("healing of layers that will be gone", "region 'ids:3' names layer 3, but the model has 3 layers",
         ("prune.remove=1", "heal.steps=1", "heal.region='ids:3'"), left=STARTED),
    Case("healing of layers that may be gone, checked", "region 'ids:2' names layer 2, but the model has 2 layers",
         ("prune.remove=2", "prune.until='visual>=1'", "heal.steps=1", "heal.region='ids:2'"), command=CHECK,
         left=NOTHING),
    Case("healing of no layers, checked", "region 'none' gives LoRA no linear layer",
         ("prune.remove=1", "heal.steps=1", "heal.region=none"), command=CHECK, left=NOTHING),
    Case("healing of layers without image tokens, checked", "heal.region 'all' has layers that compute no image tokens",
         ("prune.remove=1", "heal.steps=1", "heal.region=all", "train.image_tokens=region"), command=CHECK,
         left=NOTHING),
    Case("healing by a region that is missing, checked", "can't read none/region.json: No such file or directory",
         ("prune.remove=1", "heal.steps=1", "heal.region=none/region.json"), command=CHECK, left=NOTHING),
    Case("a bound of what is not measured", "nothing called 'x' is measured", ("prune.remove=1", "prune.until='x>=9'"),
         command=CHECK, left=NOTHING, more=("fix prune.until",)),
    Case("bounds on two packs of one name, checked", "two test packs are called 'pack'",
         ("prune.remove=1", "prune.until='visual>=9'", "prune.until_packs=['ROOT/pack', 'ROOT/pack']"), command=CHECK,
         left=NOTHING),
    Case("bounds on a pack with a damaged picture, checked", "can't read picture ROOT/held/images/square_00.png",
         UNTIL_HELD, prepare=lambda place: _held(place, lambda: _corrupt(place)), command=CHECK, left=NOTHING),
    Case("bounds on a question that is too long, checked", "'far' does not fit: ", UNTIL_HELD, command=CHECK,
         prepare=lambda place: _held(place, lambda: place.test_row(id="far", question="is " * 3000)),
         left=NOTHING),
    Case("calibration that is too long, checked", "does not fit: ", ("data.calibration=['ROOT/long.json']",
         "train.max_length=64", "analyze.scorers=[block-influence]", "prune.scorer=block-influence"), prepare=_long,
         command=CHECK, left=NOTHING),
    Case("held-out samples that are too long, checked", "does not fit: ", ("data.validate='ROOT/long.json'",
         "train.max_length=64"), prepare=_long, command=CHECK, left=NOTHING),
    Case("text of healing that is too long, checked", "does not fit: ", ("heal.text_data=['ROOT/long.json']",
         "heal.text=0.9", "heal.share=1.0", "prune.remove=1", "train.max_length=64"), prepare=_long, command=CHECK,
         left=NOTHING),
    Case("a metric of no held-out sample, checked", "is text_loss, and of 3 held-out samples 3 have a picture",
         ("data.validate=10%", "train.metric_for_best_model=text_loss"), command=CHECK, left=NOTHING),
    Case("held-out samples that are not built in, checked", "unknown built-in pack 'builtin:x'",
         ("data.validate='builtin:x'",), command=CHECK, left=NOTHING),
    Case("empty region, nothing to train", "nothing to train",
         ("select.region=none", "train.projector=frozen", "train.method=full"), left=SELECTED),
    # names
    Case("unknown scorer", "unknown scorer 'block-influense'\n  allowed: block-influence, ",
         ("analyze.scorers=[block-influense]", "prune.remove=0"),
         more=("did you mean 'block-influence'? see `striate ls scorers`",)),
    Case("unknown metric", "test.jsonl:2: unknown metric 'exakt'\n  allowed: exact, normalised, ",
         prepare=lambda place: place.test_row(metric="exakt"), command=CHECK, left=NOTHING,
         more=("did you mean 'exact'? fix that line",)),
    Case("unknown pack", "unknown built-in pack 'builtin:easy-vqua'\n  allowed: builtin:easy-vqa, ",
         ("evaluate.packs=['builtin:easy-vqua']",), left=NOTHING,
         more=("did you mean 'easy-vqa'? or give a folder",)),
    Case("unknown pack, checked", "unknown built-in pack 'builtin:easy-vqua'",
         ("evaluate.packs=['builtin:easy-vqua']",), command=CHECK, left=NOTHING),
    Case("unknown list", "unknown list 'scorer'\n  allowed: scorers, selectors, tasks, families", left=NOTHING,
         command=("ls", "scorer"), more=("did you mean 'scorers'?",)),
    Case("unknown device", "unknown device 'cuda:x'", ("machine.device='cuda:x'",), left=NOTHING),
    # config
    Case("unknown key", "RUN.yaml: unknown key 'train.learning_rate'", ("train.learning_rate=1",), left=NOTHING),
    Case("misspelt key", "unknown key 'train.batch_sise'; did you mean 'train.batch_size'?", ("train.batch_sise=4",),
         left=NOTHING),
    Case("unknown section", "unknown key 'trian'; did you mean 'train'?", ("trian.lr=1",), left=NOTHING),
    Case("--set without =", "--set 'train.lr' has no '='", ("train.lr",), left=NOTHING),
    Case("--set of a wrong kind", "train.lr: 'fast' is neither a number over 0", ("train.lr=fast",), left=NOTHING),
    Case("--set below a value", "--set 'model.path.x=1': 'path' is not a section", ("model.path.x=1",), left=NOTHING),
    Case("pruning by a scorer that won't run", "prune.scorer 'x' is none of answer-los",
         ("prune.scorer=x",), left=NOTHING),
    Case("no config", "can't read ROOT/none.yaml: No such file or directory", left=NOTHING,
         command=("run", "ROOT/none.yaml", "--out", "OUT")),
    Case("config that is no YAML", "RUN.yaml is not YAML", left=NOTHING,
         prepare=lambda place: place.config.write_text("model: {path: [")),
    Case("verb without a run", "no run config: ROOT/out/config.yaml does not exist", left=NOTHING,
         command=("train", "--out", "OUT"), more=("give RUN.yaml, or the folder of an earlier run with --out",)),
    Case("run without a run", "no run config: ROOT/out/config.yaml does not exist", left=NOTHING,
         command=("run", "--out", "OUT"), more=("give RUN.yaml, or the folder of an earlier run with --out",)),
    Case("report without a run", "ROOT/out", left=NOTHING, command=("report", "--out", "OUT")),
    # model
    Case("wrong model path", "no model at './none': there is no such folder", ("model.path=./none",)),
    Case("model path is a file", "RUN.yaml is a file\n  allowed: a model folder or a hub id", ("model.path=CONFIG",)),
    Case("wrong model path, checked", "no model at './none'", ("model.path=./none",), command=CHECK, left=NOTHING),
    Case("wrong model path, inspected", "no model at './none'", command=("inspect", "./none"), left=NOTHING),
    Case("text-only model", "(LlamaForCausalLM) is a text-only model", prepare=_text_only),
    Case("folder without a model", "has no config.json", prepare=lambda place: (place.model / "config.json").unlink()),
    Case("model without weights", "has a config.json, but no weights",
         prepare=lambda place: (place.model / "model.safetensors").unlink()),
    Case("hub id that can't be had", "no model at 'owner/name': ", ("model.path=owner/name",),
         more=("for a hub id, unset HF_HUB_OFFLINE",), left=NOTHING),
    Case("adapter on top of an adapter", "ROOT/model is an adapter: lora can't train on top of it",
         prepare=lambda place: (place.model / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')),
    Case("too many layers to remove", "3 layers to remove, but 2 of 4 lie outside region 'uniform:50%'",
         ("prune.remove=3",), **REGION),
    Case("too many layers to remove, in percent", "3 layers to remove, but 2 of 4 lie outside region 'uniform:50%'",
         ("prune.remove=75%",), **REGION),
    Case("too many layers to remove, checked", "3 layers to remove, but 2 of 4 lie outside region 'uniform:50%'",
         ("prune.remove=3",), command=CHECK, left=NOTHING),
    Case("too many layers to remove, by scores", "4 layers to remove, but 1 of 4 lie outside region 'scores:",
         ("prune.remove=4", "select.region=scores:block-influence:3")),
    # training data
    Case("missing data", "no such file: ROOT/none", ("data.train=['ROOT/none']",)),
    Case("folder without training file", "has no training file", ("data.train=['ROOT/pack/images']",)),
    Case("truncated JSON", "train.json is not JSON: line ", prepare=lambda place: place.truncate("train.json", 0.5),
         more=("the text stops in the middle (a truncated file?)", "copy or write the file again, whole")),
    Case("not JSON", "train.json is not JSON: line 1: ",
         prepare=lambda place: (place.pack / "train.json").write_text("id,question\n1,2\n")),
    Case("not a list", "train.json holds one JSON dict, not a list",
         prepare=lambda place: (place.pack / "train.json").write_text("{}")),
    Case("missing picture", "no picture 'images/none.png'", prepare=_set(image="images/none.png"),
         more=("sample number 0 (id 'train-00')",)),
    Case("corrupt picture", "sample 'train-00': can't read picture ROOT/pack/images/square_00.png", prepare=_corrupt,
         settings=("analyze.samples=13",)),
    Case("corrupt picture, checked", "sample 'train-00': can't read picture ROOT/pack/images/square_00.png",
         prepare=lambda place: (place.pack / "images" / "square_00.png").write_text("no picture"), command=CHECK,
         left=NOTHING),
    Case("picture that ends half-way, checked", "sample 'train-00': can't read picture ROOT/pack/images/square_00.png",
         prepare=_corrupt, command=CHECK, left=NOTHING),
    Case("line of pixels, checked", "sample 'train-00': picture ROOT/pack/images/square_00.png is 1 x 20000 pixels",
         prepare=_line_of_pixels, command=CHECK, left=NOTHING, more=("machine.max_ratio",)),
    Case("line of pixels", "sample 'train-00': picture ROOT/pack/images/square_00.png is 1 x 20000 pixels",
         prepare=_line_of_pixels, settings=("analyze.samples=13",)),
    Case("PostScript by another name, checked", "square_00.png: it is PostScript inside", command=CHECK, left=NOTHING,
         prepare=lambda place: (place.pack / "images" / "square_00.png").write_text("%!PS-Adobe-3.0 EPSF-3.0")),
    Case("picture outside", "picture '../secret.png' leaves the data folder", prepare=_set(image="../secret.png")),
    Case("picture by whole path", "leaves the data folder", prepare=_set(image="/etc/passwd")),
    Case("picture by link", "picture 'images/square_00.png' leaves the data folder", prepare=_leaving_link),
    Case("no answer", "(id 'train-00') has no answer at its end", prepare=_turns(("human", "<image>\nWhat?"))),
    Case("empty answer", "an empty assistant turn", prepare=_turns(("human", "<image>\nWhat?"), ("gpt", " "))),
    Case("placeholder without picture", "has 2 <image> placeholders and 1 pictures",
         prepare=_turns(("human", "<image><image>\nWhat?"), ("gpt", "x"))),
    Case("picture without placeholder", "has 0 <image> placeholders and 1 pictures",
         prepare=_turns(("human", "What?"), ("gpt", "x"))),
    Case("unknown speaker", "unknown role 'bot'", prepare=_turns(("human", "<image>What?"), ("bot", "x"))),
    Case("turns out of order", "turns out of order: user, user",
         prepare=_turns(("human", "<image>What?"), ("human", "x"))),
    # test packs
    Case("truncated pack", "test.jsonl:24 is not JSON",
         prepare=lambda place: place.truncate("test.jsonl", 0.495), command=CHECK, left=NOTHING),
    Case("truncated pack, before hours of training", "test.jsonl:24 is not JSON",
         prepare=lambda place: place.truncate("test.jsonl", 0.495)),
    Case("missing pack", "can't read ROOT/none/test.jsonl: No such file or directory",
         ("evaluate.packs=['ROOT/none']",), command=CHECK, left=NOTHING),
    Case("pack row without an answer", "test.jsonl:2: 'answers' is []",
         prepare=lambda place: place.test_row(answers=[]), command=CHECK, left=NOTHING),
    Case("pack picture outside", "leaves the data folder", prepare=lambda place: place.test_row(image="../x.png"),
         command=CHECK, left=NOTHING),
    # run folder
    Case("run folder of another config", "out holds a run of another config: seed: 0 -> 5", ("seed=5",),
         prepare=_run_of_another_config, left=("config.yaml", "run.json", "region.json")),
    Case("folder of something else", "out exists and is no run folder", prepare=_foreign_folder, left=("thesis.tex",)),
    Case("file where the run should be", "out exists and is no run folder", prepare=_file_in_the_way, left=NOTHING),
    Case("unwritable folder", "can't write ROOT/file/run", prepare=_parent_is_a_file, left=NOTHING,
         command=("run", "CONFIG", "--out", "ROOT/file/run")),
    Case("no disk space", "can't write ROOT/out/scores.json: No space left on device", prepare=_full_disk,
         more=("free some space or choose another folder with --out",)),
    Case("no disk space for the checkpoint", "can't write ROOT/out/checkpoint: No space left on device",
         prepare=_full_disk_at_checkpoint, left=(*SELECTED, "train_log.jsonl", ".training")),
    Case("loss that is not a number", "training diverged at step 3: loss nan", prepare=_not_a_number,
         left=(*SELECTED, "train_log.jsonl", ".training"), more=("the last good checkpoint is kept",)),
]  # fmt: skip


@pytest.fixture
def place(
    _saved_llava: Path, saved_pack: Path, run_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Place:
    model = Path(shutil.copytree(_saved_llava, tmp_path / "model"))
    pack = Path(shutil.copytree(saved_pack, tmp_path / "pack"))
    config = yaml.safe_load(run_yaml.read_text())
    config |= {"model": {"path": str(model)}, "data": {"train": [str(pack)]}}
    config["evaluate"]["packs"] = [str(pack)]
    run_yaml.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STRIATE_CACHE", str(tmp_path / "cache"))
    return Place(tmp_path, model, pack, run_yaml, monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input(case: Case, place: Place) -> None:
    def fill(text: str) -> str:
        return text.replace("CONFIG", str(place.config)).replace("ROOT", str(place.root)).replace("OUT", str(place.out))

    if case.prepare:
        case.prepare(place)
    before = {path for path in place.root.rglob("*") if not path.is_relative_to(place.out)}
    settings = [part for setting in case.settings for part in ("--set", fill(setting))]
    shown = CliRunner().invoke(app, [*map(fill, case.command), *settings])
    assert shown.exit_code == 1, (shown.output, shown.exception)
    assert isinstance(shown.exception, SystemExit)
    assert "Traceback" not in shown.output
    assert shown.stderr.startswith("error: ")
    assert fill(case.text) in shown.stderr
    assert "\n  next:    " in shown.stderr
    assert [part for part in case.more if part not in shown.stderr] == []
    left = sorted(path.name for path in place.out.iterdir()) if place.out.is_dir() else []
    assert left == sorted(case.left)
    place.monkeypatch.undo()
    assert {path for path in place.root.rglob("*") if not path.is_relative_to(place.out)} == before


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 30
    assert len({case.name for case in CASES}) == len(CASES)


def test_diverged_run_keeps_the_last_good_checkpoint_and_goes_on(place: Place) -> None:
    _not_a_number(place)
    shown = CliRunner().invoke(app, ["run", str(place.config), "--out", str(place.out)])
    assert "training diverged at step 3: loss nan" in shown.stderr
    kept = place.out / ".training" / "checkpoint-2"
    assert (kept / COMPLETE).is_file()
    assert (kept / WEIGHTS).is_file()
    assert len((place.out / "train_log.jsonl").read_text().splitlines()) == 2
    place.monkeypatch.undo()
    again = CliRunner().invoke(app, ["run", str(place.config), "--out", str(place.out)])
    assert again.exit_code == 0, again.output
    assert "going on from step 2 of 4" in again.stdout


def test_mended_mistake_goes_on_in_the_same_folder(place: Place) -> None:
    command = ["select", str(place.config), "--out", str(place.out)]
    shown = CliRunner().invoke(app, [*command, "--set", "model.path=./none"])
    assert shown.exit_code == 1
    shown = CliRunner().invoke(app, command)
    assert shown.exit_code == 0, shown.output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["check"], "Missing argument"),
        (["run", "x.yaml", "--nonsense"], "No such option"),
        (["ls"], "Missing argument"),
    ],
)
def test_wrong_usage(arguments: list[str], text: str) -> None:
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 2
    assert text in shown.stderr
    assert "Traceback" not in shown.output
