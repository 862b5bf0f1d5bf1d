"""Print what striate can do with every model type, and write it to docs/families.md.

Run `python scripts/family_matrix.py` for all model types, or name some; `--write` writes the page.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "families.md"
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "models")]
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from family_matrix import Result, check  # noqa: E402
from family_page import page, row_of  # noqa: E402
from family_zoo import model_types  # noqa: E402


def main() -> None:
    """Check the model types, print one line each and the counts, and write the page when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_types", nargs="*", help="model types; all of them when none is named")
    parser.add_argument("--write", action="store_true", help="write docs/families.md")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    if arguments.write and arguments.model_types:
        parser.error("--write needs all model types: name none")
    results = _results(arguments.model_types or model_types(), arguments.workers)
    print(", ".join(f"{count} {state}" for state, count in Counter(result.state for result in results).most_common()))
    if arguments.write:
        PAGE.write_text(page(results), encoding="utf-8")
        print(f"wrote {PAGE}")
    sys.exit(any(result.state == "failed" for result in results))


def _results(names: list[str], workers: int) -> list[Result]:
    """Return the result of each model type, printing each as it comes."""
    results = []
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_quiet) as pool:
        for result in pool.map(check, names):
            print(row_of(result) + (f" {result.reason}" if result.reason else ""), flush=True)
            results.append(result)
    return results


def _quiet() -> None:
    """Silence warnings and keep each process to one thread."""
    import torch
    import transformers

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
