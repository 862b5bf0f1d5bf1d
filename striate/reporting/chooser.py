"""A menu that shows one of several figures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from striate.reporting.markup import Child, Html, tag


def chooser(name: str, label: str, choices: Sequence[tuple[str, Child]]) -> Html:
    """Return a menu of titles above the content of the one that is chosen, at first the first of `choices`.

    A single choice has no menu.
    """
    panels = [
        tag("div", content, class_="panel", data_panel=name, hidden=place > 0)
        for place, (_, content) in enumerate(choices)
    ]
    if len(choices) == 1:
        return tag("div", panels)
    options = [tag("option", title, value=str(place)) for place, (title, _) in enumerate(choices)]
    # A page that is loaded again keeps its menus otherwise, and then shows another panel than it names.
    menu = tag("select", options, data_chooser=name, autocomplete="off")
    return tag("div", tag("label", tag("span", label), menu, class_="chooser"), panels)


def slug(name: str) -> str:
    """Return `name` as it may stand in an id or a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "figure"
