"""The test packs of a run and the gates that are held against them: read, decoded and looked up."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from striate.config import RunConfig, is_builtin
from striate.data.pictures import PictureLimits, check_pictures
from striate.data.sources.source_options import SourceOptions
from striate.demo.places import check_pack
from striate.errors import ArtifactError, first_line
from striate.pipeline.preflight import labels_of
from striate.tasks.benchmarks import BENCHMARKS
from striate.tasks.packs.sources import parse_source, read_source

if TYPE_CHECKING:
    from striate.data.sources.stored_pictures import Picture
    from striate.tasks.packs.items import Pack


def pack_name_of(name: str) -> str:
    """Return the name of the pack that an entry of `evaluate.packs` stands for."""
    return name.partition(":")[2] if is_builtin(name) else parse_source(name).name


def read_test_pack(name: str, config: RunConfig, read: list[Pack], limits: PictureLimits, stack: ExitStack) -> str:
    """Return what a test pack or a benchmark holds, added to `read`.

    Pictures inside other files are unpacked to be decoded, to a folder that is gone with `stack`.
    """
    if is_builtin(name):
        check_pack(name)
        return name
    source = replace(parse_source(name), images=SourceOptions.of(config.data).images)
    inner = source.benchmark and BENCHMARKS.get(source.benchmark).unpack
    pack = read_source(source, config.evaluate.limit, Path(stack.enter_context(_temporary_folder())) if inner else None)
    read.append(pack)
    owners: dict[Picture, str] = {image: item.id for item in reversed(pack.items) for image in item.images}
    tasks = len({item.task for item in pack.items})
    return f"{name}: {len(pack.items)} items of {tasks} {'task' if tasks == 1 else 'tasks'}" + (
        f", {check_pictures(owners, limits)}" if owners else ""
    )


def until_names(config: RunConfig) -> tuple[str, ...]:
    """Return the packs that are asked while layers go, besides the test packs."""
    return config.prune.until_packs if config.prune.until else ()


def check_until_gate(config: RunConfig, packs: list[Pack], until_packs: list[Pack]) -> str:
    """Return the conditions and the packs that are asked; what they name is looked up where every pack has been read.

    Built-in ones are not read.
    """
    from striate.pipeline.trials.until_gate import check_until, parse_until

    own, gate = config.prune.until_packs, config.prune.until or ""
    parse_until(gate)
    read, names = (until_packs, own) if own else (packs, config.evaluate.packs)
    if len(read) == len(names):
        check_until(gate, read)
    return f"{gate}, on {', '.join(own) if own else 'the test packs themselves'}"


def check_run_gate(config: RunConfig, packs: list[Pack]) -> str:
    """Return the gate; what it names is looked up in the packs: of built-in ones, which are not read, only the names.

    Raises:
        ConfigError: it can't be read, or no pack can decide it.
    """
    from striate.pipeline.references import check_references
    from striate.tasks.scoring.gate import check_floor, check_gate, check_scopes, parse_gate

    gate = config.evaluate.gate or ""
    check_references(config)
    if len(packs) == len(config.evaluate.packs):
        check_gate(gate, packs, labels_of(config), config.evaluate.baseline, floor=config.evaluate.floor)
        return gate
    names, conditions = [pack_name_of(name) for name in config.evaluate.packs], parse_gate(gate)
    check_floor(conditions, floor=config.evaluate.floor)
    named = [condition.place for condition in conditions if condition.place[0] in names]
    check_scopes(conditions, [*((name, "") for name in names), *named], labels_of(config))
    return gate


def _temporary_folder() -> TemporaryDirectory[str]:
    """Return a context with a new folder for pictures.

    Raises:
        ArtifactError: there is no place for one.
    """
    try:
        return TemporaryDirectory(prefix="striate-check-")
    except FileNotFoundError as error:
        raise ArtifactError(
            f"no folder for temporary files: {first_line(error)}", "one that you may write to", "set TMPDIR to one"
        ) from error
