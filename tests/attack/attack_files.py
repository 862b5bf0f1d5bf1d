"""Files that are damaged in every way: of run folders, checkpoints of a training, model folders and packs."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from attack_configs import checked_and_done
from attack_engine import CLEAN, FAILED, Case, Place, Verdict, judge, tail, worst

Damage = Callable[[Path], None]


def _bytes(change: Callable[[bytes], bytes]) -> Damage:
    return lambda path: _replace(path, change(path.read_bytes()))


def _replace(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _flip(place: float) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        index = min(len(content) - 1, int(len(content) * place))
        return content[:index] + bytes([content[index] ^ 4]) + content[index + 1 :] if content else b"x"

    return change


def _to_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _to_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _to_zeros(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def _utf16(content: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode("utf-16")


def _long_number(content: bytes) -> bytes:
    return re.sub(rb"\d+", b"9" * 5000, content, count=1)


DAMAGES: dict[str, Damage] = {
    "half": _bytes(lambda content: content[: len(content) // 2]),
    "all but a byte": _bytes(lambda content: content[:-1]),
    "emptied": _bytes(lambda content: b""),
    "missing": Path.unlink,
    "zeros": _bytes(lambda content: bytes(len(content))),
    "bit near its start": _bytes(_flip(0.03)),
    "bit in its middle": _bytes(_flip(0.5)),
    "bit at its end": _bytes(_flip(0.98)),
    "one byte more": _bytes(lambda content: content + b"x"),
    "one line more": _bytes(lambda content: content + b"\n"),
    "twice": _bytes(lambda content: content * 2),
    "a folder": _to_folder,
    "a FIFO": _to_fifo,
    "a link to itself": _to_itself,
    "random bytes": _bytes(lambda content: hashlib.shake_256(content).digest(max(64, len(content)))),
}
TEXTS: dict[str, Damage] = {
    "BOM": _bytes(lambda content: b"\xef\xbb\xbf" + content),
    "UTF-16": _bytes(_utf16),
    "no UTF-8": _bytes(lambda content: content[: len(content) // 2] + b"\xff" + content[len(content) // 2 :]),
    "NUL": _bytes(lambda content: content[: len(content) // 2] + b"\0" + content[len(content) // 2 :]),
    "CRLF": _bytes(lambda content: content.replace(b"\n", b"\r\n")),
    "a list": _bytes(lambda content: b"[]"),
    "a mapping": _bytes(lambda content: b"{}"),
    "null": _bytes(lambda content: b"null"),
    "a number": _bytes(lambda content: b"3"),
    "a word": _bytes(lambda content: b'"x"'),
    "deep lists": _bytes(lambda content: b"[" * 100_000),
    "deep mappings": _bytes(lambda content: b'{"a":' * 100_000),
    "5000 digits": _bytes(_long_number),
    "1e999": _bytes(lambda content: re.sub(rb"\d+(\.\d+)?", b"1e999", content, count=1)),
    "NaN": _bytes(lambda content: re.sub(rb"\d+(\.\d+)?", b"NaN", content, count=1)),
    "a number made text": _bytes(lambda content: re.sub(rb": ?\d+(\.\d+)?", b': "x"', content, count=1)),
    "half an emoji": _bytes(lambda content: re.sub(rb'"(?=[,\n}\]])', b'\\\\ud83c"', content, count=1)),
    "an escape": _bytes(lambda content: re.sub(rb'"(?=[,\n}\]])', b'\\\\u001b[31m"', content, count=1)),
}
BINARY = (".safetensors", ".pt", ".pth", ".png", ".bin")
# What every run writes anew, and what nothing follows from.
ANEW = re.compile(r"(^|/)(run\.json|config\.yaml|report\.html|README\.md|retention\.json|gate\.json)$")
# What tells how long something took, how much memory, or where; and the digest of a file that does.
MEASURED = re.compile(
    rb'"(seconds|peak_memory_gib|finished|command|model|digest|[a-z_]*per_second)": ?("[^"]*"|[-+.\de]+)'
)
# What one session asked, and what it took over from one that was stopped.
ASKING = re.compile(rb'"asking": ?\{[^}]*\}')


def damages(name: str) -> dict[str, Damage]:
    """Return the damages that make sense for a file of that name."""
    return DAMAGES if name.endswith(BINARY) else {**DAMAGES, **TEXTS}


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file of a run folder that a run does not write anew."""
    names = {path: str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()}
    kept = {name: path.read_bytes() for path, name in names.items() if not ANEW.search(name)}
    return {name: _unmeasured(text) if name.endswith((".json", ".jsonl")) else text for name, text in kept.items()}


