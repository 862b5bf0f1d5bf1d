"""Faults at file operations of a run, two processes on one run, folders that are moved, what changes between."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from attack_engine import CLEAN, FAILED, Case, Place, Shown, Verdict, judge, tail, worst
from attack_files import contents, same_as_pristine, written
from attack_ground import raw_config
from fault_kit import FAULTS, KILLED, Fault, FileOperations, faulty, operations_of

POINTS = 60
"""At how many of a run's operations each fault is met; the operations are divided evenly."""


def _everything(place: Place, out: Path) -> None:
    from striate.config import load_config
    from striate.pipeline import Flow

    Flow(load_config(place.config), out).everything()


def _operations(place: Place) -> int:
    """Return how many file operations a run has, counted once a place."""
    noted = place.pristine / "operations"
    if not noted.exists():
        found = operations_of(partial(_everything, place, place.root / "run"), place.root / "run", place.root / "log")
        noted.write_text(str(len(found)))
        shutil.rmtree(place.root / "run")
    return int(noted.read_text())


def _fault(fault: Fault, point: int, points: int) -> Callable[[Place], Verdict]:
    """Return a case of a run that meets a fault, and of the same run once more."""

    def play(place: Place) -> Verdict:
        at = _operations(place) * point // points
        run, log = place.root / "run", place.root / "log"
        code = faulty(partial(_everything, place, run), FileOperations(run, at, fault), log)
        allowed = {"kill": {KILLED}, "torn": {KILLED}, "full": {0, 1}, "interrupt": {0, 130}}[fault]
        said = log.read_text(encoding="utf-8") if log.exists() else ""
        if code not in allowed or (code == 1 and "striate.errors." not in said.rpartition("\n\n")[2]):
            return Verdict(FAILED, f"at {at}: exit code {code}: {tail(said)}")
        kept = written(run)
        shown = place.striate("run", place.config, "--out", run)
        if kept and kept != written(run):
            return Verdict(FAILED, f"at {at}: the finished training was done again: {tail(shown.text)}")
        verdict = judge(shown, lambda: same_as_pristine(place, run) or _left(place, run))
        return Verdict(verdict.state, f"at {at}: {verdict.why}") if verdict.why else verdict

    return play


def _left(place: Place, run: Path) -> str:
    before = {str(path.relative_to(place.pristine / "done")) for path in (place.pristine / "done").rglob("*")}
    more = {str(path.relative_to(run)) for path in run.rglob("*")} - before
    return f"left behind: {sorted(more)}" if more else ""


def _child(work: Callable[[], Any]) -> int:
    child = os.fork()
    if not child:
        code = 1
        try:
            code = work()
        finally:
            os._exit(code)
    return child


def _together(verb: str, start: str) -> Callable[[Place], Verdict]:
    """Return a case of two processes that run in one folder: both end well, or one is told of the other."""

    def play(place: Place) -> Verdict:
        run = place.root / "both"
        if start == "finished":
            shutil.copytree(place.root / "done", run)
        elif start == "empty":
            run.mkdir()

        def work(name: str) -> int:
            shown = place.striate(verb, place.config, "--out", run)
            (place.root / name).write_text(json.dumps([shown.code, shown.text]))
            return 0

        children = [_child(partial(work, name)) for name in ("one", "two")]
        for child in children:
            os.waitpid(child, 0)
        said = [json.loads((place.root / name).read_text()) for name in ("one", "two")]
        codes = sorted(code for code, _ in said)
        if codes not in ([0, 0], [0, 1]) or any("Traceback" in text for _, text in said):
            return Verdict(FAILED, f"exit codes {codes}: {[text[-200:] for _, text in said]}")
        if codes == [0, 1] and not any("another" in text for _, text in said):
            return Verdict(FAILED, f"neither is told of the other: {[text[-200:] for _, text in said]}")
        again = place.striate("run", place.config, "--out", run)
        return judge(again, lambda: same_as_pristine(place, run))

    return play


def _moved(what: str, step: int) -> Callable[[Place], Verdict]:
    """Return a case of a run folder that is moved or removed while it runs: it does not come back half."""

    def play(place: Place) -> Verdict:
        run, away = place.root / "run", place.root / "away"
        child = _child(lambda: place.striate("run", place.config, "--out", run).code)
        awaited = run / ("run.json", "scores.json", ".training", "checkpoint", "eval")[step]
        begin = time.perf_counter()
        while not awaited.exists() and time.perf_counter() - begin < 60:
            time.sleep(0.002)
        run.rename(away)
        if what == "removed":
            shutil.rmtree(away, ignore_errors=True)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if run.exists() and any(run.rglob("*")):
            return Verdict(FAILED, f"{run.name} came back with {sorted(path.name for path in run.iterdir())}")
        if code not in (0, 1):
            return Verdict(FAILED, f"exit code {code}")
        target = away if what == "moved" else run
        return judge(place.striate("run", place.config, "--out", target), lambda: same_as_pristine(place, target))

    return play


