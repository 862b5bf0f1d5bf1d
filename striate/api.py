"""Python calls that differ from a stage's own: a stage returns records, these return what a notebook wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from pydantic import ValidationError
from torch import nn

from striate.artifacts import CompensationMethod, PruneRecord, Region, Scores
from striate.config import HealSection, MachineSection, TrainSection
from striate.data.collate import Collator
from striate.data.samples import Sample
from striate.demo.places import locate_model
from striate.errors import ConfigError
from striate.healing.sample_mix import healing_samples
from striate.healing.teacher_pass import teacher_rows
from striate.models.io import load
from striate.models.io.load import Loaded
from striate.printable import shown
from striate.progress import Silent
from striate.pruning.compensation.compensate import compensate as compensate_for
from striate.pruning.greedy_ranking import MEASURES, Question, calibration, rank_greedily
from striate.pruning.position_order import ORDERS
from striate.pruning.removal import layers_to_remove
from striate.stages import heal as healing
from striate.stages import prune as stage

_MAX_LENGTH, _BATCH = 2048, 8
_Model = TypeVar("_Model", bound=nn.Module)


def load_model(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    merge: bool = False,
    quiet: bool = True,
) -> Loaded:
    """Return the LVLM at `path` in eval mode, with its processor: as `striate.models.io.load.load_model`, or built in.

    Args:
        path: a Hugging Face LVLM folder, a hub id, a PEFT adapter folder, or `builtin` for the small LVLM that comes
            with striate, which is fetched and built once.
        device: `auto` (CUDA where there is some, else CPU), `cpu`, `cuda`, `cuda:N` or `mps`.
        dtype: `auto` (float32 on CPU, bfloat16 elsewhere), `float32`, `bfloat16` or `float16`.
        revision: branch, tag or commit of a hub id.
        merge: add an adapter into the weights, which gives a plain transformers model.
        quiet: show no progress bars and warnings of transformers.

    Raises:
        ModelError: no such path, a text-only model, missing or damaged weights, base model or processor.
    """
    place = locate_model(str(path), Silent())
    return load.load_model(place, device=device, dtype=dtype, revision=revision, merge=merge, quiet=quiet)


def prune(
    model: _Model,
    region: Region,
    *,
    remove: int | str,
    scores: Scores | None = None,
    scorer: str | None = None,
    samples: Sequence[Sample] | None = None,
    processor: Any = None,
    compensate: CompensationMethod | Literal["none"] = "none",
    heal: HealSection | Mapping[str, Any] | None = None,
    train: TrainSection | None = None,
) -> _Model:
    """Return `model`, in place, without its `remove` least important decoder layers outside `region`.

    With `samples`, layers go one after the other by what the model's own answers lose, each candidate asked again after
    every cut (`answer-loss`, or `scorer="answer-accuracy"`); else `scores` rank them. With `heal` the smaller model is
    trained on `samples` afterwards, towards their answers and towards what the whole model said of them. The result is
    an ordinary model: `save_pretrained` writes a checkpoint that loads without striate. For errors see
    `striate.stages.prune.prune` and `striate.stages.heal.heal`.

    Args:
        model: an LVLM without adapters (merge them first).
        region: layers that stay.
        remove: how many of the others go, or a percentage of all layers such as `25%`.
        scores: of `striate.analyze`.
        scorer: which of `scores`, or what is asked of `samples`.
        samples: with answers. Those that rank layers are best held out from training; those that heal are trained on,
            and `heal.share` and `heal.text` are shares of them.
        processor: the model's, needed with `samples`.
        compensate: how kept layers are changed to stand in for removed ones, by `samples`: `refit` or `scale`
            (`striate.pruning.compensation`); beside `scores` or a scorer of places, samples are read for that alone.
        heal: the settings of healing, such as `{"share": "5%", "lr": 1e-4}`; None heals nothing.
        train: further settings of training, such as batch size; None takes striate's defaults.
    """
    ranking = (remove, scores, scorer)
    section = _heal_section(heal, samples, processor)
    if section is None:
        return cast(_Model, _pruned(model, region, ranking, samples, processor, compensate)[0])
    train = train or TrainSection()
    machine = MachineSection(micro_batch=min(_BATCH, train.batch_size))
    chosen = healing_samples(samples or (), section, train.batch_size, 0)
    collator = Collator(processor, train.max_length, train=True)
    teacher = teacher_rows(model, chosen, collator, section, batch_size=machine.micro_batch)
    read = compensate != "none" or not (scores is not None or scorer in ORDERS)
    smaller, record = _pruned(model, region, ranking, samples if read else None, processor, compensate)
    healed, _ = healing.heal(smaller, processor, healing.Healing(record, chosen, teacher, section, train, machine))
    return cast(_Model, healed)


def _pruned(
    model: nn.Module,
    region: Region,
    ranking: tuple[int | str, Scores | None, str | None],
    samples: Sequence[Sample] | None,
    processor: Any,
    compensate: CompensationMethod | Literal["none"],
) -> tuple[nn.Module, PruneRecord]:
    """Return the smaller model and the record of it; `ranking` is how many layers go, and what ranks them."""
    remove, scores, scorer = ranking
    count = layers_to_remove(remove, region.num_layers)
    if samples is None and compensate == "none":
        return stage.prune(model, region, count, scores, scorer)
    placed = scores is not None or scorer in ORDERS
    name = scorer if placed else scorer or "answer-loss"
    _check_samples(samples, processor, name, placed, compensate)
    stage.check_removal(region, count)
    batches = calibration(samples or (), Collator(processor, _MAX_LENGTH, train=True), _BATCH)
    cuts = () if placed else rank_greedily(model, batches, region, count, Question(str(name)))
    change = None if compensate == "none" else partial(compensate_for, model, batches, how=compensate)
    return stage.prune(model, region, count, scores, name, cuts=cuts, compensate=change)


def _check_samples(
    samples: Sequence[Sample] | None, processor: Any, name: str | None, placed: bool, compensate: str
) -> None:
    """Raise where samples lack what they are read with, or are given and not read."""
    if samples is None or (processor is None and compensate != "none"):
        given = f"compensate={compensate!r} with {'no samples' if samples is None else 'no processor'}"
        raise ConfigError(given, "samples to fit to, and the model's processor", "pass samples=... and processor=...")
    unread, unknown = placed and compensate == "none", not placed and name not in MEASURES
    if unread or unknown or processor is None:
        given = "scores beside samples" if unread else f"scorer {name!r}" if unknown else "no processor"
        raise ConfigError(
            f"samples to rank layers by, with {given}",
            f"samples with a processor and scorer {' or '.join(MEASURES)}, or scores",
            "pass processor=..." if processor is None else "name such a scorer, or leave samples out",
        )


def _heal_section(
    heal: HealSection | Mapping[str, Any] | None, samples: Sequence[Sample] | None, processor: Any
) -> HealSection | None:
    """Return the settings of healing, checked; None where nothing is healed.

    Raises:
        ConfigError: settings that can't be, or nothing to train on.
    """
    if heal is None:
        return None
    if not isinstance(heal, HealSection | Mapping):
        raise ConfigError(
            f"heal {shown(heal)}", "settings by name, with steps or share", 'for example heal={"share": "5%"}'
        )
    try:
        section = heal if isinstance(heal, HealSection) else HealSection.model_validate(dict(heal))
    except ValidationError as error:
        told = [(".".join(map(str, one["loc"])), one["msg"].removeprefix("Value error, ")) for one in error.errors()]
        problems = "; ".join(f"{place}: {why}" if place else why for place, why in told)
        raise ConfigError(f"heal {problems}", "the keys and values of heal in docs/config.md", "fix heal") from error
    if section.on and samples and processor is not None:
        return section
    raise ConfigError(
        "heal without samples to train on, their processor, or a length",
        "samples=..., processor=..., and heal with steps or share",
        "pass them, or leave heal out",
    )
