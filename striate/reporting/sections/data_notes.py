"""What is odd about the data that the figures rest on."""

from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Html, tag
from striate.storage.local_places import portable_text


def draw_notes(artifacts: RunArtifacts) -> Html | None:
    """Return what is odd about the data that the figures rest on, a line each."""
    lines = artifacts.notes.lines if artifacts.notes else ()
    return tag("ul", [tag("li", portable_text(line)) for line in lines], class_="missing notes") if lines else None
