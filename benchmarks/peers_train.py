"""Which layers and components a training changed: `python benchmarks/peers_train.py BEFORE AFTER`, two folders.

BEFORE is a model, AFTER the same model trained by any tool, or an adapter of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

_LAYERS = "language model's layers"
_PLACES = {
    "projector": r"projector|merger|connector",
    "vision encoder": r"vision|visual",
    _LAYERS: r"\blayers\.\d+\.",
    "embeddings": r"embed_tokens",
    "output head": r"lm_head",
}
# Checkpoints of one model differ in these parts of names from one version of transformers to the next.
_WRAPPERS = r"\b(base_model|model|language_model|vision_model|modules_to_save|default)\."


def changed_names(before: Path, after: Path) -> list[str]:
    """Return the names of the tensors of `after` that training changed: whole ones, and those with a LoRA."""
    start = {_bare(name): tensor for name, tensor in _tensors(before)}
    return [name for name, tensor in _tensors(after) if _is_changed(name, tensor, start)]


def by_component(names: Iterable[str]) -> dict[str, str]:
    """Return, for each component, "no", "yes" or the numbers of the layers that the names belong to."""
    found = dict.fromkeys((*_PLACES, "other"), "no")
    layers: set[int] = set()
    for name in names:
        place = next((place for place, pattern in _PLACES.items() if re.search(pattern, name)), "other")
        found[place] = "yes"
        if place == _LAYERS:
            layers.add(int(re.findall(r"\blayers\.(\d+)\.", name)[0]))
    if layers:
        found[_LAYERS] = ", ".join(map(str, sorted(layers)))
    return found


def _is_changed(name: str, tensor: Tensor, start: dict[str, Tensor]) -> bool:
    if ".lora_A." in name:
        # Drawn at random; what it does shows in B, which begins as zeros.
        return False
    if ".lora_B." in name:
        return bool(tensor.any())
    old = start.get(_bare(name))
    if old is None or old.shape != tensor.shape:
        raise SystemExit(f"{name} of AFTER is not in BEFORE; give the model that the training began with")
    return not torch.equal(old.to(tensor.dtype), tensor)


def _bare(name: str) -> str:
    return re.sub(_WRAPPERS, "", name)


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise SystemExit(f"{folder} holds no .safetensors file; give a folder of a model or an adapter")
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in sorted(opened.keys()):
                yield name, opened.get_tensor(name)


def main(before: str, after: str) -> None:
    """Print what the training changed, a line a component."""
    names = changed_names(Path(before), Path(after))
    print(f"{len(names)} tensors changed")
    for place, what in by_component(names).items():
        print(f"{place}: {what}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("give two folders: python benchmarks/peers_train.py BEFORE AFTER")
    main(*sys.argv[1:])
