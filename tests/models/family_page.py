"""The page of supported families, written from the matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import transformers
from family_matrix import COLUMNS, EXTRAS, YES, Result
from family_zoo import NUM_LAYERS, model_class

_HEAD = f"""# Families

This page is written by `python scripts/family_matrix.py --write` with transformers {transformers.__version__}: do not
edit it. Each model type of `AutoModelForImageTextToText` is built at a tiny size with {NUM_LAYERS} decoder layers and
random weights, from its default config; vision encoders of the package timm have a stand-in. A model type that no
table of striate names goes through the same rules.

What each column says:

- **anatomy**: vision encoder, projector and decoder layers are found, and every parameter has its place.
- **full proof**, **LoRA proof**: the gradient proof holds: the chosen layers and the projector receive gradients, and
  nothing else does.
- **one step**: after a training step only the chosen layers and the projector differ, to the bit.
- **prune**: an early, a middle and a late layer are removed; the logits equal those of a model that skips them.
- **reload**: the smaller model, saved and read back from disk, gives the same logits to the bit.
- **cached == uncached**: its greedy answers are the same with and without the KV cache.
- **compensation**: which values of `prune.compensate` it takes: with the same layers removed, only the weights named in
  the record change, the error rises at no gap and falls at one or more, and the smaller model reloads to the bit.
- **healing**: after one step towards the whole model, three layers and the projector of the smaller one differ,
  nothing else does, and the loss is lower; an encoder-decoder is not trained.
- **vision**: which values of `train.vision` it takes, all layers of its encoder at once: the proof holds,
  after a step they differ and nothing outside the choice does, and the saved model or adapter has the same tensors to
  the bit when transformers or plain PEFT reads it.
- **projector**: which values of `train.projector` it takes: LoRA where it has linear layers, and then the adapter
  holds LoRA pairs alone, as vLLM asks for; none where nothing stands between vision encoder and language model.
"""


def page(results: Sequence[Result]) -> str:
    """Return the page in Markdown."""
    counts = Counter(result.state for result in results)
    summary = f"{counts['green']} model types pass every check, {counts['refused']} are refused in part or whole"
    summary += f", {counts['broken']} broken in this transformers itself." if counts["broken"] else "."
    head = "| model type | class | removed | " + " | ".join(COLUMNS + EXTRAS) + " |"
    rows = [row_of(result) for result in results if result.state in ("green", "refused", "failed", "broken")]
    parts = [_HEAD, summary + "\n", head, "|" + " --- |" * (len(COLUMNS + EXTRAS) + 3), *rows, ""]
    for title, state in _SECTIONS:
        entries = [f"- `{result.model_type}`: {result.reason}" for result in results if result.state == state]
        parts += [f"## {title}\n", *entries, ""] if entries else []
    notes = [f"- `{result.model_type}`: {result.note}" for result in results if result.note and result.state == "green"]
    if notes:
        parts += ["## Layers that stay\n", _NOTES, *notes, ""]
    lacking = [
        f"- `{result.model_type}`: {result.uncompensated}"
        for result in results
        if result.uncompensated and result.state == "green"
    ]
    parts += ["## Not compensated, or in one way only\n", *lacking, ""] if lacking else []
    frozen = [
        f"- `{result.model_type}`: {result.untrained}"
        for result in results
        if result.untrained and result.state == "green"
    ]
    parts += ["## Vision encoders that stay frozen, or train in one way only\n", *frozen, ""] if frozen else []
    return "\n".join(parts)


def row_of(result: Result) -> str:
    """Return the table row of one model type."""
    cells = [result.cells.get(column, "") for column in COLUMNS + EXTRAS]
    marks = [cell if cell != YES else "✓" for cell in cells]
    removed = ", ".join(map(str, result.removed))
    return f"| `{result.model_type}` | {model_class(result.model_type).__name__} | {removed} | {' | '.join(marks)} |"


_SECTIONS = (
    ("Refused", "refused"),
    (f"Broken in transformers {transformers.__version__}", "broken"),
    ("Failed", "failed"),
    ("Not vision-language models", "no LVLM"),
    ("Not built here", "not built"),
)
_NOTES = "Of these families, some layers can't be removed, and striate says why when asked to:\n"
