"""The models of a run, looked at from their configs and the headers of their weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from striate.config import RunConfig, is_builtin
from striate.errors import ModelError, first_line
from striate.pipeline.preflight import check_adapter, check_base, check_parts
from striate.printable import shown
from striate.storage.read_files import user_path

if TYPE_CHECKING:
    from striate.models.structure.meta_model import Blueprint

_UNREACHED = ("OfflineModeIsEnabled", "LocalEntryNotFoundError", "ConnectError", "ConnectionError", "TimeoutException")


def check_models(config: RunConfig, model_path: str) -> None:
    """Return if the models of a run that lie in folders have whole weights, and each adapter its base.

    `model_path` is where the run's own lies, or its hub id.

    Raises:
        ModelError: weights are missing or cut short, or an adapter can't be tuned on or compared with.
    """
    from striate.models.io.weight_files import check_weights_whole

    check_base(config, model_path)
    for path in dict.fromkeys((model_path, *config.evaluate.others.values())):
        if user_path(path).is_dir():
            check_weights_whole(user_path(path))
    for path in config.evaluate.others.values():
        check_adapter(user_path(path), model_path)


def model_plan(config: RunConfig) -> tuple[Blueprint | None, str]:
    """Return the run's model on the meta device, with what is told of it; None where its config can't be had here.

    A built-in model is not made for that, and the hub may be out of reach.

    Raises:
        ModelError: no such model, not an LVLM, or one that can't be tuned as the config says.
    """
    path = config.model.path
    if is_builtin(path):
        return None, path
    from striate.models.io.adapter_folder import base_of, is_adapter
    from striate.models.structure.anatomy import check_decoder_only
    from striate.models.structure.meta_model import blueprint

    folder = user_path(path)
    place = str(folder) if folder.is_dir() else path
    check_models(config, place)
    try:
        plan = blueprint(base_of(Path(place)) if is_adapter(Path(place)) else place, config.model.revision)
    except ModelError as error:
        if folder.is_dir() or not _unreached(error):
            raise
        return None, f"{path}, whose config can't be had here: nothing that follows from it is looked at"
    check_decoder_only(plan.anatomy)
    check_parts(config, place)
    return plan, f"{path}: {plan.anatomy.model_type}, {plan.anatomy.num_layers} decoder layers"


def unreached(path: str) -> ModelError:
    """Return the error for a model of the hub that a run could not load now."""
    return ModelError(
        f"not ready: the model {shown(path)} is not on this machine, and the hub can't be reached",
        "a model in a folder, one that was fetched before, or a hub that can be reached",
        f"fetch it where there is a network (hf download {path}), or check again with one",
    )


def _unreached(error: BaseException | None) -> bool:
    """Return whether an error came about as the hub could not be asked."""
    while error is not None:
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & set(_UNREACHED) or "couldn't connect" in first_line(error):
            return True
        error = error.__cause__ or error.__context__
    return False
