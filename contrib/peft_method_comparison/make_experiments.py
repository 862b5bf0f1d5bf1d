#!/usr/bin/env python3
"""Write the experiments of the image-text task: LoRA in a quarter of the layers, chosen three ways, and in all of them.

    python contrib/peft_method_comparison/make_experiments.py contrib/peft_method_comparison/image-text/experiments

The layers are those of a language model of 32 layers, as `striate select` chooses them.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from peft import LoraConfig

from striate.selectors.spec.grammar import parse_spec, resolve

NUM_LAYERS = 32
MODEL = "smolvlm-500M"
ARMS = {"all": "all", "uniform-25": "uniform:25%", "middle-25": "middle:25%", "top-25": "top:25%"}
# A quarter of the layers learns at twice the rate of all of them.
RATES = {name: 2e-4 if name == "all" else 4e-4 for name in ARMS}
PROJECTIONS = "q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj"


def target_modules(layers: tuple[int, ...]) -> str:
    """Return the expression that matches the projections of these layers of the language model, and no vision layer."""
    chosen = "|".join(map(str, layers))
    return rf".*\b(text_model|language_model)\.(.*\.)?layers\.({chosen})\..*\b({PROJECTIONS})"


def write(experiments: Path) -> None:
    """Write a folder an arm, with PEFT's config and the rate."""
    for name, spec in ARMS.items():
        folder = experiments / "lora" / f"{MODEL}-region-{name}"
        layers = resolve(parse_spec(spec), NUM_LAYERS).layers
        LoraConfig(r=32, lora_alpha=64, target_modules=target_modules(layers)).save_pretrained(folder)
        rate = {"optimizer_kwargs": {"lr": RATES[name], "weight_decay": 0.0}}
        (folder / "training_params.json").write_text(json.dumps(rate, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
