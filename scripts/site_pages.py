#!/usr/bin/env python3
"""Hooks of the documentation site: pages that do not lie in docs/, and links that lead out of it.

`python scripts/site_pages.py` prints the reference of the command line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from typer.cli import get_docs_for_click
from typer.main import get_command

from striate.cli import app

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
TAKEN = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files of the repository that are pages of the site too, and their names there."""
_LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s:#]+)(#[^)\s]*)?\)")
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc="(?:https?:)?//"""
    r"""|<link\b[^>]*\brel="(?:stylesheet|icon|preconnect)"[^>]*\bhref="(?:https?:)?//"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the site's files with those that are made, or taken from elsewhere in the repository."""
    from mkdocs.structure.files import File

    for source, name in TAKEN.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    files.append(File.generated(config, "cli.md", content=cli_page()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page whose links to the repository's other files are their names: the site does not have these files."""
    place = next((PurePosixPath(source) for source, name in TAKEN.items() if name == page.file.src_uri), None)
    folder = (place or PurePosixPath("docs", page.file.src_uri)).parent
    return _LINK.sub(lambda link: _on_the_site(link, folder), markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Return a page as it is.

    Raises:
        RuntimeError: it would fetch something from another host.
    """
    if fetched := _FETCHED.search(output):
        raise RuntimeError(f"{page.file.src_uri} fetches from another host: {fetched[0]}")
    return output


def _on_the_site(link: re.Match[str], folder: PurePosixPath) -> str:
    """Return a link of a page in `folder` as the site can follow it."""
    text, target, anchor = link[1], link[2], link[3] or ""
    path = PurePosixPath(os.path.normpath(folder / target))
    if path.parts[0] == "docs":
        return f"[{text}]({path.relative_to('docs')}{anchor})"
    if str(path) in TAKEN:
        return f"[{text}]({TAKEN[str(path)]}{anchor})"
    name = f"`{path}`"
    return name if text.strip("`") in (str(path), path.name) else f"{text} ({name})"


def cli_page() -> str:
    """Return the reference of the command line, every verb in the order of its help, as typer writes it."""
    root = get_command(app)
    context = root.context_class(root, info_name="striate")
    return get_docs_for_click(obj=root, ctx=context, name="striate", title="Command line")


if __name__ == "__main__":
    print(cli_page(), end="")
