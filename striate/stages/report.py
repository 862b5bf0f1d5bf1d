"""Report: one self-contained page about a run folder."""

from __future__ import annotations

from pathlib import Path

from striate.artifacts import write_text
from striate.reporting.findings import gather
from striate.reporting.page import draw_page


def report(run: Path, out: Path | None = None) -> Path:
    """Return the path of the page written about the run folder `run`: `out`, or `report.html` in it.

    The page is one file without network requests. Artifacts that are missing are named as not run yet. The same
    artifacts give the same bytes.

    Raises:
        ArtifactError: no such folder, nothing of striate in it, a damaged artifact, or no room to write.
    """
    run = Path(run)
    target = Path(out) if out else run / "report.html"
    write_text(target, draw_page(gather(run)))
    return target
