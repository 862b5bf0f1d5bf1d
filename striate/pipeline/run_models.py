"""Which models a verb was pointed at: those of a run folder by their labels, or the one of a folder or hub id."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from striate.config import BUILTIN, OWN_MODELS, RunConfig, load_config, looks_like_hub_id
from striate.demo.places import locate_model
from striate.errors import ConfigError, ModelError
from striate.pipeline.model_origins import FOLDERS
from striate.pipeline.run_inputs import MODEL_CONFIGS, check_model_path
from striate.printable import shown
from striate.progress import Progress, Silent, warn
from striate.runs.folder import CONFIG_FILE, RUN_FILE
from striate.storage.read_files import user_path

UNHEALED = "unhealed"
"""The model of a run that comes before its pruned one: as large and as fast, and asked only where it is named."""

ALONE = "model"
"""The label of a model that belongs to no run."""


@dataclass(frozen=True)
class ModelPlace:
    """One model, where it lies; no weights are read.

    Attributes:
        label: `start`, `tuned`, `unhealed` or `pruned` in a run; `model` without one.
        path: a whole path of its folder, or a hub id.
        base: the model under an adapter, a folder or hub id; None of a whole model, and of a hub id not fetched yet.
        revision: branch, tag or commit of a hub id; None for its newest.
        run: the run folder that it belongs to, if any.
    """

    label: str
    path: str
    base: str | None = None
    revision: str | None = None
    run: Path | None = None

    @property
    def adapter(self) -> bool:
        """Whether `path` is the folder of an adapter."""
        return self.base is not None


def is_run(source: str | Path) -> bool:
    """Return whether `source` is a run folder."""
    return (user_path(source) / RUN_FILE).is_file()


def models_of(source: str | Path, progress: Progress | None = None) -> dict[str, ModelPlace]:
    """Return the models of `source` by label, in the order in which a run makes them, the last one last.

    Args:
        source: a run folder, with the models that it has by now, the start first; or a model's folder, an adapter's
            folder, a hub id or `builtin`, which is one model labelled `model`.
        progress: told where the built-in LVLM must be built first.

    Raises:
        ModelError: neither a folder with a model or a run, nor a hub id.
        StriateError: the run's config or an adapter's can't be read.
    """
    if is_run(source):
        return _of_run(user_path(source).resolve(), progress or Silent())
    text = str(source)
    _check_source(text)
    return {ALONE: _place(ALONE, reached(locate_model(text, progress or Silent())))}


def reached(place: str, revision: str | None = None) -> str:
    """Return `place`, a folder or a hub id that can be had: libraries that take long to load come after it.

    Raises:
        ModelError: the hub has no such model, or does not answer within seconds and nothing was fetched before.
    """
    if looks_like_hub_id(place) and not user_path(place).exists():
        from striate.models.io.hub_reach import check_reach

        check_reach(place, revision)
    return place


def model_of(source: str | Path, label: str | None = None, progress: Progress | None = None) -> ModelPlace:
    """Return the model of `source` called `label`; None for what a run made last: pruned, else tuned.

    Raises:
        ModelError: as `models_of`, or `source` has no such model.
    """
    models = models_of(source, progress)
    if label is None:
        last = list(models.values())[-1]
        if last.label == UNHEALED:
            warn_unhealed(models, progress or Silent())
        if last.label != OWN_MODELS[0]:
            return last
        raise ModelError(
            f"{source} has made no model yet", "a run folder where `striate train` has run", "run `striate train` first"
        )
    if label in models:
        return models[label]
    if ALONE in models:
        raise ModelError(
            f"{source} is one model, and --model {shown(label)} chooses among those of a run",
            "a run folder, or no --model",
            "leave --model out",
        )
    raise ModelError(
        f"{source} has no model {shown(label)}",
        ", ".join(models),
        f"choose one of these, or run the stage that makes {label} first"
        if label in OWN_MODELS and is_run(source)
        else "choose one of these",
    )


def warn_unhealed(models: Mapping[str, ModelPlace], progress: Progress) -> None:
    """Say of a run that stopped between pruning and healing which model it has; of any other models nothing."""
    if UNHEALED in models and "pruned" not in models:
        run = shlex.quote(str(models[UNHEALED].run))
        warn(
            progress,
            f"healing has not finished: the pruned model is {UNHEALED!r}; `striate prune --out {run}` heals it",
        )


def revision_of(place: ModelPlace, given: str | None) -> str | None:
    """Return the branch, tag or commit to read of `place`: what was `given`, else its own.

    Raises:
        ModelError: one was given for a folder, which has none.
    """
    if given and Path(place.path).is_dir():
        raise ModelError(
            f"--revision {shown(given)} is of a model on the hub, and {place.path} is a folder",
            "a hub id, or no --revision",
            "leave --revision out",
        )
    return given or place.revision


def config_of(run: Path) -> RunConfig:
    """Return the config of the run folder `run`.

    Raises:
        ConfigError: it has none, or it can't be read.
    """
    if not (run / CONFIG_FILE).is_file():
        raise ConfigError(f"{run} has no {CONFIG_FILE}", "a run folder as striate writes it", "copy it again, whole")
    return load_config(run / CONFIG_FILE)


def _of_run(run: Path, progress: Progress) -> dict[str, ModelPlace]:
    config = config_of(run)
    start = locate_model(config.model.path, progress)
    revision = None if config.model.path == BUILTIN else config.model.revision
    found = {OWN_MODELS[0]: _place(OWN_MODELS[0], start, revision, run)}
    # Layers go after the tuning, or before it.
    order = (UNHEALED, "pruned", "tuned") if config.prune.first else ("tuned", UNHEALED, "pruned")
    for label in order:
        folder = run / FOLDERS[label]
        if any((folder / name).is_file() for name in MODEL_CONFIGS):
            found[label] = _place(label, str(folder), None, run)
    return found


def _place(label: str, path: str, revision: str | None = None, run: Path | None = None) -> ModelPlace:
    from striate.models.io.adapter_folder import base_of, is_adapter

    folder = Path(path)
    return ModelPlace(label, path, base_of(folder) if is_adapter(folder) else None, revision, run)


def _check_source(text: str) -> None:
    if not text.strip():
        raise ModelError(
            "no model was named: the name is empty", "a run folder, a model's folder or a hub id", "name one"
        )
    if user_path(text).is_file():
        raise ModelError(
            f"{text} is a file", "a run folder, a model's folder or a hub id", "give the folder that the file is in"
        )
    if text != BUILTIN and not user_path(text).is_dir() and not looks_like_hub_id(text):
        raise ModelError(
            f"no run or model at {text!r}: there is no such folder",
            "a run folder, a model's folder, a hub id such as owner/name, or builtin",
            "check the path",
        )
    folder = user_path(text)
    if (folder / CONFIG_FILE).is_file() and not any((folder / name).is_file() for name in MODEL_CONFIGS):
        raise ModelError(
            f"{text} has {CONFIG_FILE} and no {RUN_FILE}: no stage of that run has finished",
            "a run folder, a model's folder or a hub id",
            f"run `striate run {shlex.quote(str(folder / CONFIG_FILE))} --out {shlex.quote(text)}`, or copy it again",
        )
    check_model_path(text, "the path")
