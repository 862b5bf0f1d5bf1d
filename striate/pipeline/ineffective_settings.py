"""Settings that were changed and that nothing reads, the others being as they are: said, as a person counts on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from striate.config import RunConfig, is_builtin
from striate.storage.read_files import user_path

# Kept here by name, as looking them up imports torch; a test compares them with the scorers.
OF_PAIRS = frozenset({"token-swap", "token-swap-flips", "token-swap-onward"})
OF_CHANGE = frozenset({"parameter-change", "angular-change"})
OF_NO_SAMPLES = OF_PAIRS | OF_CHANGE | {"spectrum-snr"}

Rule = tuple[str, Callable[[RunConfig], bool], str]
RULES: tuple[Rule, ...] = (
    (
        "train.lora.r train.lora.alpha train.lora.dropout train.lora.modules train.lora.use_rslora train.lora.use_dora"
        " train.lora.rank_pattern train.lora.alpha_pattern",
        lambda run: run.train.method == "full" and not (run.heals and run.heal.method == "lora"),
        "train.method is full",
    ),
    (
        "train.lr",
        lambda run: run.select.region == "none" and not run.heals,
        "select.region is none: train.projector_lr is the projector's",
    ),
    ("train.projector_lr", lambda run: run.train.projector == "frozen", "train.projector is frozen"),
    (
        "train.vision_lr train.vision_layers",
        lambda run: run.train.vision == "frozen",
        "train.vision is frozen",
    ),
    ("train.epochs", lambda run: run.train.max_steps is not None, "train.max_steps is set"),
    (
        "train.validate_every train.metric_for_best_model train.early_stopping_threshold",
        lambda run: not run.data.validate,
        "data.validate is not set",
    ),
    (
        "train.metric_for_best_model",
        lambda run: bool(run.data.validate) and not any(run.train.on_validation.values()),
        "train.keep is last, and train.early_stopping_patience is not set",
    ),
    (
        "train.early_stopping_threshold",
        lambda run: bool(run.data.validate) and run.train.early_stopping_patience is None,
        "train.early_stopping_patience is not set",
    ),
    ("train.image_shift train.image_check", lambda run: run.train.image_tokens == "all", "train.image_tokens is all"),
    ("train.frozen", lambda run: run.select.region == "all", "select.region is all"),
    (
        "analyze.pairs",
        lambda run: OF_PAIRS.isdisjoint(run.analyze.scorers),
        "only the scorers token-swap... draw pairs",
    ),
    (
        "analyze.base",
        lambda run: OF_CHANGE.isdisjoint(run.analyze.scorers),
        "no scorer of analyze.scorers compares with a checkpoint",
    ),
    (
        "analyze.samples analyze.by",
        lambda run: OF_NO_SAMPLES.issuperset(run.analyze.scorers),
        "no scorer of analyze.scorers reads samples",
    ),
    (
        "data.calibration",
        lambda run: OF_NO_SAMPLES.issuperset(run.analyze.scorers) and not run.prune.reads_samples,
        "no scorer reads samples",
    ),
    ("prune.until_packs", lambda run: not run.prune.until, "prune.until is not set"),
    ("prune.scorer prune.compensate prune.when", lambda run: not run.prune.remove, "prune.remove is 0"),
    (
        "prune.samples",
        lambda run: not run.prune.reads_samples,
        "no layers are ranked by answers or compensated for",
    ),
    (
        "prune.text_weight",
        lambda run: not (run.prune.remove and run.prune.greedy),
        "no layers are ranked by answers",
    ),
    (
        "heal.steps heal.share",
        lambda run: not run.prune.remove,
        "prune.remove is 0",
    ),
    (
        "heal.region heal.method heal.lr heal.ce heal.kl heal.hidden heal.top_k heal.text heal.text_data",
        lambda run: not run.heals,
        "nothing is healed: that takes prune.remove, and heal.steps or heal.share",
    ),
    ("heal.top_k", lambda run: run.heals and not run.heal.kl, "heal.kl is 0"),
    ("heal.text_data", lambda run: run.heals and not run.heal.text, "heal.text is 0"),
    (
        "evaluate.max_new_tokens evaluate.bootstrap evaluate.baseline evaluate.floor machine.eval_tokens"
        " report.examples",
        lambda run: not run.evaluate.packs,
        "evaluate.packs is empty",
    ),
    (
        "evaluate.limit evaluate.models evaluate.others machine.eval_batch",
        lambda run: not run.evaluate.packs and not run.evaluate.suites,
        "evaluate.packs and evaluate.suites are empty",
    ),
    ("evaluate.effect", lambda run: not run.evaluate.gate, "evaluate.gate is not set"),
    ("machine.pack_tokens", lambda run: not run.train.packing, "train.packing is false"),
    ("machine.cache_folder", lambda run: run.machine.cache_vision != "disk", "machine.cache_vision is not disk"),
    ("model.revision", lambda run: _is_local(run.model.path), "model.path is no id of the hub"),
)


def ineffective_settings(config: RunConfig, *, curve: bool = False) -> Iterator[str]:
    """Yield a line for every reason why settings that differ from their defaults have no effect.

    Settings under an earlier name are said too. A `curve` removes layers whatever `prune.remove` is.
    """
    if config.train.train_projector is not None:
        yield f"train.train_projector is read as train.projector: {config.train.projector}, which has taken its place"
    prune = config.prune
    judged = config.model_copy(update={"prune": prune.model_copy(update={"remove": prune.remove or 1})})
    for names, holds, why in RULES:
        changed = [name for name in names.split() if _value(config, name) != _default(name)]
        if changed and holds(judged if curve else config):
            yield f"no effect: {', '.join(changed)} ({why})"


def _value(config: Any, name: str) -> Any:
    for part in name.split("."):
        config = getattr(config, part)
    return config


def _default(name: str) -> Any:
    section: Any = RunConfig
    *sections, last = name.split(".")
    for part in sections:
        section = section.model_fields[part].annotation
    return section.model_fields[last].get_default(call_default_factory=True)


def _is_local(path: str) -> bool:
    return is_builtin(path) or user_path(path).is_dir()
