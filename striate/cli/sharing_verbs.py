"""Verbs that hand on what a run made: merge writes one ordinary checkpoint."""

from __future__ import annotations

from enum import StrEnum
from json import dumps
from typing import Annotated

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, RichProgress, print_json, quiet_libraries
from striate.cli.model_verbs import NewModel
from striate.cli.options import Json

Source = Annotated[str, typer.Argument(help="Run folder, model's folder or hub id.")]
Label = Annotated[
    str | None,
    typer.Option("--model", metavar="LABEL", help="Of a run: start, tuned or pruned. Left out: the last one made."),
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id.")]


class Dtype(StrEnum):
    """Number formats of a written checkpoint."""

    AUTO = "auto"
    BFLOAT16 = "bfloat16"
    FLOAT16 = "float16"
    FLOAT32 = "float32"


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the command line."""
    app.command("merge")(merge)


def merge(
    source: Source,
    out: NewModel,
    model: Label = None,
    *,
    dtype: Annotated[Dtype, typer.Option(help="Of the weights; auto: 16 bits, the base's own if it has.")] = Dtype.AUTO,
    base: Annotated[str | None, typer.Option(help="The adapter's base model, if not the one it names.")] = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Write a run's model, or an adapter, as one ordinary checkpoint in 16 bits, tensor by tensor."""
    with guard(None):
        quiet_libraries()
        from striate.pipeline.merging import merge_model

        progress = RichProgress(ERR if json else OUT)
        place, done = merge_model(
            source, out, label=model, base=base, dtype=dtype.value, revision=revision, progress=progress
        )
        if json:
            told = {"model": place.label, "path": place.path, "out": str(out)}
            print_json(dumps({**told, **vars(done), "base": str(done.base)}))
            return
        what = f"{done.modules} modules merged into {done.base}" if done.modules else "a whole model, no adapter"
        OUT.print(f"{place.label} ({place.path}): {what}", soft_wrap=True)
        if done.in_memory:
            OUT.print(f"all weights were in memory at once: {done.in_memory}", soft_wrap=True)
        OUT.print(f"{done.parameters:,} parameters in {done.dtype}, and the processor")
        OUT.print(str(out), soft_wrap=True)
