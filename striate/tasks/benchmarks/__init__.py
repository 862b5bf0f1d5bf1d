"""Published benchmarks, read in the layout of their own files: one a file, in one explicit list. No torch here."""

from striate.registry import Registry
from striate.tasks.benchmarks.bbh import BBH, BBH_COT
from striate.tasks.benchmarks.docvqa import DOCVQA
from striate.tasks.benchmarks.exams import C_EVAL_BENCHMARK, CMMLU, MMLU
from striate.tasks.benchmarks.formats.benchmark import Benchmark
from striate.tasks.benchmarks.gqa import GQA
from striate.tasks.benchmarks.mmbench import MMBENCH
from striate.tasks.benchmarks.mme import MME
from striate.tasks.benchmarks.mmmu import MMMU
from striate.tasks.benchmarks.ocrvqa import OCRVQA
from striate.tasks.benchmarks.pope import POPE
from striate.tasks.benchmarks.refcoco import REFCOCO, REFCOCO_PLUS, REFCOCOG
from striate.tasks.benchmarks.scienceqa import SCIENCEQA
from striate.tasks.benchmarks.seed_bench import SEED_BENCH
from striate.tasks.benchmarks.tdiuc import TDIUC
from striate.tasks.benchmarks.textvqa import TEXTVQA, TEXTVQA_OCR

BENCHMARKS: Registry[Benchmark] = Registry(
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
