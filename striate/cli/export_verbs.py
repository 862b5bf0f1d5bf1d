"""The verb that hands a model to the programs that serve it: llama.cpp, Ollama, vLLM, quantised transformers."""

from __future__ import annotations

from enum import StrEnum
from json import dumps
from typing import Annotated

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, RichProgress, print_json, quiet_libraries
from striate.cli.model_verbs import NewModel
from striate.cli.options import Json
from striate.cli.sharing_verbs import Label, Revision, Source
from striate.errors import ConfigError


class Target(StrEnum):
    """Forms of an exported model."""

    GGUF = "gguf"
    VLLM = "vllm"
    INT8 = "int8"
    INT4 = "int4"
    FP8 = "fp8"


class GgufType(StrEnum):
    """Number formats of a GGUF file's matrices."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_K = "q4_k"


def register(app: typer.Typer) -> None:
    """Add this module's verb to the command line."""
    app.command("export")(export)


def export(
    source: Source,
    out: NewModel,
    to: Annotated[Target, typer.Option("--to", help="gguf: llama.cpp and Ollama; the others: see docs/serving.md.")],
    model: Label = None,
    *,
    kind: Annotated[GgufType | None, typer.Option("--type", help="Of gguf: the language model's; else f16.")] = None,
    text_only: Annotated[bool, typer.Option("--text-only", help="Of gguf: leave the vision part out.")] = False,
    revision: Revision = None,
    json: Json = False,
) -> None:
    """Write a model for llama.cpp or vLLM, or in 4 or 8 bits. Prints what serves it."""
    with guard(None):
        if to is not Target.GGUF and (kind or text_only):
            raise ConfigError("--type and --text-only are of --to gguf", "--to gguf", "leave them out")
        quiet_libraries()
        from striate.pipeline.exporting import ExportOptions, export_model

        options = ExportOptions((kind or GgufType.F16).value, text_only, revision)
        progress = RichProgress(ERR if json else OUT)
        done = export_model(source, out, to.value, label=model, options=options, progress=progress)
        if json:
            told = {"model": done.model.label, "path": done.model.path, "out": str(out), "to": to.value}
            print_json(dumps({**told, **{key: value for key, value in vars(done).items() if key != "model"}}))
            return
        OUT.print(f"{done.model.label} ({done.model.path}): {done.what}", soft_wrap=True)
        for name, size in done.files.items():
            OUT.print(f"{size / 1e6:10,.1f} MB  {name}", soft_wrap=True, no_wrap=True)
        for note in done.notes:
            OUT.print(f"note: {note}", soft_wrap=True)
        for command in done.commands:
            OUT.print(command, soft_wrap=True, no_wrap=True)
