"""Which linear layers of the region get adapters: all of them, attention or MLP alone, or those of some names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from striate.errors import TrainingError, did_you_mean
from striate.models.structure.anatomy import Anatomy, plain_name

ALL, ATTENTION, MLP = GROUPS = ("all", "attention", "mlp")
_ATTENTION = ("attn", "attention")
_MLP = ("mlp", "ffn", "feed_forward", "expert", "moe", "densereludense", "intermediate")
_MLP_NAMES = frozenset({"fc1", "fc2", "output"})


def inner_name(anatomy: Anatomy, name: str) -> str:
    """Return a module's name within its decoder layer, such as `self_attn.q_proj`; PEFT's names work too."""
    plain = plain_name(name)
    for layers in (anatomy.layers_name, *anatomy.companion_names):
        if plain.startswith(f"{layers}."):
            return plain.removeprefix(f"{layers}.").partition(".")[2]
    return plain


def chosen_modules(inner: Mapping[str, str], modules: str) -> list[str]:
    """Return the names among `inner`, each with its name within its layer, that `modules` means.

    `modules` is words joined by `+`: `all`, `attention`, `mlp`, a module's name (`q_proj`), its end (`mlp.up_proj`), or
    the name without `_proj` (`gate`, which a joint `gate_up_proj` has too).

    Raises:
        TrainingError: a word that fits no linear layer.
    """
    words = [word.strip() for word in modules.split("+")]
    for word in words:
        if not any(_fits(word, name) for name in inner.values()):
            raise _unknown_module(word, inner.values())
    return [name for name, within in inner.items() if is_chosen(within, modules)]


def is_chosen(inner: str, modules: str) -> bool:
    """Return whether `modules` means the linear layer of the name `inner` within its decoder layer."""
    return any(_fits(word.strip(), inner) for word in modules.split("+"))


def check_patterns(setting: str, patterns: Mapping[str, int], targets: Sequence[str]) -> None:
    """Return if every pattern fits one of `targets`: a name or its end, as PEFT reads it, regular expressions too.

    Raises:
        TrainingError: one fits none, or is no regular expression.
    """
    known = {name.rpartition(".")[2] for name in targets}
    for pattern in patterns:
        try:
            fits = any(re.match(rf"(.*\.)?({pattern})$", name) for name in targets)
        except re.error as error:
            raise _unknown_pattern(setting, f"{pattern!r} can't be read: {error}", known, pattern) from error
        if not fits:
            raise _unknown_pattern(setting, f"{pattern!r} fits no module with an adapter", known, pattern)


def value_of(patterns: Mapping[str, int], name: str, default: int) -> int:
    """Return the rank or alpha that PEFT gives the module `name`: that of the first pattern which fits its end."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _fits(word: str, name: str) -> bool:
    parts = name.lower().split(".")
    attention = any(kind in part for kind in _ATTENTION for part in parts)
    if word in GROUPS:
        mlp = any(kind in part for kind in _MLP for part in parts) or not _MLP_NAMES.isdisjoint(parts)
        return word == ALL or (attention if word == ATTENTION else mlp and not attention)
    without = [part.split("_")[:-1] for part in name.split(".") if part.endswith("_proj")]
    return bool(word) and (f".{word}." in f".{name}." or any(word in halves for halves in without))


def _unknown_module(word: str, inner: Iterable[str]) -> TrainingError:
    known = sorted({name.rpartition(".")[2] for name in inner})
    groups = [group for group in GROUPS if any(_fits(group, name) for name in inner)]
    return TrainingError(
        f"train.lora.modules: {word!r} is no linear layer of the region",
        f"{', '.join(groups)}, or of {', '.join(known)} one or several joined by +",
        f"{did_you_mean(word, [*groups, *known])}`striate inspect MODEL` shows the model's parts",
    )


def _unknown_pattern(setting: str, what: str, known: Iterable[str], pattern: str) -> TrainingError:
    return TrainingError(
        f"train.lora.{setting}: {what}",
        f"names of modules with adapters, or their ends: {', '.join(sorted(known))}",
        f"{did_you_mean(pattern, known)}leave it out, or choose its module with train.lora.modules",
    )
