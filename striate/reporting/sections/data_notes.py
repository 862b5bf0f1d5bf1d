"""What is odd about the data that the figures rest on."""

from striate.reporting.data.run_artifacts import RunArtifacts
from striate.reporting.html.markup import Html, tag


def draw_notes(artifacts: RunArtifacts) -> Html | None:
    """Return what is odd about the data that the figures rest on, a line each."""
    lines = artifacts.notes.lines if artifacts.notes else ()
    return tag("ul", [tag("li", line) for line in lines], class_="missing notes") if lines else None
