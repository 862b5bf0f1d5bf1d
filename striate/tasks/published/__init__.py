"""Published benchmarks, read in the layout of their own files: one a file, in one explicit list. No torch here."""

from __future__ import annotations

from striate.registry import Registry
from striate.tasks.published.bbh import BBH, BBH_COT
from striate.tasks.published.benchmark import Benchmark, ReadFunction
from striate.tasks.published.docvqa import DOCVQA
from striate.tasks.published.exams import C_EVAL_BENCHMARK, CMMLU, MMLU
from striate.tasks.published.gqa import GQA
from striate.tasks.published.mmbench import MMBENCH
from striate.tasks.published.mme import MME
from striate.tasks.published.mmmu import MMMU
from striate.tasks.published.ocrvqa import OCRVQA
from striate.tasks.published.pope import POPE
from striate.tasks.published.refcoco import REFCOCO, REFCOCO_PLUS, REFCOCOG
from striate.tasks.published.scienceqa import SCIENCEQA
from striate.tasks.published.seed_bench import SEED_BENCH
from striate.tasks.published.tdiuc import TDIUC
from striate.tasks.published.textvqa import TEXTVQA, TEXTVQA_OCR

BENCHMARKS: Registry[ReadFunction] = Registry(
    "benchmark",
    [
        TEXTVQA,
        TEXTVQA_OCR,
        DOCVQA,
        OCRVQA,
        TDIUC,
        GQA,
        REFCOCO,
        REFCOCO_PLUS,
        REFCOCOG,
        SCIENCEQA,
        MMBENCH,
        SEED_BENCH,
        MMMU,
        POPE,
        MME,
        MMLU,
        BBH,
        BBH_COT,
        C_EVAL_BENCHMARK,
        CMMLU,
    ],
)


def benchmark_of(name: str) -> Benchmark:
    """Return the benchmark called `name`.

    Raises:
        SpecError: no such benchmark; the text names the closest one and lists all.
    """
    found = BENCHMARKS.get(name)
    assert isinstance(found, Benchmark), "every entry of BENCHMARKS is a Benchmark"
    return found
