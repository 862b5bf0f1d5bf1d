"""Plain tables that turn into short cards on a phone."""

from collections.abc import Sequence
from dataclasses import dataclass

from striate.reporting.html.markup import Child, Html, tag


@dataclass(frozen=True)
class Cell:
    """One cell: `head` names the row, `right` aligns numbers, `wide_only` hides it on a phone, `long` is a sentence."""

    content: Child
    head: bool = False
    right: bool = False
    wide_only: bool = False
    long: bool = False


def figures(*values: Child) -> list[Cell]:
    """Return a right-aligned cell for each of `values`."""
    return [Cell(value, right=True) for value in values]


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]], classes: Sequence[str] = ()) -> Html:
    """Return a table; `classes` gives each row's class."""
    columns = zip(heads, rows[0], strict=True) if rows else ()
    head = tag("tr", [tag("th", name, scope="col", class_=_classes(cell)) for name, cell in columns]) if rows else None
    kinds = classes or [""] * len(rows)
    body = [
        tag("tr", [_cell(name, cell) for name, cell in zip(heads, row, strict=True)], class_=kind or None)
        for row, kind in zip(rows, kinds, strict=True)
    ]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll")


def _classes(cell: Cell) -> str | None:
    names = [("number", cell.right), ("wide-only", cell.wide_only), ("long", cell.long)]
    return " ".join(name for name, on in names if on) or None


def _cell(name: str, cell: Cell) -> Html:
    if cell.head:
        return tag("th", cell.content, scope="row", class_=_classes(cell))
    return tag("td", cell.content, class_=_classes(cell), data_label=name or None)


def facts(pairs: Sequence[tuple[str, Child]], kind: str = "facts") -> Html:
    """Return name and value pairs as a definition list."""
    return tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in pairs], class_=kind)


def share_bar(share: float, kind: str = "region") -> Html:
    """Return a thin bar filled to `share` (0 to 1)."""
    shape = tag("rect", width=100 * share, height=6.0, rx=1, class_=f"bar {kind}")
    track = tag("rect", width=100.0, height=6.0, rx=1, class_="track")
    return tag("svg", track, shape, viewBox="0 0 100 6", preserveAspectRatio="none", class_="share", aria_hidden="true")
