"""What reaches the terminal, the page, cards and spreadsheets; and paths that files of strangers name."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from attack_engine import CLEAN, CONTROL, FAILED, Case, Place, Verdict, judge, worst
from attack_ground import raw_config

ESCAPES = {
    "colour": "\x1b[31mred\x1b[0m",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;https://localhost\x1b\\x\x1b]8;;\x1b\\",
    "clear": "\x1b[2J\x1b[H",
    "8-bit CSI": "\x9b31mred",
    "8-bit OSC": "\x9d0;owned\x9c",
    "backspaces": "safe\x08\x08\x08\x08evil",
    "bell": "\x07",
    "return": "safe\revil",
    "vertical": "a\x0bb\x0cc",
    "delete": "a\x7fb",
}
PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "closed": "</script><script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "svg": "<svg onload=alert(1)>",
    "attribute": '" onmouseover=alert(1) x="',
    "single": "' onmouseover=alert(1) x='",
    "link": "[x](javascript:alert(1))",
    "style": "</style><style>*{display:none}</style>",
    "comment": "--><script>alert(1)</script><!--",
    "template": "</template><script>alert(1)</script>",
    "json": "</script>\u2028<!--<script>",
    "form": "<form action=https://localhost><input>",
    "base": "<base href=https://localhost>",
    "meta": "<meta http-equiv=refresh content='0;url=https://localhost'>",
}
FORMULAS = {
    "equals": "=1+1",
    "command": "=cmd|' /C calc'!A0",
    "plus": "+1+1",
    "minus": "-1+1",
    "at": "@SUM(1)",
    "tab": "\t=1+1",
    "return": "\r=1+1",
    "newline": "\n=1+1",
    "quote": '"=1+1',
    "wide": "\uff1d1+1",
    "blank": " =1+1",
    "link": '=HYPERLINK("https://localhost","x")',
}


def _row(place: Place, **keys: Any) -> None:
    """Put `keys` into the first item of test.jsonl and the first training sample."""
    lines = (place.pack / "test.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), **keys})
    (place.pack / "test.jsonl").write_text("\n".join(lines))


def _in_error(where: str, text: str) -> Callable[[Place], Verdict]:
    """Return a case that puts `text` into what an error or a line of the terminal tells."""

    def play(place: Place) -> Verdict:
        return judge(place.striate(*_asked(place, where, text)))

    return play


def _asked(place: Place, where: str, text: str) -> tuple[Any, ...]:
    check = ("check", place.config)
    if where == "metric":
        _row(place, metric=text)
    elif where == "item id":
        _row(place, id=text, answers=[])
    elif where == "picture name":
        _row(place, image=text)
    elif where == "unknown key of the config":
        place.config.write_text(yaml.safe_dump({**raw_config(place.root), text: 1}))
    elif where == "scorer":
        return (*check, "--set", f"analyze.scorers={json.dumps([text])}")
    elif where == "region":
        return (*check, "--set", f"select.region={json.dumps(text)}")
    elif where == "verb":
        return (text,)
    elif where == "option":
        return ("check", f"--{text}")
    elif where == "list":
        return ("ls", text)
    elif where == "model type":
        file = place.model / "config.json"
        raw = json.loads(file.read_text())
        file.write_text(json.dumps({**raw, "model_type": text, "architectures": [text]}))
        return ("inspect", place.model)
    elif where == "folder":
        folder = place.root / text.replace("/", "_")
        shutil.copytree(place.pack, folder)
        (folder / "train.json").write_text("{")
        return (*check, "--set", f"data.train={json.dumps([str(folder)])}")
    elif where == "config's name":
        named = place.root / f"{text.replace('/', '_')}.yaml"
        named.write_text("{")
        return ("check", named)
    elif where == "role":
        rows = json.loads((place.pack / "train.json").read_text())
        rows[0]["conversations"][0]["from"] = text
        (place.pack / "train.json").write_text(json.dumps(rows))
    return check


WHERE = (
    *("metric", "item id", "picture name", "unknown key of the config", "scorer", "region", "verb", "option", "list"),
    *("model type", "folder", "config's name", "role"),
)


def _in_run(text: str) -> Callable[[Place], Verdict]:
    """Return a case of a run whose tasks, title, other models and folders are named so; its page and cards are read."""

    def play(place: Place) -> Verdict:
        lines = [json.loads(line) for line in (place.pack / "test.jsonl").read_text().splitlines()]
        for line in lines:
            line.update(task=text, question=f"{text} {line['question']}")
        (place.pack / "test.jsonl").write_text("\n".join(map(json.dumps, lines)))
        base = place.root / text.replace("/", "_")
        place.model.rename(base)
        raw = raw_config(place.root)
        raw["model"]["path"], raw["report"] = str(base), {"title": text}
        raw["evaluate"]["models"] = ["start", "tuned"]
        raw["prune"] = {"remove": 0}
        place.config.write_text(yaml.safe_dump(raw))
        shown = place.striate("run", place.config, "--out", place.out)
        verdict = judge(shown)
        more = place.striate("evaluate", "--out", place.out, "--differences")
        return worst(
            verdict, judge(more), *map(_page, place.out.rglob("*.html")), *map(_card, place.out.rglob("README.md"))
        )

    return play


class _Tags(HTMLParser):
    """Collects what would run: scripts' contents, handlers, and tags that lead elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("base", "iframe", "object", "embed") or (tag == "meta" and ("http-equiv", "refresh") in attrs):
            self.bad.append(tag)
        self.bad += [
            f"{tag} {name}={value}" for name, value in attrs if "alert(" in (value or "") and name.startswith("on")
        ]
        self.bad += [f"{tag} {name}" for name, value in attrs if (value or "").strip().startswith("javascript:")]
        if tag == "form" and any("localhost" in (value or "") for _, value in attrs):
            self.bad.append(tag)


