#!/usr/bin/env python3
"""Put the study's second model together: the built-in LVLM's encoder with a language model of another family.

    python benchmarks/second_model.py LLM.gguf OUT --side 448

LLM is a .gguf file, a folder or a hub id. OUT gets an LVLM in LLaVA's form; its encoder sees pictures of `--side`
pixels, one token for 32 x 32 of them. Its projector is random: it answers nothing about pictures until it is aligned.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from striate.demo.places import locate_model
from striate.demo.register import register_with_transformers
from striate.models.convert.compose import compose
from striate.models.io.load import load_model
from striate.progress import Silent


def write_encoder(model: Path, side: int, folder: Path) -> None:
    """Write the vision encoder of an LVLM, for pictures of `side` pixels, and how it reads them."""
    loaded = load_model(model)
    encoder, images = loaded.model.model.vision_tower, loaded.processor.image_processor
    encoder.config.image_size = side
    images.size = images.crop_size = {"height": side, "width": side}
    encoder.save_pretrained(folder)
    images.save_pretrained(folder)


def main() -> None:
    """Write the LVLM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llm")
    parser.add_argument("out", type=Path, help="a folder that is not there yet")
    parser.add_argument("--model", default="builtin", help="whose encoder it gets")
    parser.add_argument("--side", type=int, default=448, help="pixels, a multiple of 32")
    args = parser.parse_args()
    register_with_transformers()
    with tempfile.TemporaryDirectory() as folder:
        write_encoder(Path(locate_model(args.model, Silent())), args.side, Path(folder))
        loaded = compose(Path(folder), args.llm, fit="squeeze")
    loaded.model.bfloat16().save_pretrained(args.out)
    loaded.processor.save_pretrained(args.out)
    parameters, tokens = loaded.model.num_parameters(), loaded.model.config.image_seq_length
    print(f"{args.out}: {parameters:,} parameters, {tokens} image tokens a picture")


if __name__ == "__main__":
    main()
