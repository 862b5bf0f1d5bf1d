#!/usr/bin/env python3
"""Time training steps of other tools and of striate side by side, on one accelerator, in one job.

    python benchmarks/peers_step.py                          all arms
    python benchmarks/peers_step.py peft-25 striate-exact    some of them
    python benchmarks/peers_step.py --tiny                   toys on the CPU, to test the machinery

LLaVA-1.5-7B's shape with random weights, 8 samples of one picture and 200 text tokens, LoRA of rank 128 on 25% or
on all of the layers, and the projector. Each arm runs in a process of its own. One JSON line an arm, then a table:
a whole step (median, least), tokens a second, peak GiB, and seconds from a built model to the first timed step.
Every step waits for the accelerator. LoRA has dropout of 0.05; `striate` and `trl` clip gradients, the others
don't; peaks of `striate` are those of timed steps. `striate-fp8` and `striate-fast` (image tokens in the region
alone, or in half of the layers) are not exact. The loss is that of the last step, of `trl` the mean of all. An arm
that fails is told with its error; the others run. `trl` makes its batches itself, from samples of the same size.
`unsloth` wants its own versions of TRL and datasets (2026.10: trl<=1.15, datasets<5, transformers<=5.17), and
bitsandbytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import markdown_table
from apart import run_apart

COLUMNS = {"ms": "ms", "ms_min": "least", "of_reference": "of reference", "tokens_per_s": "tokens/s"}
COLUMNS |= {"peak_gib": "peak GiB", "warm_s": "until warm, s"}
INEXACT = ("striate-fp8", "striate-fast", "striate-fast-half")


def table(found: list[dict[str, Any]]) -> str:
    """Return the lines as a Markdown table."""
    return markdown_table.table(["arm", *COLUMNS.values()], map(_row, found))


def _row(line: dict[str, Any]) -> list[str]:
    if "ms" not in line:
        return [line["name"], line["error"].replace("|", "/"), *[""] * (len(COLUMNS) - 1)]
    name = f"{line['name']} (not exact)" if line["name"] in INEXACT else line["name"]
    return [name, *(str(line.get(key, "")) for key in COLUMNS)]


def main() -> None:
    """Run the arms, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="*", help="names of arms; all of them where none is given")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3, help="steps before, at least one")
    parser.add_argument("--backend", help="of torch.compile; inductor, or eager for toys")
    parser.add_argument("--limit", type=float, default=560, help="seconds for all arms together")
    parser.add_argument("--out", type=Path, help="a file to add the lines to as well")
    parser.add_argument("--tiny", action="store_true", help="toys of the same family, on the CPU")
    parser.add_argument("--one", action="store_true", help="measure the one arm in this process")
    args = parser.parse_args()
    args.backend = args.backend or ("eager" if args.tiny else "inductor")
    if args.one and args.arms[0].startswith("unsloth"):
        # It patches what is imported after it.
        import_module("unsloth")
    from peers_arms import ARMS, measured

    if unknown := set(args.arms) - set(ARMS):
        parser.error(f"no such arm: {', '.join(sorted(unknown))}; there are {', '.join(ARMS)}")
    if args.one:
        print(json.dumps(measured(args.arms[0], args)))
        return
    options = [word for word in sys.argv[1:] if word not in args.arms]
    begin, found, reference = time.perf_counter(), [], None
    for name in args.arms or ARMS:
        line = run_apart(name, [__file__, name, "--one", *options], args.limit - (time.perf_counter() - begin))
        reference = line.get("ms") if name == "reference" else reference
        if reference and "ms" in line:
            line["of_reference"] = round(line["ms"] / reference, 3)
        found.append(line)
        print(json.dumps(line), flush=True)
        if args.out:
            with args.out.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(line) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