def _elsewhere(change: Callable[[Place], Path]) -> Callable[[Place], Verdict]:
    """Return a case of a finished run that lies elsewhere now: it is up to date there."""

    def play(place: Place) -> Verdict:
        run = change(place)
        shown = place.striate("run", place.config, "--out", run)
        done_again = "train: up to date" not in shown.text
        verdict = judge(shown, lambda: same_as_pristine(place, run))
        return (
            Verdict(FAILED, f"the training was done again: {tail(shown.text)}")
            if shown.code == 0 and done_again
            else verdict
        )

    return play


def _renamed(place: Place) -> Path:
    return (place.root / "done").rename(place.root / "a b")


def _linked(place: Place) -> Path:
    (place.root / "link").symlink_to(place.root / "done")
    return place.root / "link"


def _relative(place: Place) -> Path:
    return Path("done")


def _copied(place: Place) -> Path:
    return Path(shutil.copytree(place.root / "done", place.root / "copy", copy_function=shutil.copy))


def _touched(place: Place) -> Path:
    for path in (place.root / "pack").rglob("*"):
        os.utime(path)
    return place.root / "done"


# What is changed, and what of the finished run may be done again for it: nothing, the evaluation, or all.
CHANGES: dict[str, tuple[Callable[[Place], Any], str]] = {
    "a word in test.jsonl": (lambda place: _edit(place.pack / "test.jsonl", "What colour", "Which colour"), "evaluate"),
    ".DS_Store in the pack": (lambda place: (place.pack / ".DS_Store").write_bytes(b"x"), ""),
    ".DS_Store in images": (lambda place: (place.pack / "images/.DS_Store").write_bytes(b"x"), ""),
    "a README in the pack": (lambda place: (place.pack / "README.md").write_text("x"), ""),
    "a README in the model": (lambda place: (place.model / "README.md").write_text("x"), ""),
    ".DS_Store in the model": (lambda place: (place.model / ".DS_Store").write_bytes(b"x"), ""),
    "a folder of git in the model": (lambda place: (place.model / ".git").mkdir(), ""),
    "a picture that nobody shows": (lambda place: (place.pack / "images/other.png").write_bytes(b"x"), ""),
    "a file beside the artifacts": (lambda place: (place.root / "done/notes.txt").write_text("x"), ""),
    "machine settings": (lambda place: _config(place, "machine", eval_batch=2), ""),
    "the title": (lambda place: _config(place, "report", title="another"), ""),
    "the gate": (lambda place: _config(place, "evaluate", gate="visual>=0.1"), ""),
    "the number of answers": (lambda place: _config(place, "evaluate", limit=3), "evaluate"),
    "a word in train.json": (lambda place: _edit(place.pack / "train.json", '"red"', '"rot"'), "all"),
    "a picture": (lambda place: _flip(place.pack / "images/square_00.png"), "all"),
    "a weight": (lambda place: _flip(place.model / "model.safetensors"), "all"),
    "the template": (lambda place: _edit(place.model / "chat_template.jinja", "assistant", "assistant:"), "all"),
    "the processor": (lambda place: _edit(place.model / "processor_config.json", "0.48", "0.49"), "all"),
    "the learning rate": (lambda place: _config(place, "train", lr=0.02), "train"),
    "the seed": (lambda place: _config(place, "", seed=1), "all"),
}


def _edit(path: Path, old: str, new: str) -> None:
    path.write_text(path.read_text().replace(old, new))


