"""The verb data: what was understood of a source of training data; a test pack out of it; our own form of it."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, RichProgress, print_json, quiet_libraries
from striate.cli.options import Json, located

if TYPE_CHECKING:
    from collections.abc import Sequence

    from striate.config import RunConfig
    from striate.data.overview.learned_text import Piece
    from striate.data.pictures import PictureLimits
    from striate.data.samples import Sample

Found = dict[str, Any]


def register(app: typer.Typer) -> None:
    """Add this module's verb to the command line."""
    app.command("data")(data)


def data(
    source: Annotated[str, typer.Argument(help="File or folder, hf:owner/name, or builtin:easy-vqa.")],
    *,
    model: Annotated[
        str | None, typer.Option(help="Folder, hub id or builtin, whose processor shows tokens; weights are not read.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="data.KEY=VALUE", help="How it is read, e.g. data.columns={image: file}."),
    ] = None,
    samples: Annotated[int, typer.Option(min=0, help="How many samples are shown with what is learned of them.")] = 10,
    split: Annotated[
        str | None, typer.Option(metavar="P%", help="Write so large a share as a test pack, the rest to train on.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="New folder for --split.")] = None,
    convert: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write all samples and pictures in our own form to a new folder.")
    ] = None,
    json: Json = False,
) -> None:
    """Show what is understood and learned of training data. Or make a test pack, or our own form."""
    with guard(None):
        quiet_libraries()
        config = _config(source, settings or [])
        share = _share(split, out)
        _one_of(split, convert)
        if share is not None and out is not None:
            lines, found = _split(source, config, share, out)
        elif convert is not None:
            lines, found = _convert(source, config, convert)
        else:
            lines, found = [], _look(source, config, model, samples, json)
        if json:
            print_json(dumps(found, default=str, ensure_ascii=False))
            return
        for line in lines:
            OUT.print(line, soft_wrap=True)


def _config(source: str, settings: list[str]) -> RunConfig:
    from striate.config import parse_config
    from striate.errors import ConfigError

    config = parse_config({"model": {"path": "builtin"}, "data": {"train": [source]}}, settings)
    if list(config.data.train) != [source]:
        raise ConfigError(
            "--set data.train names other data than SOURCE", "one place, as SOURCE", "name it in place of SOURCE"
        )
    return config


def _place(source: str) -> Path:
    """Return where the training data called `source` is, which is fetched where it comes with striate."""
    from striate.demo.places import locate_data

    return locate_data(source, RichProgress(ERR))


def _one_of(split: str | None, convert: Path | None) -> None:
    """Return unless both are there, of which one would be passed over; raises ConfigError."""
    from striate.errors import ConfigError

    if split is not None and convert is not None:
        raise ConfigError(
            "--split and --convert write two folders", "one of them", "run the command twice, with one each"
        )


def _share(split: str | None, out: Path | None) -> float | None:
    """Return the share that `--split` names.

    Raises:
        ConfigError: it is no share, or --out is missing or stands alone.
    """
    from striate.config.inputs import SHARE
    from striate.errors import ConfigError
    from striate.printable import shown

    if split is None and out is None:
        return None
    if split is None or out is None:
        raise ConfigError(
            "--split and --out go together" + (": --out is missing" if out is None else ": --split is missing"),
            "--split 5% --out DIR",
            "give both",
        )
    found = SHARE.fullmatch(split)
    if not found or not float(found[1]):
        raise ConfigError(
            f"--split {shown(split)} is no share", "over 0% and below 100%, such as 5%", "write it with %"
        )
    return float(found[1]) / 100


def _split(source: str, config: RunConfig, share: float, out: Path) -> tuple[list[str], Found]:
    from striate.data.pictures import PictureLimits
    from striate.tasks.packs.pack_split import write_split

    limits = PictureLimits.of(config.machine)
    read, left_out = _to_part(source, config, limits)
    record = write_split(read, share, config.seed, out, limits)
    lines = [
        f"train     {record.train:,} samples: {out / 'train.jsonl'}",
        f"test      {record.test:,} items with {record.pictures:,} pictures, none of which is trained on: {out}",
        *(f"          task {name}: {count} items, metric {metric}" for name, (metric, count) in record.tasks.items()),
        *([f"left out  {left_out:,} that can't be used"] if left_out else []),
        *([f"note      {record.cut} items ask the first question of a longer conversation"] if record.cut else []),
        *([f"note      {record.systems} items lack the system turn of their sample"] if record.systems else []),
        f"use it    --set {shlex.quote(f'data.train=[{out}]')} --set {shlex.quote(f'evaluate.packs=[{out}]')}",
    ]
    return lines, {**asdict(record), "out": str(out), "left_out": left_out}


def _to_part(source: str, config: RunConfig, limits: PictureLimits) -> tuple[Sequence[Sample], int]:
    """Return the samples of a source, and how many are left out where `data.broken` is skip; else none may be wrong."""
    from striate.data.overview.source_overview import each_sample
    from striate.data.reading import read_samples
    from striate.data.sources.source_options import SourceOptions
    from striate.data.writing.sample_writer import whole_samples

    options = SourceOptions.of(config.data)
    if config.data.broken != "skip":
        return read_samples(_place(source), options=options), 0
    whole, wrong = whole_samples(each_sample(_place(source), options), limits)
    if not whole and wrong:
        raise wrong[0]
    return whole, len(wrong)


def _convert(source: str, config: RunConfig, out: Path) -> tuple[list[str], Found]:
    from striate.data.overview.source_overview import each_sample
    from striate.data.pictures import PictureLimits
    from striate.data.sources.source_options import SourceOptions
    from striate.data.writing.sample_writer import convert

    records = each_sample(_place(source), SourceOptions.of(config.data))
    skips = config.data.broken == "skip"
    count, left_out = convert(records, out, PictureLimits.of(config.machine), skips)
    lines = [f"train     {count:,} samples: {out / 'train.jsonl'}"]
    lines += [f"left out  {left_out:,} that can't be used"] if left_out else []
    return lines, {"out": str(out), "samples": count, "left_out": left_out}


def _look(source: str, config: RunConfig, model: str | None, shown: int, as_json: bool) -> Found:
    from striate.cli.views.source_view import show_overview, show_samples
    from striate.data.overview.learned_text import plain_pieces
    from striate.data.overview.source_overview import look_at
    from striate.data.pictures import PictureLimits
    from striate.data.sources.source_options import SourceOptions

    limits = PictureLimits.of(config.machine)
    learned, length = plain_pieces, None
    if model is not None:
        place = located(model)
        from striate.data.collate import Collator
        from striate.data.overview.learned_text import learned_pieces
        from striate.models.io.load import load_processor

        processor = load_processor(place)
        collator = Collator(processor, config.train.max_length, True, limits)
        length = collator.text_length
        learned = lambda sample: learned_pieces(collator, processor, sample)  # noqa: E731
    options = SourceOptions.of(config.data)
    found = look_at(_place(source), options, limits, shown=shown, seed=config.seed, length=length)
    pieces = [(sample, _pieces(learned, sample)) for sample in found.shown]
    if as_json:
        return {**asdict(found), "shown": [_sample_row(sample, one) for sample, one in pieces]}
    show_overview(found)
    if pieces:
        show_samples(pieces)
    return {}


def _pieces(learned: Any, sample: Sample) -> list[Piece] | str:
    from striate.errors import DataError

    try:
        pieces: list[Piece] = learned(sample)
    except DataError as error:
        return error.given
    return pieces


def _sample_row(sample: Sample, pieces: list[Piece] | str) -> Found:
    row: Found = {"id": sample.id, "task": sample.task, "images": [str(image) for image in sample.images]}
    return row | ({"error": pieces} if isinstance(pieces, str) else {"pieces": [asdict(piece) for piece in pieces]})
