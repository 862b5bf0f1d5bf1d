"""Configs with values that are wrong: every field with every bad value; `--set` of any kind; bombs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from attack_engine import FAILED, WEAK, Case, Place, Verdict, judge, tail
from attack_ground import raw_config
from pydantic import BaseModel

from striate.config import RunConfig

DIGITS = "9" * 5000
# YAML for a value of any field. The first few are wrong for nearly all, the last few for some.
VALUES = {
    "null": "null",
    "true": "true",
    "minus one": "-1",
    "zero": "0",
    "one": "1",
    "half": "0.5",
    "1e300": "1.0e+300",
    "2**63": str(2**63),
    "2**32": str(2**32),
    "400 digits": "9" * 400,
    "5000 digits": DIGITS,
    "nan": ".nan",
    "inf": ".inf",
    "a date": "2024-02-28",
    "a date that does not exist": "2024-02-30",
    "empty": '""',
    "a blank": '" "',
    "a word": "nonsense",
    "a NUL": '"a\\0b"',
    "an escape": '"\\e[31mred"',
    "8-bit CSI": '"\\x9b31m"',
    "half an emoji": '"\\ud83c"',
    "far too long": "x" * 5000,
    "no such person": "~nobody/x",
    "outside": "../../x",
    "html": '"<script>alert(1)</script>"',
    "a list": "[]",
    "a list of nothing": "[null]",
    "a list of lists": "[[1]]",
    "a list of words": "[nonsense, nonsense]",
    "a mapping": "{}",
    "a mapping of words": "{a: b}",
    "binary": "!!binary aGk=",
    "a set": "!!set {a}",
    "python": "!!python/object/apply:os.system ['true']",
}


def fields(section: type[BaseModel] = RunConfig, before: str = "") -> Iterator[str]:
    """Yield the name of every setting of the run config."""
    for name, entry in section.model_fields.items():
        kind = entry.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield before + name
            yield from fields(kind, f"{before}{name}.")
        else:
            yield before + name


def with_value(place: Place, name: str, text: str) -> None:
    """Write RUN.yaml with the YAML `text` as the value of setting `name`."""
    raw: dict[str, Any] = raw_config(place.root)
    inner = raw
    *above, last = name.split(".")
    for part in above:
        inner = inner.setdefault(part, {})
    inner[last] = "@value@"
    place.config.write_text(json.dumps(raw).replace('"@value@"', text), encoding="utf-8")


def checked_and_done(place: Place, verb: str = "run", *more: str) -> Verdict:
    """Return how `check` takes the config and, where it is accepted, how the verb does."""
    checked = place.striate("check", place.config)
    verdict = judge(checked)
    if checked.code or verdict.state == FAILED:
        return verdict
    ran = place.striate(verb, place.config, "--out", place.out, *more)
    verdict = judge(ran)
    if ran.code and verdict.state != FAILED:
        return Verdict(WEAK, f"`check` takes what `{verb}` refuses: {tail(ran.text)}")
    return verdict


def _field(name: str, text: str) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        with_value(place, name, text)
        return checked_and_done(place)

    return play


SETTINGS = {
    "no value": "train.lr",
    "no key": "=1",
    "nothing": "",
    "dots": "...=1",
    "a section": "train=1",
    "below a value": "train.lr.x=1",
    "unknown": "train.learning_rate=1",
    "misspelt": "trian.lr=1",
    "no YAML": "train.lr=[",
    "a bomb": "train.lr=" + "[" * 20000,
    "a NUL": "model.path=a\0b",
    "an escape": "train.\x1b[31mlr=1",
    "8-bit CSI": "train.\x9b31mlr=1",
    "half an emoji": "report.title=\udc80",
    "digits": f"seed={DIGITS}",
    "long": "x." * 3000 + "x=1",
    "twice": "train.lora={r: 1, r: 2, alpha: x}",
    "a tag": "seed=!!python/name:os.system",
    "alias": "seed=*a",
    "two documents": "seed=1\n---\nseed: 2",
    "tabs": "seed=\t1",
    "date": "seed=2024-02-30",
}


def _setting(text: str) -> Callable[[Place], Verdict]:
    return lambda place: judge(place.striate("check", place.config, "--set", text), refused=True)


def _laughs(depth: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, depth)]
    return "\n".join(lines)


def _write(text: str | bytes) -> Callable[[Place], Verdict]:
    def play(place: Place) -> Verdict:
        place.config.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
        return judge(place.striate("check", place.config), refused=True, names=("run.yaml",))

    return play


DOCUMENTS: dict[str, str | bytes] = {
    "aliases": _laughs(9),
    "aliases as the title": _laughs(8) + "\nreport: {title: *a7}",
    "an alias of itself": "model: &m {path: *m}",
    "a mapping of itself": "&m {model: *m, data: *m}",
    "merge keys": "\n".join(["a: &a {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join(['*a'] * 99)}]}}" for n in range(99))]),
    "deep lists": "[" * 100_000,
    "deep mappings": "{a: " * 5000 + "1" + "}" * 5000,
    "deep indent": "\n".join(" " * n + "a:" for n in range(3000)),
    "keys that are lists": "[1, 2]: 3",
    "a key of nothing": "null: 1\nmodel: {path: x}",
    "a number as key": "1: 1",
    "a long number as key": f"{DIGITS}: 1",
    "no YAML": "model: {path: [",
    "a list": "- model",
    "a word": "model",
    "nothing": "",
    "only a comment": "# nothing",
    "two documents": "model: {}\n---\nmodel: {}",
    "a directive": "%YAML 9.9\n---\nmodel: {}",
    "python": "!!python/object/apply:os.system ['touch harm']",
    "a tag": "model: !include /etc/passwd",
    "tabs": "model:\n\tpath: x",
    "NUL": "model: a\0b",
    "latin-1": "model: {path: caf\xe9}".encode("latin-1"),
    "half an emoji": "model: {path: '\ud83c'}",
    "control characters": "model: {path: '\x1b[31m'}",
    "a sexagesimal bomb": "seed: " + ":".join(["59"] * 3000),
    "an octal": "seed: 0777777777777777777777777777",
}


def _fifo(place: Place) -> Verdict:
    import os

    place.config.unlink()
    os.mkfifo(place.config)
    return judge(place.striate("check", place.config), refused=True)


def _device(name: str) -> Callable[[Place], Verdict]:
    return lambda place: judge(place.striate("check", name), refused=True)


def cases() -> list[Case]:
    """Return all cases of configs."""
    found = [
        Case("config values", f"{name}: {label}", _field(name, text))
        for name in fields()
        for label, text in VALUES.items()
    ]
    found += [Case("--set", label, _setting(text)) for label, text in SETTINGS.items()]
    found += [Case("config documents", label, _write(text)) for label, text in DOCUMENTS.items()]
    found.append(Case("config documents", "a FIFO", _fifo))
    found += [Case("config documents", name, _device(name)) for name in ("/dev/zero", "/dev/null", "/", "", "a\0b")]
    return found
