"""What a source of training data holds, as text on a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from striate.cli.console import OUT
from striate.printable import clipped, shown

if TYPE_CHECKING:
    from striate.data.overview.learned_text import Piece
    from striate.data.overview.source_overview import SourceOverview
    from striate.data.samples import Sample

MOST_TASKS, MOST_CHARACTERS = 12, 400
BEGIN, END = "[[", "]]"
"""What is learned stands between these, in colour where there is some."""


def show_overview(found: SourceOverview) -> None:
    """Print what was understood, and what is odd about it."""
    for line in overview_lines(found):
        OUT.print(line, soft_wrap=True)


def overview_lines(found: SourceOverview) -> Iterator[str]:
    """Yield a line for each thing that was understood, then for each warning."""
    more = f" and {len(found.files) - 1} more" if len(found.files) > 1 else ""
    yield f"files     {found.files[0]}{more}"
    yield f"samples   {found.samples:,}: {found.pictured:,} with pictures, {found.samples - found.pictured:,} of text"
    yield f"answers   {found.answers:,}, all of them learned"
    if found.tokens:
        total, usual, longest = found.tokens
        part = "" if found.counted == found.samples else f", of the first {found.counted:,} samples"
        yield f"tokens    {total:,} of text, {usual} a sample (median), {longest} at most{part}; a picture is one"
    yield from _picture_lines(found)
    tasks = sorted(found.tasks.items(), key=lambda row: -row[1])
    named = ", ".join(f"{shown(name).strip(chr(39))} {count:,}" for name, count in tasks[:MOST_TASKS])
    yield f"tasks     {named}{f' and {len(tasks) - MOST_TASKS} more' if len(tasks) > MOST_TASKS else ''}"
    if found.refused:
        yield f"REFUSED   {found.refused:,} records, such as:"
        yield from (f"          {reason}" for reason in found.reasons)
    yield from (f"warning   {line}" for line in found.warnings)
    yield from (f"          {line}" for line in found.pictures.broken[: len(found.reasons) or MOST_TASKS])


def show_samples(samples: Sequence[tuple[Sample, list[Piece] | str]]) -> None:
    """Print samples as they are learned, or why they can't be."""
    OUT.print()
    OUT.print(f"{len(samples)} samples; what is learned stands in {BEGIN} {END}", soft_wrap=True)
    for sample, pieces in samples:
        task = f", task {shown(sample.task)}" if sample.task else ""
        pictures = f", {', '.join(clipped(str(image), 60) for image in sample.images)}" if sample.images else ""
        OUT.print(f"\n{shown(sample.id)}{task}{pictures}", style="bold", soft_wrap=True)
        OUT.print(f"can't be learned: {pieces}" if isinstance(pieces, str) else _marked(pieces), soft_wrap=True)


def _marked(pieces: Sequence[Piece]) -> Text:
    text = Text()
    for number, piece in enumerate(pieces):
        if piece.image_tokens:
            text.append(f"<{piece.image_tokens} image tokens>", style="cyan")
            continue
        words = _short(piece.text).replace("\n", "\\n")
        if piece.learned:
            text.append(f"{BEGIN}{words}{END}", style="bold green")
        else:
            text.append(words, style="dim")
        if not piece.tokens and number % 2:
            text.append("\n")
    text.rstrip()
    return text


def _short(text: str) -> str:
    """Return the beginning and the end of a long text."""
    half = MOST_CHARACTERS // 2
    return text if len(text) <= MOST_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


def _picture_lines(found: SourceOverview) -> Iterator[str]:
    pictures = found.pictures
    if not pictures.count:
        yield "pictures  none"
        return
    yield f"pictures  {pictures.count:,}: {_counts(pictures.formats)}; modes {_counts(pictures.modes)}"
    if pictures.widths:
        sides = (f"{name} {least} to {most}, median {usual}" for name, (least, usual, most) in _sides(found))
        yield f"sizes     {'; '.join(sides)} pixels"


def _sides(found: SourceOverview) -> list[tuple[str, tuple[int, ...]]]:
    return [("width", found.pictures.widths), ("height", found.pictures.heights)]


def _counts(counted: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counted.items())
