"""HTML and SVG by construction: whatever is not `Html` already is escaped."""

from collections.abc import Iterable
from html import escape
from typing import Any

VOID = frozenset({"img", "meta", "link", "br", "input"})


class Html(str):
    """Text that is HTML already, and safe to place in the page as it is."""

    __slots__ = ()


Child = str | None | Iterable["Child"]


def tag(name: str, /, *children: Child, **attributes: Any) -> Html:
    """Return the element `name`, its children and attributes escaped.

    `class_` becomes `class` and `aria_label` becomes `aria-label`; an attribute that is None or False is left out.
    """
    opening = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}>"
    if name in VOID:
        return Html(opening)
    return Html(f"{opening}{join(children)}</{name}>")


def join(children: Child) -> Html:
    """Return `children`, escaped where they are not HTML, one after the other."""
    if children is None:
        return Html("")
    if isinstance(children, Html):
        return children
    if isinstance(children, str):
        return Html(escape(children))
    return Html("".join(join(child) for child in children))


def number(value: float) -> str:
    """Return a coordinate with at most two decimals and no trailing zeros."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _attribute(key: str, value: Any) -> str:
    """Return ` key="value"`, or nothing for None and False."""
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = number(value) if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
