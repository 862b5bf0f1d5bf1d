"""Data sets of the Hugging Face hub, fetched once by the package `datasets` and read from its cache. No torch."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from striate.errors import DataError, first_line
from striate.printable import shown
from striate.progress import fetching
from striate.storage.fingerprints import fingerprint_of
from striate.storage.hub_bars import bars_off, hub_bars_off
from striate.storage.noted import read_note, write_note
from striate.storage.timely import SECONDS, within

KIND, PREFIX = "hub-data", "hf:"
_NAME = re.compile(
    r"hf:(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)(?:/(?P<config>[^:@/]+))?(?:@(?P<revision>[^:@]+))?(?::(?P<split>[\w.-]+))?"
)
_ALLOWED = "hf:owner/name, hf:owner/name/CONFIG, each with @REVISION and :SPLIT where wanted (train if left out)"


class HubData(NamedTuple):
    """A data set of the hub: its Arrow files on this machine, and the folder below which its pictures may lie."""

    files: tuple[Path, ...]
    folder: Path


def is_hub(path: Path | str) -> bool:
    """Return whether a place is a data set of the hub."""
    return str(path).startswith(PREFIX)


def fetch_hub_data(place: str) -> HubData:
    """Return the files of `hf:owner/name[/config][@revision][:split]`, fetched where they are not here yet.

    What was fetched once stays as it is: a newer version is had by naming its revision.

    Raises:
        DataError: the name can't be read, `datasets` is not installed, or the data set can't be fetched.
    """
    named = _NAME.fullmatch(place)
    if named is None:
        raise DataError(f"{shown(place)} is no data set of the hub", _ALLOWED, "check its name on huggingface.co")
    key = fingerprint_of({"place": place})
    noted = read_note(KIND, key)
    files = tuple(map(Path, noted)) if noted else ()
    if not files or not all(file.is_file() for file in files):
        files = _fetched(place, named)
        write_note(KIND, key, list(map(str, files)))
    return HubData(files, _pictures_folder())


def _fetched(place: str, named: re.Match[str]) -> tuple[Path, ...]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"{place} is fetched with the package datasets, which is not installed",
            "striate with its extra 'hub'",
            "pip install 'striate[hub]', or name files that lie on this machine",
        ) from error
    wanted = named["split"] or "train"
    _check_reach(place, named)
    fetching().say(f"fetch {place}")
    try:
        with hub_bars_off(), bars_off(datasets.utils):
            data: Any = datasets.load_dataset(
                f"{named['owner']}/{named['name']}",
                named["config"],
                split=wanted,
                revision=named["revision"],
                keep_in_memory=False,
            )
        files = tuple(Path(file["filename"]) for file in data.cache_files)
    except MemoryError:
        raise
    # Of a network, a repository of strangers and its files: errors of every kind.
    except Exception as error:
        raise DataError(
            f"can't fetch {place}: {first_line(error)}", _ALLOWED, "check the name, the network, and `hf auth login`"
        ) from error
    if not files:
        raise DataError(f"{place}: its split {wanted} is empty", _ALLOWED, "name another split")
    size = sum(file.stat().st_size for file in files)
    fetching().say(f"fetch {place}: {len(data):,} rows, {size / 1e6:,.1f} MB")
    return files


def _pictures_folder() -> Path:
    """Return the folder in which the hub's library keeps files that data sets name."""
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME)


def _check_reach(place: str, named: re.Match[str]) -> None:
    """Raise where the hub does not answer within seconds: `datasets` would ask it for minutes."""
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return
    name = f"{named['owner']}/{named['name']}"
    try:
        ask = partial(HfApi().dataset_info, name, revision=named["revision"], timeout=2 * SECONDS)
        within(SECONDS, ask, constants.ENDPOINT)
    # What a connection raises depends on the library below; what the hub itself says, `datasets` tells.
    except Exception as error:
        if getattr(error, "response", None) is not None:
            return
        raise DataError(
            f"can't fetch {place}: the hub can't be reached ({first_line(error)})",
            _ALLOWED,
            "check the network; for a data set that was fetched before, set HF_HUB_OFFLINE=1",
        ) from error
