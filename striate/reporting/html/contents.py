"""The contents bar, which stays at the top of the window."""

from collections.abc import Mapping

from striate.reporting.html.markup import Html, tag


def contents_bar(places: Mapping[str, str]) -> Html:
    """Return links to the parts of the page, in order: by a part's name the id of its first section."""
    links = [tag("a", name, href=f"#{place}") for name, place in places.items()]
    return tag("nav", links, class_="contents", aria_label="Contents")
