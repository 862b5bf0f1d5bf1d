#!/usr/bin/env python3
"""Write docs/config.md from the config's own models; a test checks that the page is up to date."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from striate.config import RunConfig

PAGE = Path(__file__).parent.parent / "docs" / "config.md"
INTRO = """# Run config

One YAML document is one run: `striate run RUN.yaml --out DIR`. There is a section for each stage, and `machine:`, which
is apart from the science: changing it never makes a stage stale. Unknown keys are errors, and changed settings that
have no effect beside the others are said, by `check` and by every run. `--set section.key=value` overrides one value
(in YAML). Paths are relative to the working folder; the run folder keeps the config with absolute paths, ready to run
again. `configs/` has complete examples; the [glossary](glossary.md) explains the words.

This page is written by `python scripts/config_docs.py`.
"""


def kind(annotation: Any) -> str:
    """Return a type in words."""
    if annotation is None or annotation is type(None):
        return "none"
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        named = [rule for rule in arguments[1:] if isinstance(rule, str)]
        return named[0] if named else kind(arguments[0]) + bounds(FieldInfo.from_annotation(annotation))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(kind(argument) for argument in arguments)
    if origin is Annotated:
        return f"{kind(arguments[0])}{bounds(arguments[1])}"
    if origin is tuple:
        return f"list of {kind(arguments[0])}"
    if origin is dict:
        return f"mapping of {kind(arguments[0])} to {kind(arguments[1])}"
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}[annotation.__name__]


def bounds(field: FieldInfo) -> str:
    """Return what a number may be at least and at most, in words."""
    words = {"ge": "from", "gt": "over", "le": "to", "lt": "below"}
    found = {name: getattr(rule, name) for rule in field.metadata for name in words if hasattr(rule, name)}
    return "".join(f", {words[name]} {value:,}" for name, value in found.items() if name in ("ge", "gt")) + "".join(
        f" {words[name]} {value:,}" for name, value in found.items() if name in ("le", "lt")
    )


def default(field: FieldInfo) -> str:
    """Return a field's default as YAML writes it."""
    if field.is_required():
        return "(required)"
    value = field.get_default(call_default_factory=True)
    if value in ("", {}):
        return "none"
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if value is None:
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def rows(section: type[BaseModel], prefix: str) -> list[str]:
    """Return the table rows of a section, nested sections included."""
    lines = []
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            lines += rows(inner, f"{prefix}{name}.")
        else:
            lines.append(f"| `{prefix}{name}` | {kind(inner)}{bounds(field)} | {default(field)} |")
    return lines


def page() -> str:
    """Return the whole page."""
    parts = [INTRO]
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            words = " ".join((section.__doc__ or "").split())
            parts.append(f"\n## {name}\n\n{words}\n\n| key | value | default |\n|---|---|---|")
            parts += rows(section, f"{name}.")
    parts.append("\n## Top level\n\n| key | value | default |\n|---|---|---|\n| `version` | `1` | `1` |")
    parts.append(f"| `seed` | whole number{bounds(RunConfig.model_fields['seed'])} | `0` |")
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
