"""Faults and bad inputs of every kind end right, or with one clear error (scripts/attack.py repeats them by hand)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from attack_cases import all_cases, sampled
from attack_engine import CLEAN, FAILED, WEAK, Case, Place, Shown, Verdict, judge, run_cases
from attack_ground import build_quickly, preload

SCRIPT = Path(__file__).parents[2] / "scripts" / "attack.py"
# Kinds that take a tenth of a second a case, and of which no case computes.
QUICK = ("--set", "config documents", "picture names", "grey pictures", "benchmark files", "terminal")
ERROR = "error: a\n  allowed: b\n  next:    c\n"


def test_some_of_each_quick_kind() -> None:
    cases = sampled([case for case in all_cases() if case.kind in QUICK], 2, 0)
    preload()
    results = run_cases(cases, build_quickly, workers=1)
    assert [f"{result.kind}, {result.name}: {result.why}" for result in results if result.state != CLEAN] == []


@pytest.mark.attack
def test_some_of_each_kind(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "figures.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "figures.json").read_text())["not_clean"] == []


def test_there_are_enough() -> None:
    cases = all_cases()
    assert len(sampled(cases, 66, 0)) >= 1500
    assert max(Counter((case.kind, case.name) for case in cases).values()) == 1


@pytest.mark.parametrize(
    ("shown", "state"),
    [
        (Shown(0, "done"), CLEAN),
        (Shown(1, ERROR), CLEAN),
        (Shown(2, "Usage: striate"), CLEAN),
        (Shown(1, "error: a\n  allowed: b\n"), WEAK),
        (Shown(1, ERROR + "x" * 5000), WEAK),
        (Shown(1, "no word"), FAILED),
        (Shown(1, "Traceback (most recent call last):\n" + ERROR), FAILED),
        (Shown(1, "\x1b[31m" + ERROR), FAILED),
        (Shown(70, "bug: x"), FAILED),
        (Shown(-6, ""), FAILED),
    ],
)
def test_judgement(shown: Shown, state: str) -> None:
    assert judge(shown).state == state


def test_silence_and_what_is_not_named_are_seen() -> None:
    assert judge(Shown(0, "done"), refused=True).state == FAILED
    assert judge(Shown(0, "done"), lambda: "wrong").state == FAILED
    assert judge(Shown(1, ERROR), names=("file",)).state == WEAK


def _raises(place: Place) -> Verdict:
    raise ValueError("x")


def _dies(place: Place) -> Verdict:
    os._exit(9)


def test_a_case_that_dies_has_failed() -> None:
    cases = [Case("a", "raises", _raises, ()), Case("a", "dies", _dies, ())]
    results = run_cases(cases, build_config, workers=1)
    assert [result.state for result in results] == [FAILED, FAILED]


def build_config(root: Path) -> None:
    """Write a run config that nothing reads."""
    (root / "run.yaml").write_text("")
