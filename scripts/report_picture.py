#!/usr/bin/env python3
"""Draws the picture of a run's page that the README shows: `python scripts/report_picture.py RUN`.

It takes playwright and a headless Chromium, found by playwright or named in STRIATE_CHROMIUM.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from striate.stages.report import report

COLOURS = 256


def draw(page: Path, picture: Path, width: int, height: int) -> None:
    """Write the first `width` x `height` pixels of the page, in the light scheme, as a PNG of few colours."""
    chromium = os.environ.get("STRIATE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver, tempfile.TemporaryDirectory() as folder:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": width, "height": height}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        raw = Path(folder) / "raw.png"
        shown.screenshot(path=str(raw))
        browser.close()
        # A page of text and bars loses nothing by it, and the repository is smaller.
        Image.open(raw).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)


def main() -> None:
    """Write the run's page anew, and its picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="run folder, such as striate-quickstart")
    parser.add_argument("--out", type=Path, default=Path("docs/report.png"))
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=1060)
    given = parser.parse_args()
    draw(report(given.run), given.out, given.width, given.height)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