def _unmeasured(text: bytes) -> bytes:
    return ASKING.sub(b"", MEASURED.sub(rb'"\1": 0', text))


def written(run: Path) -> tuple[int, int] | None:
    """Return what tells a run's tuned weights from others of the same bytes, if they are there."""
    weights = run / "checkpoint/adapter_model.safetensors"
    return (weights.stat().st_ino, weights.stat().st_mtime_ns) if weights.is_file() else None


def same_as_pristine(place: Place, run: Path) -> str:
    """Return how the run folder differs from the finished one, or an empty string."""
    wanted, found = contents(place.pristine / "done"), contents(run)
    different = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    return f"other content than without the damage: {', '.join(different)}" if different else ""


def _finished(name: str, damage: Damage) -> Callable[[Place], Verdict]:
    """Return a case that damages a file of the finished run and asks for the run again."""

    def play(place: Place) -> Verdict:
        run = place.root / "done"
        before = written(run)
        damage(run / name)
        shown = place.striate("run", place.config, "--out", run)
        verdict = judge(shown, lambda: same_as_pristine(place, run))
        if name.startswith("checkpoint/") or shown.code or verdict.state == FAILED:
            return verdict
        again = written(run) != before
        return Verdict(FAILED, f"the training was done again: {tail(shown.text)}") if again else verdict

    return play


def _shown_of(name: str, damage: Damage, *words: str) -> Callable[[Place], Verdict]:
    """Return a case that damages a file of the finished run and asks a verb that reads it."""

    def play(place: Place) -> Verdict:
        damage(place.root / "done" / name)
        before = contents(place.root / "done")
        verdict = judge(place.striate(*words, "--out", place.root / "done"))
        gone = sorted(before.keys() - contents(place.root / "done").keys())
        return worst(verdict, Verdict(FAILED, f"{gone} are gone") if gone else Verdict(CLEAN))

    return play


def _stopped(name: str, damage: Damage) -> Callable[[Place], Verdict]:
    """Return a case that damages a file of a training's newest checkpoint and goes on."""

    def play(place: Place) -> Verdict:
        run = place.root / "stopped"
        newest = max((run / ".training").glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))
        if not (newest / name).is_file():
            return Verdict(CLEAN)
        damage(newest / name)
        return judge(
            place.striate("run", place.config, "--out", run),
            lambda: same_as_pristine(place, run),
            names=("checkpoint",),
        )

    return play


def _log(damage: Damage) -> Callable[[Place], Verdict]:
    """Return a case that damages the log of a stopped training and goes on."""

    def play(place: Place) -> Verdict:
        run = place.root / "stopped"
        damage(run / "train_log.jsonl")
        shown = place.striate("run", place.config, "--out", run)
        return judge(shown, lambda: same_as_pristine(place, run) or _log_is_whole(run), names=("train_log",))

    return play


def _log_is_whole(run: Path) -> str:
    import json

    steps = [json.loads(line)["step"] for line in (run / "train_log.jsonl").read_text().splitlines()]
    record = json.loads((run / "train.json").read_text())
    first = json.loads((run / "train_log.jsonl").read_text().splitlines()[0])
    if steps != sorted(set(steps)):
        return f"the log has steps {steps}"
    if steps == [1, 2, 3] and abs(record["first_loss"] - first["loss"]) > 1e-6:
        return f"train.json has first_loss {record['first_loss']}, the log {first['loss']}"
    return ""