def _page(path: Path) -> Verdict:
    text = path.read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(text)
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, re.DOTALL)
    bad = [*tags.bad, *(script[:80] for script in scripts if script.strip().startswith("alert(1)"))]
    return Verdict(FAILED, f"{path.name} runs {bad[0]!r}") if bad else Verdict(CLEAN)


def _card(path: Path) -> Verdict:
    text = path.read_text(encoding="utf-8")
    loose = CONTROL.search(text)
    if loose:
        return Verdict(FAILED, f"{loose[0]!r} in {path.name}")
    # Front matter and code are shown as they are.
    text = re.sub(r"\A---\n.*?\n---\n|(`+).*?\1", "", text, flags=re.DOTALL)
    raw = re.search(r"<(script|img src=x|svg onload|base|meta|form|style)", text)
    linked = re.search(r"\[x\]\(javascript:", text)
    return Verdict(FAILED, f"{(raw or linked)[0]!r} in {path.name}") if raw or linked else Verdict(CLEAN)


def _exported(text: str, verb: str) -> Callable[[Place], Verdict]:
    """Return a case of an export to CSV whose cells must not begin as formulas."""

    def play(place: Place) -> Verdict:
        target, run = place.root / "table.csv", place.root / "done"
        if verb == "evaluate":
            file = run / "eval/tuned.predictions.jsonl"
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                row.update(answer=text, output=text, score=1 - row.get("score", 0))
                row.update({key: text for key in ("question", "task", "text") if key in row})
            file.write_text("\n".join(map(json.dumps, rows)) + "\n")
            shown = place.striate("evaluate", "--out", run, "--differences", "--export", target)
        else:
            raw = json.loads((run / "scores.json").read_text())
            raw["scorers"][0]["scorer"] = text
            (run / "scores.json").write_text(json.dumps(raw))
            shown = place.striate("analyze", "--out", run, "--export", target)
        verdict = judge(shown)
        if shown.code or not target.is_file():
            return verdict
        with target.open(newline="", encoding="utf-8") as stream:
            cells = [cell for row in csv.reader(stream) for cell in row]
        loose = [
            cell for cell in cells if cell[:1] in ("=", "+", "@", "\t", "\r") or re.match(r"-[^\d.]|-\d.*[+*/(|]", cell)
        ]
        return Verdict(FAILED, f"the cell {loose[0]!r}") if loose else verdict

    return play