def _flip(path: Path) -> None:
    """Change a bit late in a file, and leave its size and time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _config(place: Place, section: str, **keys: Any) -> None:
    raw = raw_config(place.root)
    raw.update(keys if not section else {section: {**raw.get(section, {}), **keys}})
    place.config.write_text(yaml.safe_dump(raw))


def _changed(change: Callable[[Place], Any], again: str) -> Callable[[Place], Verdict]:
    """Return a case of a change under a finished run: what follows from it is out of date, and nothing else is."""

    def play(place: Place) -> Verdict:
        run = place.root / "done"
        checkpoint = (run / "checkpoint/adapter_model.safetensors").read_bytes()
        change(place)
        shown = place.striate("run", place.config, "--out", run)
        kept = (run / "checkpoint/adapter_model.safetensors").read_bytes() == checkpoint
        if not kept:
            return Verdict(FAILED, "a checkpoint is replaced without --overwrite")
        trained = "train: up to date" in shown.text
        refused = again == "evaluate" and "holds a run of another config: evaluate." in shown.text
        if again in ("", "evaluate") and not trained and not refused:
            return Verdict(FAILED, f"the training is out of date for nothing: {tail(shown.text)}")
        if not again:
            # A gate that does not hold has exit code 1.
            nothing = shown.text.count("up to date") == 7
            held = Shown(0, shown.text, shown.words) if "gate" in shown.text and nothing else shown
            return judge(held, lambda: "" if nothing else "a stage was done for nothing")
        return judge(shown, refused=True, names=("--overwrite",))

    return play


def _overwritten(change: Callable[[Place], Any], again: str) -> Callable[[Place], Verdict]:
    """Return a case of a change under a stopped training that is gone on with by `--overwrite`: nothing is mixed."""

    def play(place: Place) -> Verdict:
        run, fresh = place.root / "stopped", place.root / "fresh"
        change(place)
        shown = place.striate("run", place.config, "--out", run, "--overwrite")
        other = place.striate("run", place.config, "--out", fresh)
        verdicts = judge(shown), judge(other)
        if shown.code or other.code:
            return Verdict(CLEAN) if shown.code == other.code == 1 else worst(*verdicts)
        one, two = contents(run), contents(fresh)
        names = [name for name in one.keys() | two.keys() if one.get(name) != two.get(name)]
        mixed = f"two trainings are mixed: {sorted(names)}, {tail(shown.text)}" if names else ""
        return Verdict(FAILED, mixed) if mixed else worst(*verdicts)

    return play


def _foreign(name: str) -> Callable[[Place], Verdict]:
    """Return a case of a folder that is no run folder: it is refused, and stays as it is."""

    def play(place: Place) -> Verdict:
        place.out.mkdir()
        (place.out / name).write_text("mine")
        shown = place.striate("run", place.config, "--out", place.out, "--overwrite")
        if (place.out / name).read_text() != "mine":
            return Verdict(FAILED, "a stranger's file was changed")
        return judge(shown, refused=True)

    return play


def _workers(workers: int, stop: bool) -> Callable[[Place], Verdict]:
    """Return a case of a training with dropout over three epochs: the same bits with workers and after a stop."""

    def play(place: Place) -> Verdict:
        from attack_ground import Stop

        from striate.config import load_config
        from striate.pipeline import Flow

        _config(place, "train", epochs=3)
        steps = ("--set", "evaluate.packs=[]", "--set", "prune.remove=0", "--set", "machine.workers=0")
        plain = place.striate("run", place.config, "--out", place.root / "plain", *steps)
        settings = ["evaluate.packs=[]", "prune.remove=0", f"machine.workers={workers}"]
        if stop:
            flow = Flow(load_config(place.config, settings), place.root / "other", progress=Stop(5))
            try:
                flow.everything()
            except KeyboardInterrupt:
                del flow
        shown = place.striate(
            "run", place.config, "--out", place.root / "other", *[part for text in settings for part in ("--set", text)]
        )
        weights = [
            (place.root / name / "checkpoint/adapter_model.safetensors").read_bytes() for name in ("plain", "other")
        ]
        return Verdict(FAILED, "other weights") if weights[0] != weights[1] else worst(judge(plain), judge(shown))

    return play


def cases() -> list[Case]:
    """Return all cases of runs."""
    need = ("model", "pack")
    found = [
        Case("faults at file operations", f"{fault} at {point}/{POINTS}", _fault(fault, point, POINTS), need, slow=True)
        for point in range(POINTS)
        for fault in FAULTS
    ]
    found += [
        Case("two processes", f"{verb} in a {start} folder", _together(verb, start), (*need, "done"), slow=True)
        for verb in ("run", "select", "analyze")
        for start in ("new", "empty", "finished")
    ]
    found += [
        Case("moved folders", f"{what} at {step}", _moved(what, step), need, slow=True)
        for what in ("moved", "removed")
        for step in range(5)
    ]
    found += [
        Case("moved folders", change.__name__.strip("_"), _elsewhere(change), (*need, "done"), slow=True)
        for change in (_renamed, _linked, _relative, _copied, _touched)
    ]
    found += [
        Case("changes under a run", label, _changed(change, again), (*need, "done"), slow=True)
        for label, (change, again) in CHANGES.items()
    ]
    found += [
        Case("two trainings mixed", label, _overwritten(change, again), (*need, "stopped"), slow=True)
        for label, (change, again) in CHANGES.items()
        if again in ("all", "train")
    ]
    found += [
        Case("moved folders", f"no run: {name}", _foreign(name), need)
        for name in ("thesis.tex", "run.json", "config.yaml", ".hidden")
    ]
    found += [
        Case("same bits", f"{workers} workers{', stopped' * stop}", _workers(workers, stop), need, slow=True)
        for workers in (0, 1, 2)
        for stop in (False, True)
    ]
    return found