def _model(name: str, damage: Damage, verb: str) -> Callable[[Place], Verdict]:
    """Return a case that damages a file of the model folder."""

    def play(place: Place) -> Verdict:
        damage(place.model / name)
        if verb == "inspect":
            return judge(place.striate("inspect", place.model, "--region", "uniform:25%"))
        return judge(place.striate("analyze", place.config, "--out", place.out))

    return play


def _pack(name: str, damage: Damage) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        damage(place.pack / name)
        return checked_and_done(place)

    return play


def _config(damage: Damage) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        damage(place.config)
        return judge(place.striate("check", place.config), names=("run.yaml",))

    return play


def _region(damage: Damage) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        own = Path(shutil.copy(place.pristine / "done/region.json", place.root / "region.json"))
        damage(own)
        return judge(place.striate("select", place.config, "--out", place.out, "--set", f"select.region={own}"))

    return play


RUN_FILES = (
    *("config.yaml", "run.json", "scores.json", "region.json", "train.json", "train_log.jsonl", "prune.json"),
    *("eval/start.json", "eval/tuned.predictions.jsonl", "eval/retention.json", "report.html"),
    *("checkpoint/adapter_config.json", "checkpoint/adapter_model.safetensors", "checkpoint/tokenizer.json"),
    *("checkpoint/region.json", "checkpoint/README.md", "pruned/config.json", "pruned/model.safetensors"),
)
CHECKPOINT_FILES = (
    *("complete.json", "trainable.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"),
)
MODEL_FILES = (
    *("config.json", "generation_config.json", "model.safetensors", "processor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
)
PACK_FILES = ("train.json", "test.jsonl", "images/square_00.png")
REPORTED = ("scores.json", "region.json", "train.json", "train_log.jsonl", "prune.json", "run.json", "config.yaml")
REPORTED_EVAL = ("eval/start.json", "eval/tuned.predictions.jsonl", "eval/retention.json")
ALL = ("model", "pack", "done")


def cases() -> list[Case]:
    """Return all cases of damaged files."""
    found = [
        Case("run folder: run again", f"{name}: {label}", _finished(name, damage), ALL, slow=True)
        for name in RUN_FILES
        for label, damage in damages(name).items()
    ]
    found += [
        Case("run folder: report", f"{name}: {label}", _shown_of(name, damage, "report"), ALL)
        for name in (*REPORTED, *REPORTED_EVAL)
        for label, damage in damages(name).items()
    ]
    found += [
        Case("run folder: other verbs", f"{words[0]} {name}: {label}", _shown_of(name, damage, *words), ALL)
        for words, name in (
            (("evaluate", "--differences"), "eval/tuned.predictions.jsonl"),
            (("analyze", "--export", "scores.csv"), "scores.json"),
        )
        for label, damage in damages(name).items()
    ]
    found += [
        Case("training checkpoint", f"{name}: {label}", _stopped(name, damage), ("model", "pack", "stopped"), slow=True)
        for name in CHECKPOINT_FILES
        for label, damage in damages(name).items()
    ]
    found += [
        Case("training log", label, _log(damage), ("model", "pack", "stopped"), slow=True)
        for label, damage in damages("x.jsonl").items()
    ]
    found += [
        Case("model folder", f"{verb}: {name}: {label}", _model(name, damage, verb))
        for name in MODEL_FILES
        for label, damage in damages(name).items()
        for verb in ("inspect", "analyze")
        if verb == "analyze" or name == "config.json"
    ]
    found += [
        Case("pack", f"{name}: {label}", _pack(name, damage))
        for name in PACK_FILES
        for label, damage in damages(name).items()
    ]
    found += [Case("config documents", f"file: {label}", _config(damage)) for label, damage in damages("x").items()]
    found += [Case("region of one's own", label, _region(damage), ALL) for label, damage in damages("x").items()]
    return found
