"""Every skip in the tests stands in tests/README.md with what it takes to run."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parents[1]
NAMES = {"skip", "skipif", "xfail", "importorskip"}


def _text(node: ast.expr) -> str:
    """Return a text in the source, with `…` for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    return str(node.value) if isinstance(node, ast.Constant) else "…"


def _reason(call: ast.Call) -> str:
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "reason" in named:
        return _text(named["reason"])
    return f"needs {_text(call.args[0])}" if ast.unparse(call.func).endswith("importorskip") else _text(call.args[0])


def _skips() -> set[tuple[str, str]]:
    """Return reason and tier of every skip."""
    return {
        (_reason(node), path.relative_to(TESTS).parts[0])
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in NAMES
        if ast.unparse(node.func.value).partition(".")[0] == "pytest"
    }


def _listed() -> set[tuple[str, str]]:
    """Return reason and tier of every row of the table."""
    rows = (TESTS / "README.md").read_text(encoding="utf-8").partition("## Skips")[2].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows if row.startswith("| ")][1:]
    assert all(runs for _, runs, _ in cells)
    return {(reason, tier.strip("` /")) for reason, _, tiers in cells for tier in tiers.split(",")}


def test_every_skip_is_listed_with_its_reason() -> None:
    skips, listed = _skips(), _listed()
    assert not skips - listed, f"not in tests/README.md: {sorted(skips - listed)}"
    assert not listed - skips, f"no longer in the tests: {sorted(listed - skips)}"
