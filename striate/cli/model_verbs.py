"""Verbs that make a model folder out of others: import, compose and remove-layers; no run folder is involved."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from striate.cli.boundary import guard
from striate.cli.console import OUT, print_json, quiet_libraries
from striate.cli.options import Json, located
from striate.errors import ConfigError

NewModel = Annotated[Path, typer.Option("--out", help="Folder of the new model: new or empty.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the command line."""
    app.command("import")(import_checkpoint)
    app.command("compose")(compose_model)
    app.command("remove-layers")(remove_layers)


def import_checkpoint(
    source: Annotated[str, typer.Argument(help="Original LLaVA-1.5 or Bunny checkpoint: folder or hub id.")],
    out: NewModel,
    vision: Annotated[str | None, typer.Option(help="Vision tower; left out, the one that its config names.")] = None,
    base: Annotated[str | None, typer.Option(help="Language model under a LoRA checkpoint.")] = None,
    json: Json = False,
) -> None:
    """Turn a LLaVA or Bunny checkpoint into transformers' form. That of their authors is another."""
    with guard(None):
        quiet_libraries()
        from striate.pipeline.run_models import reached

        for place in filter(None, (source, vision, base)):
            reached(place)
        from striate.models.convert.legacy.importing import import_checkpoint as convert

        done = convert(source, out, vision=vision, base=base)
        if json:
            print_json(dumps({"out": str(out), **asdict(done)}))
            return
        OUT.print(f"{done.title}: {done.parameters:,} parameters, {done.image_tokens} image tokens a picture")
        OUT.print(str(out), soft_wrap=True)


def compose_model(
    vision: Annotated[str, typer.Option(help="Vision encoder: folder or hub id.")],
    llm: Annotated[str, typer.Option(help="Causal language model: folder, hub id or .gguf file.")],
    out: NewModel,
    seed: Annotated[int, typer.Option(help="Of the projector's first weights.")] = 0,
    json: Json = False,
) -> None:
    """Put an LVLM together from an encoder and a language model. Its projector is random."""
    with guard(None):
        quiet_libraries()
        from striate.pipeline.run_models import reached

        for place in (vision, llm):
            reached(place)
        from striate.models.convert.compose import compose
        from striate.models.io.save import save_model

        loaded = compose(vision, llm, seed=seed)
        save_model(loaded.model, loaded.processor, out)
        count = sum(parameter.numel() for parameter in loaded.model.parameters())
        tokens = loaded.model.config.image_seq_length
        if json:
            print_json(dumps({"out": str(out), "parameters": count, "image_tokens": tokens}))
            return
        OUT.print(f"{count:,} parameters, {tokens} image tokens a picture; the projector is random")
        OUT.print("align it first: train with region none and train.method full", soft_wrap=True)
        OUT.print(str(out), soft_wrap=True)


def remove_layers(
    model: Annotated[str, typer.Argument(help="Folder with safetensors, hub id or builtin; not changed.")],
    layers: Annotated[str, typer.Option(metavar="N,N,...", help="Decoder layers to remove, counted from 0.")],
    out: NewModel,
    json: Json = False,
) -> None:
    """Write a model without some decoder layers. It goes shard by shard: memory stays small."""
    with guard(None):
        quiet_libraries()
        numbers, place = _numbers(layers), located(model)
        from striate.models.convert.legacy.legacy_sources import folder_of
        from striate.models.surgery.prune_checkpoint import prune_checkpoint

        done = prune_checkpoint(folder_of(place, "model"), numbers, out)
        if json:
            print_json(dumps({"out": str(out), **asdict(done)}))
            return
        OUT.print(f"{len(done.old_to_new)} layers kept")
        OUT.print(f"{done.parameters_before:,} -> {done.parameters_after:,} parameters")
        OUT.print(str(out), soft_wrap=True)


def _numbers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if all(part.isdecimal() for part in parts):
        return [int(part) for part in parts]
    raise ConfigError(f"--layers {text!r} is no list of layers", "numbers and commas", "for example --layers 4,5,6")
