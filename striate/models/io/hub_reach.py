"""Whether the hub answers about a repository, found out within seconds; where it does not, the copy of last time."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError

from striate.errors import ModelError, first_line
from striate.storage.timely import SECONDS, within


@lru_cache(maxsize=64)
def copy_if_silent(name: str, revision: str | None = None) -> Path | None:
    """Return None where the hub answers that it has the repository `name`, or is not to be asked (HF_HUB_OFFLINE).

    Where it does not answer, that is the folder of what was downloaded earlier.

    Raises:
        ModelError: the hub has no such repository, or not for this person; or it is silent, and there is no copy.
    """
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        within(SECONDS, lambda: HfApi().model_info(name, revision=revision, timeout=2 * SECONDS), constants.ENDPOINT)
        return None
    except GatedRepoError as error:
        raise ModelError(
            f"the hub gives {name!r} only to those whom its owner lets: {first_line(error)}",
            "a repository that you have access to",
            f"ask for access at {constants.ENDPOINT}/{name}, then `hf auth login`",
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 500
        if status < 500:
            raise _unknown(name, first_line(error)) from error
        reason = first_line(error)
    # What a connection raises depends on the library below, and on its version.
    except Exception as error:
        reason = first_line(error)
    if copy := _copy(name, revision):
        return copy
    raise _out_of_reach(name, f"the hub can't be reached ({reason})", "check the network")


def check_reach(name: str, revision: str | None = None) -> None:
    """Raise within seconds for a repository of which nothing can be had: as `copy_if_silent`, and offline at once.

    Raises:
        ModelError: see `copy_if_silent`; or HF_HUB_OFFLINE is set, and nothing was downloaded before.
    """
    if constants.HF_HUB_OFFLINE and _copy(name, revision) is None:
        raise _out_of_reach(name, "HF_HUB_OFFLINE is set", "unset HF_HUB_OFFLINE")
    copy_if_silent(name, revision)


def _out_of_reach(name: str, reason: str, next_step: str) -> ModelError:
    return ModelError(
        f"no model at {name!r}: {reason}, and nothing of it was downloaded before",
        "a folder of this machine, or a hub id with a network",
        f"check the path; for a hub id, {next_step}",
    )


def _copy(name: str, revision: str | None) -> Path | None:
    """Return the folder of what was downloaded earlier, if anything was."""
    files = (try_to_load_from_cache(name, file, revision=revision) for file in ("config.json", "adapter_config.json"))
    return next((Path(file).parent for file in files if isinstance(file, str)), None)


def _unknown(name: str, reason: str) -> ModelError:
    return ModelError(
        f"no model at {name!r}: {reason}",
        "a folder, or a hub id such as llava-hf/llava-1.5-7b-hf",
        "check the path; for a private repository, `hf auth login`",
    )
