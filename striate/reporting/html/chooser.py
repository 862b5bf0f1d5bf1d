"""A menu that shows one of several figures; the others are stored compressed in the page."""

import base64
import gzip
import re
from collections.abc import Sequence

from striate.reporting.html.markup import Child, Html, join, tag


def chooser(name: str, label: str, choices: Sequence[tuple[str, Child]]) -> Html:
    """Return a menu of titles above the content of the one that is chosen, at first the first of `choices`.

    A single choice has no menu. The others are compressed: drawings of many layers are long, and alike.
    """
    first, *others = (content for _, content in choices)
    panels = [tag("div", first, class_="panel", data_panel=name)]
    panels += [
        tag("div", class_="panel", data_panel=name, data_packed=pack(content), hidden=True) for content in others
    ]
    if not others:
        return tag("div", panels)
    options = [tag("option", title, value=str(place)) for place, (title, _) in enumerate(choices)]
    # A page that is loaded again keeps its menus otherwise, and then shows another panel than it names.
    menu = tag("select", options, data_chooser=name, autocomplete="off")
    return tag("div", tag("label", tag("span", label), menu, class_="chooser"), panels)


def pack(content: Child) -> str:
    """Return HTML as gzip in base 64; the same content gives the same text."""
    return base64.b64encode(gzip.compress(join(content).encode(), mtime=0)).decode("ascii")


def slug(name: str) -> str:
    """Return `name` as it may stand in an id or a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"
