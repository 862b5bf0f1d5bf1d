"""Options that the verbs on a run folder share, and how they open its flow and run one stage."""

from __future__ import annotations

import itertools
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, RichProgress, quiet_libraries
from striate.errors import ConfigError, ModelError, did_you_mean
from striate.printable import shown
from striate.storage.launcher import launch

if TYPE_CHECKING:
    from rich.console import Console

    from striate.config import RunConfig
    from striate.models.io.load import Loaded
    from striate.pipeline import Flow
    from striate.pipeline.run_models import ModelPlace

Config = Annotated[Path | None, typer.Argument(help="Run config (YAML). Left out: the config in --out.")]
Out = Annotated[Path, typer.Option("--out", help="Run folder: made, or continued.")]
RunFolder = Annotated[Path, typer.Option("--out", help="Run folder, as an earlier command made it.")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, e.g. train.lr=1e-4.")]
Replace = Annotated[
    bool, typer.Option("--overwrite", help="Do the stage again if its inputs have changed; replace --export's file.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Do stages again whose inputs have changed.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
Only = Annotated[
    str | None, typer.Option("--models", metavar="LABEL,...", help="Of runs: these alone, e.g. start,pruned.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON; what happens goes to standard error.")]


def open_flow(
    config: RunConfig,
    out: Path,
    overwrite: bool,
    together: bool = False,
    *,
    console: Console = OUT,
    curve: bool = False,
    kept: RunConfig | None = None,
) -> Flow:
    """Return the flow of `config` in the run folder `out`, which says on `console` what happens and keeps `kept`.

    Raises:
        ConfigError: a launcher started several processes, and the verb is not one for them (`together`).
    """
    processes = launch().world_size
    if processes > 1 and not together:
        raise ConfigError(
            f"a launcher started this verb on {processes} processes",
            "`striate train` on several processes, every other verb on one",
            "start it without accelerate launch or torchrun; docs/scale-out.md shows the order",
        )
    quiet_libraries()
    from striate.pipeline import Flow
    from striate.pipeline.run_models import is_run, reached

    if not is_run(out):
        reached(config.model.path, config.model.revision)
    command = shlex.join(["striate", *sys.argv[1:]])
    progress = RichProgress(console)
    return Flow(config, out, progress=progress, overwrite=overwrite, command=command, curve=curve, kept=kept)


def chosen_places(sources: Sequence[str], only: str | None) -> dict[str, ModelPlace]:
    """Return the models by the names that they have in the table: labels of one run; else with their folders' names.

    Raises:
        ConfigError: `only` names a model that no run has.
    """
    from striate.pipeline.run_models import ALONE, UNHEALED, models_of, warn_unhealed

    found = [(source, models_of(source, RichProgress(ERR))) for source in sources]
    several = sum(ALONE not in models for _, models in found) > 1
    labels = [label.strip() for label in only.split(",")] if only else []
    for _, models in found if not labels else ():
        warn_unhealed(models, RichProgress(ERR))
    known = {label for _, models in found for label in models if label != ALONE}
    if unknown := sorted(set(labels) - known):
        raise ConfigError(
            f"--models names {shown(unknown[0])}, which no run here has",
            ", ".join(sorted(known)) or "models of a run: none was given",
            did_you_mean(unknown[0], known) + "choose among these, or leave --models out",
        )
    places: dict[str, ModelPlace] = {}
    for source, models in found:
        for label, place in models.items():
            if label not in (*labels, ALONE) if labels else label == UNHEALED:
                continue
            folder = Path(source).name or source
            name = folder if label == ALONE else f"{folder}/{label}" if several else label
            names = (name, *([f"{name} ({source})"] if source != name else ()))
            numbered = (f"{name} ({number})" for number in itertools.count(2))
            places[next(free for free in itertools.chain(names, numbered) if free not in places)] = place
    return places


def _with_options(source: Path, settings: Sequence[str], once: Sequence[str]) -> RunConfig:
    """Return the config in `source`, which with `settings` is a valid one, with what options say `once` too."""
    from striate.config import load_config

    try:
        return load_config(source, [*settings, *once])
    except ConfigError as error:
        named = ", ".join(f"--{key.partition('=')[0].rpartition('.')[2].removesuffix('s')}" for key in once)
        raise ConfigError(error.given, error.allowed, f"fix {named}") from error


def located(model: str) -> str:
    """Return the path of the model that a person named: `builtin`, a folder, or a hub id that can be had.

    Raises:
        ModelError: the hub has no such model, or does not answer within seconds; the built-in one can't be fetched; a
            run folder, whose models have folders of their own.
    """
    from striate.demo.places import locate_model
    from striate.pipeline.run_models import is_run, reached

    if is_run(model):
        raise ModelError(
            f"{model} is a run folder, not a model",
            "a model's folder, a hub id such as owner/name, or builtin",
            f"write its tuned model as one with `striate merge {shlex.quote(model)} --model tuned --out DIR`, or name"
            f" {Path(model) / 'pruned'} where it is pruned",
        )
    return reached(locate_model(model, RichProgress(ERR)))


def load_place(place: ModelPlace, device: str, dtype: str) -> Loaded:
    """Return the model at `place`, adapters merged, with its processor.

    Raises:
        ModelError: it can't be loaded.
    """
    quiet_libraries()
    from striate.models.io.hub_download import fetch_weights
    from striate.models.io.load import load_model

    fetch_weights(place.base or place.path, None if place.base else place.revision, RichProgress(ERR))
    return load_model(place.path, device=device, dtype=dtype, revision=place.revision, merge=True)


def config_file(config: Path | None, out: Path) -> Path:
    """Return the config given, or else the one that lies in the run folder `out`.

    Raises:
        ConfigError: there is no such file.
    """
    source = config or out / "config.yaml"
    if not source.is_file():
        raise ConfigError(
            f"no run config: {source} does not exist",
            "a run config (YAML), or a run folder that has one",
            "give RUN.yaml, or the folder of an earlier run with --out",
        )
    return source


def run_stage(
    config: Path | None,
    out: Path,
    settings: list[str] | None,
    overwrite: bool,
    stage: Callable[[Flow], None],
    *,
    together: bool = False,
    console: Console = OUT,
    curve: bool = False,
    once: Sequence[str] = (),
) -> None:
    """Run one stage in the run folder `out`, with the config given or else the one that lies there.

    With `together` it may run on several processes: rank zero runs the stage, the others join its training. What
    happens is said on `console`; `curve` tells that the stage is one of `prune --curve`. Settings of `once` count for
    this call: the run folder keeps the config without them.
    """
    from striate.config import load_config

    with guard(out):
        source = config_file(config, out)
        kept = load_config(source, settings or [])
        read = _with_options(source, settings or [], once) if once else kept
        if together and launch().rank:
            quiet_libraries()
            from striate.pipeline.distributed_job import run_worker

            run_worker(read)
            return
        stage(open_flow(read, out, overwrite, together, console=console, curve=curve, kept=kept))
