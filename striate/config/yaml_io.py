"""Read run configs from YAML and write them back, with errors that name the key."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from striate.config.run_config import RunConfig
from striate.errors import ConfigError, did_you_mean
from striate.printable import shown
from striate.storage.read_files import Form, parse_yaml, read_yaml

CONFIG_FILE = Form(ConfigError, "a YAML mapping", most_bytes=2**20)
CONFIG_VALUE = Form(ConfigError, "a number, word or list", "quote it")
# More than any key has.
MOST_PARTS = 8


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Return the config in `path` with `overrides` (`section.key=value`, value in YAML) applied.

    Raises:
        ConfigError: unreadable, not YAML, unknown keys (with their path), or wrong values; all problems at once.
    """
    raw = read_yaml(path, CONFIG_FILE)
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds {_kind(raw)}, not a mapping", "sections such as model:, data:", "see configs/")
    if "base" in raw and raw.keys() & {"grid", "runs", "folders"}:
        raise ConfigError(
            f"{path} is a sweep, not the config of a run",
            "sections such as model:, data:",
            f"run it with `striate sweep {path}`, or list its runs with --plan",
        )
    return parse_config(raw, overrides, source=str(path))


def parse_config(raw: dict[str, Any], overrides: Sequence[str] = (), source: str = "config") -> RunConfig:
    """Return the config that the mapping `raw` describes, with `overrides` applied; `source` names it in errors."""
    whole = raw
    for override in overrides:
        whole = _with_override(whole, override)
    try:
        return RunConfig.model_validate(whole)
    except ValidationError as error:
        problems = [_problem(dict(item), source) for item in error.errors()]
        wrong = "what --set gives" if overrides and _is_valid(raw) else source
        raise ConfigError("\n".join(problems), "the keys and values of docs/config.md", f"fix {wrong}") from error


def _is_valid(raw: dict[str, Any]) -> bool:
    try:
        RunConfig.model_validate(raw)
    except ValidationError:
        return False
    return True


def dump_config(config: RunConfig) -> str:
    """Return `config` as YAML that `load_config` reads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _with_override(raw: dict[str, Any], override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            f"--set {shown(override)} has no '='", "--set section.key=value", "for example --set train.lr=1e-4"
        )
    value = parse_yaml(text, f"--set {shown(override)}: the value", CONFIG_VALUE)
    parts = key.strip().split(".")
    if len(parts) > MOST_PARTS:
        raise ConfigError(f"--set {shown(override)} has {len(parts)} parts", "--set section.key=value", "check the key")
    return _put(raw, parts, value, override)


def _put(raw: dict[str, Any], keys: list[str], value: Any, override: str) -> dict[str, Any]:
    """Return a copy of `raw` with `value` at the path `keys`; `override` is the setting as it was written."""
    head, *rest = keys
    if not rest:
        return {**raw, head: value}
    inner = raw.get(head)
    if not isinstance(inner, dict | None):
        raise ConfigError(
            f"--set {shown(override)}: {head!r} is not a section", "--set section.key=value", "check the key"
        )
    return {**raw, head: _put(inner or {}, rest, value, override)}


def _problem(item: dict[str, Any], source: str) -> str:
    place = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{source}: unknown key {place!r}{_suggestion(item['loc'])}"
    if item["type"] == "tuple_type" and isinstance(item["input"], str):
        return f"{source}: {place}: {shown(item['input'])} is no list: write [{item['input']}]"
    message = item["msg"].removeprefix("Value error, ")
    value = "" if item["type"] in ("missing", "value_error") else f" (given: {shown(item['input'])})"
    if run_on := _run_on(item):
        name, _, meant = run_on.rpartition(":")
        message, value = f"{shown(run_on)} is one word: write a space behind the colon, {{{name}: {meant}}}", ""
    return f"{source}: {place + ': ' if place else ''}{message}{value}"


def _run_on(item: dict[str, Any]) -> str:
    """Return the key that YAML read as one word with its value, as `image:file` without a space; or nothing."""
    given = item["input"]
    keys = list(given) if isinstance(given, dict) and not any(given.values()) else item["loc"] if given is None else ()
    # Places such as hf:owner/name have a colon of their own.
    own = {key: key.startswith(("hf:", "builtin:")) for key in keys if isinstance(key, str)}
    return next((key for key, one in own.items() if key.count(":") > one), "")


def _suggestion(location: tuple[Any, ...]) -> str:
    """Return a did-you-mean with the whole key for the unknown last one of `location`, or nothing."""
    fields = _fields(RunConfig)
    for part in location[:-1]:
        fields = _fields(fields[part].annotation) if part in fields else {}
    path, name = "".join(f"{part}." for part in location[:-1]), str(location[-1])
    # A key without its section, such as lr for train.lr.
    heads = [] if path else [head for head, field in fields.items() if name in _fields(field.annotation)]
    hint = did_you_mean(name, [name], f"{heads[0]}.") if heads else did_you_mean(name, fields, path)
    return f"; {hint.strip()}" if hint else ""


def _fields(section: Any) -> dict[str, FieldInfo]:
    """Return the keys of a section of the config; none of what is no section."""
    return section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
