"""Verbs that hand on what a run made: merge writes one ordinary checkpoint, push publishes a model on the hub."""

from __future__ import annotations

from enum import StrEnum
from json import dumps
from typing import TYPE_CHECKING, Annotated, Any

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, RichProgress, print_json, quiet_libraries, show_table
from striate.cli.model_verbs import NewModel
from striate.cli.options import Json, located

if TYPE_CHECKING:
    from striate.models.io.hub_upload import Upload

Source = Annotated[str, typer.Argument(help="Run folder, model's folder, hub id or builtin.")]
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


_OWN_ENCODER = "its encoder is striate's own: `import striate` comes before transformers loads it"


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the command line."""
    app.command("merge")(merge)
    app.command("push")(push)


def merge(
    source: Source,
    out: NewModel,
    model: Label = None,
    *,
    dtype: Annotated[
        Dtype, typer.Option(help="Of the weights; auto: bfloat16, or the 16 bits that they have.")
    ] = Dtype.AUTO,
    base: Annotated[str | None, typer.Option(help="The adapter's base model, if not the one it names.")] = None,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Write a run's model, or an adapter, as one checkpoint. In 16 bits, tensor by tensor."""
    with guard(None):
        quiet_libraries()
        base = located(base) if base else None
        from striate.models.io.card.card_code import needs_striate
        from striate.pipeline.merging import merge_model

        progress = RichProgress(ERR if json else OUT)
        place, done = merge_model(
            source, out, label=model, base=base, dtype=dtype.value, revision=revision, progress=progress
        )
        own = _OWN_ENCODER if needs_striate(out) else ""
        if json:
            told = {"model": place.label, "path": place.path, "out": str(out)}
            print_json(dumps({**told, **vars(done), "base": str(done.base), "notes": [own] if own else []}))
            return
        what = f"{done.modules} modules merged into {done.base}" if done.modules else "a whole model, no adapter"
        OUT.print(f"{place.label} ({place.path}): {what}", soft_wrap=True)
        if done.in_memory:
            OUT.print(f"all weights were in memory at once: {done.in_memory}", soft_wrap=True)
        OUT.print(f"{done.parameters:,} parameters in {done.dtype}, and the processor")
        if own:
            OUT.print(f"note: {own}", soft_wrap=True)
        OUT.print(str(out), soft_wrap=True)


def push(
    source: Annotated[str, typer.Argument(help="Run folder, or model's folder.")],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="Repository on the hub: made if new.")],
    model: Label = None,
    *,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be published; send nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the repository holds.")] = False,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Such as apache-2.0; left out, that of the base.")
    ] = None,
    base_model: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="The base's hub id, if it is a folder here.")
    ] = None,
    json: Json = False,
) -> None:
    """Publish a run's model on the hub. Weights, processor and card go in one commit."""
    with guard(None):
        quiet_libraries()
        from striate.models.io.hub_upload import check_numbers, licence_on_hub, publish
        from striate.pipeline.pushing import upload_of

        progress = RichProgress(ERR if json else OUT)
        options: dict[str, Any] = {"label": model, "base_model": base_model, "progress": progress}
        place, upload = upload_of(source, repository, licence=licence, **options)
        if upload.license is None and upload.base_model and not dry_run:
            _, upload = upload_of(source, repository, licence=licence_on_hub(upload.base_model), **options)
        if not json:
            _show_upload(place.label, place.path, upload)
        if dry_run:
            check_numbers(upload)
        done = None if dry_run else publish(upload, private=private, overwrite=overwrite, progress=progress)
        if json:
            told: dict[str, Any] = {
                "model": place.label,
                "path": place.path,
                "repository": repository,
                "files": upload.sizes,
                "left_out": upload.left_out,
            }
            told |= {"license": upload.license, "base_model": upload.base_model, "published": done and vars(done)}
            print_json(dumps(told))
        elif done is None:
            OUT.print("dry run: nothing was sent")
        else:
            if done.removed:
                OUT.print(f"removed from it: {', '.join(done.removed)}", soft_wrap=True)
            OUT.print(f"{done.url}: all in one commit, {done.commit}", soft_wrap=True)


def _show_upload(label: str, path: str, upload: Upload) -> None:
    OUT.print(f"{label} ({path}) -> {upload.repository}", soft_wrap=True)
    show_table("", ["file", "bytes"], [[name, f"{size:,}"] for name, size in upload.sizes.items()])
    if upload.left_out:
        OUT.print(f"left out, as no loader reads it beside these: {', '.join(upload.left_out)}", soft_wrap=True)
    OUT.print(f"licence: {upload.license or 'none known; --license ID says one'}")
    OUT.print(f"base model: {upload.base_model or 'none on the hub'}")
