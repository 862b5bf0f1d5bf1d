"""The Modelfile by which Ollama takes a pair of GGUF files."""

from __future__ import annotations

from striate.models.convert.gguf.picture_template import PictureTemplate

_QUOTES = '"""'


def modelfile(files: list[str], template: PictureTemplate) -> str:
    """Return the text of a Modelfile: the files, how a conversation is written, what ends an answer, greedy answers."""
    lines = [f"FROM ./{name}" for name in files]
    if template.go is not None and _QUOTES not in template.go:
        lines.append(f"TEMPLATE {_QUOTES}{template.go}{_QUOTES}")
    # Ollama has no way to write other characters.
    if template.stop.isprintable() and template.stop and '"' not in template.stop:
        lines.append(f'PARAMETER stop "{template.stop}"')
    lines.append("PARAMETER temperature 0")
    return "\n".join(lines) + "\n"