def _overwritten(verb: str, target: str) -> Callable[[Place], Verdict]:
    """Return a case of an export onto what is there: it is refused, and what is there stays."""

    def play(place: Place) -> Verdict:
        there, run = place.root / target, place.root / "done"
        if not there.exists():
            there.parent.mkdir(exist_ok=True)
            there.write_text("mine")
        before = there.read_bytes() if there.is_file() else b""
        more = ("--differences",) if verb == "evaluate" else ()
        shown = place.striate(verb, "--out", run, *more, "--export", there)
        if (there.read_bytes() if there.is_file() else b"") != before:
            return Verdict(FAILED, "what was there is overwritten")
        return judge(shown, refused=True)

    return play


OUTSIDE = ("../../secret.png", "SECRET", "/etc/passwd", "/proc/self/environ", "..", "link.png", "/dev/zero", "a\0b")


def _embedded(name: str) -> Callable[[Place], Verdict]:
    """Return a case of a stranger's run folder whose predictions name a picture elsewhere: it is not embedded."""

    def play(place: Place) -> Verdict:
        from PIL import Image

        run, secret = place.root / "done", place.root / "secret.png"
        Image.effect_noise((300, 300), 90).save(secret)
        (run / "link.png").symlink_to(secret)
        shutil.move(place.pack, place.root / "away")
        before = place.striate("report", "--out", run)
        size = (run / "report.html").stat().st_size if before.code == 0 else 0
        named = name.replace("SECRET", str(secret))
        for file in (run / "eval").glob("*.jsonl"):
            rows = [json.loads(line) for line in file.read_text().splitlines()]
            for row in rows:
                row.update({key: named for key in ("image", "picture") if key in row})
                row.update({key: [named] for key in ("images", "pictures") if key in row})
            file.write_text("\n".join(map(json.dumps, rows)) + "\n")
        shown = place.striate("report", "--out", run)
        grown = shown.code == 0 and (run / "report.html").stat().st_size > size + 3000
        return Verdict(FAILED, f"a picture from outside is embedded ({name})") if grown else judge(shown)

    return play


def _shards(name: str) -> Callable[[Place], Verdict]:
    """Return a case of an index of weight shards that names a file elsewhere: it is not read."""

    def play(place: Place) -> Verdict:
        from safetensors.torch import load_file

        weights = place.model / "model.safetensors"
        elsewhere = place.root / "elsewhere.safetensors"
        shutil.move(weights, elsewhere)
        (place.model / "link.safetensors").symlink_to(elsewhere)
        named = {
            "SECRET": str(elsewhere),
            "../../secret.png": "../elsewhere.safetensors",
            "link.png": "link.safetensors",
        }.get(name, name)
        index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(load_file(elsewhere), named)}
        (place.model / "model.safetensors.index.json").write_text(json.dumps(index))
        shown = place.striate("remove-layers", place.model, "--layers", "1", "--out", place.root / "new")
        run = place.striate("analyze", place.config, "--out", place.out)
        # Links are how the hub's cache keeps models.
        refused = name != "link.png"
        return worst(judge(shown, refused=refused), judge(run, refused=refused))

    return play


def cases() -> list[Case]:
    """Return all cases of what is shown and of paths in files."""
    everything = {**ESCAPES, **PAYLOADS}
    found = [
        Case("terminal", f"{where}: {label}", _in_error(where, text))
        for where in WHERE
        for label, text in ESCAPES.items()
    ]
    found += [Case("page and cards", label, _in_run(text)) for label, text in everything.items()]
    found += [
        Case("spreadsheets", f"{verb}: {label}", _exported(text, verb), ("model", "pack", "done"))
        for verb in ("evaluate", "analyze")
        for label, text in FORMULAS.items()
    ]
    found += [
        Case("exports onto files", f"{verb}: {target}", _overwritten(verb, target), ("model", "pack", "done"))
        for verb in ("evaluate", "analyze")
        for target in ("table.csv", "done/scores.json", "model/config.json", "pack", "run.yaml")
    ]
    found += [
        Case("paths in files", f"predictions: {name!r}", _embedded(name), ("model", "pack", "done")) for name in OUTSIDE
    ]
    found += [Case("paths in files", f"shards: {name!r}", _shards(name)) for name in OUTSIDE]
    return found
