"""Text benchmarks on tiny copies of their published files, and how `evaluate.packs` names benchmarks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from striate.errors import DataError, SpecError
from striate.tasks.benchmarks import BENCHMARKS
from striate.tasks.inference.prompts import joined, plain_context
from striate.tasks.packs.items import Item
from striate.tasks.packs.sources import Source, parse_source, read_source

CANARY = "BIG-bench canary. NEVER TRAIN.\n-----\n"
EXAMPLE = "Q: not True is\nA: Let's think step by step.\nTrue is True, so not True is False. So the answer is False."


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def read(spec: str, **options: Any) -> list[Item]:
    return list(read_source(parse_source(spec), **options).items)


def mmlu(folder: Path) -> None:
    rows = [f'"What is {n}, exactly?",{n},5,6,7,A' for n in range(5)]
    for subject in ("abstract_algebra", "anatomy"):
        write(folder / "dev" / f"{subject}_dev.csv", "\n".join(rows))
        write(folder / "test" / f"{subject}_test.csv", '"Find the ""degree"".",0,4,2,6,B\n"Two\nlines?",1,2,3,4,D\n')


def bbh(folder: Path) -> None:
    choose = "Q: Pick.\nOptions:\n(A) x\n(B) y\nA: Let's think step by step.\nHm.\n\nSo the answer is (B)."
    for task, target, shown in (("boolean_expressions", "False", EXAMPLE), ("snarks", "(A)", choose)):
        examples = [{"input": "not ( True ) is", "target": target}, {"input": "next", "target": target}]
        write(folder / "bbh" / f"{task}.json", json.dumps({"canary": "x", "examples": examples}))
        text = f"{CANARY}Do it.\n\n" + "\n\n".join([shown] * 3)
        write(folder / "cot-prompts" / f"{task}.txt", text)


def test_mmlu_prompts_are_the_papers(tmp_path: Path) -> None:
    mmlu(tmp_path)
    items = read(f"mmlu@1:{tmp_path}")
    assert [item.id for item in items] == ["abstract_algebra/0", "abstract_algebra/1", "anatomy/0", "anatomy/1"]
    first = items[0]
    assert joined(plain_context(first), first.choices[1]) == (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
        "What is 0, exactly?\nA. 0\nB. 5\nC. 6\nD. 7\nAnswer: A\n\n"
        'Find the "degree".\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer: B'
    )
    assert (first.metric, first.answer_index, first.compare, first.image) == ("choice_logprob", 1, "sum", None)
    assert read(f"mmlu:{tmp_path}")[0].context.count("Answer: A") == 5
    assert read(f"mmlu@0:{tmp_path}")[0].context.count("Answer:") == 1


def test_mmlu_without_enough_examples(tmp_path: Path) -> None:
    mmlu(tmp_path)
    write(tmp_path / "dev" / "anatomy_dev.csv", "q,1,2,3,4,A\n")
    with pytest.raises(DataError, match=r"anatomy_dev\.csv has 1 examples, but 5 are asked for"):
        read(f"mmlu:{tmp_path}")
    (tmp_path / "dev" / "anatomy_dev.csv").unlink()
    with pytest.raises(DataError, match=r"has no dev/anatomy_dev\.csv"):
        read(f"mmlu:{tmp_path}")
    write(tmp_path / "test" / "anatomy_test.csv", "q,1,2,3,4\n")
    with pytest.raises(DataError, match=r"anatomy_test\.csv:1 has too few cells"):
        read(f"mmlu@0:{tmp_path}")


def test_c_eval_and_cmmlu_in_chinese(tmp_path: Path) -> None:
    header, row = "id,question,A,B,C,D,answer", "0,下列哪个对？,甲,乙,丙,丁,C"
    write(tmp_path / "val" / "accountant_val.csv", f"{header}\n{row}\n")
    write(tmp_path / "dev" / "accountant_dev.csv", f"{header},explanation\n{row},因为\n")
    (item,) = read(f"c-eval@1:{tmp_path}")
    assert item.id == "accountant/0"
    assert joined(plain_context(item), "C") == (
        "以下是中国关于注册会计师考试的单项选择题，请选出其中的正确答案。\n\n"
        "下列哪个对？\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：C\n\n"
        "下列哪个对？\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：C"
    )
    write(tmp_path / "test" / "agronomy.csv", ",Question,A,B,C,D,Answer\n0,哪个？,甲,乙,丙,丁,D\n")
    (item,) = read(f"cmmlu@0:{tmp_path}")
    assert item.context == (
        "以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\n题目：哪个？\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案是："
    )
    assert (item.id, item.answer_index) == ("agronomy/0", 3)


def test_bbh_directly_and_step_by_step(tmp_path: Path) -> None:
    bbh(tmp_path)
    direct = read(f"bbh@2:{tmp_path}")
    assert direct[0].question == (
        "Do it.\n\nQ: not True is\nA: False\n\nQ: not True is\nA: False\n\nQ: not ( True ) is\nA:"
    )
    assert direct[2].question.endswith("(B) y\nA: (B)\n\nQ: not ( True ) is\nA:")
    assert [item.answers for item in direct] == [("False",), ("False",), ("(A)", "A"), ("(A)", "A")]
    assert {item.metric for item in direct} == {"first_line"}
    steps = read(f"bbh-cot:{tmp_path}")
    assert steps[0].question == f"Do it.\n\n{EXAMPLE}\n\n{EXAMPLE}\n\n{EXAMPLE}\n\n" + (
        "Q: not ( True ) is\nA: Let's think step by step."
    )
    assert {item.metric for item in steps} == {"final_answer"}
    assert "NEVER TRAIN" not in steps[0].question


@pytest.mark.parametrize("name", ["mmlu", "bbh", "bbh-cot", "c-eval", "cmmlu"])
def test_a_folder_without_the_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"benchmark {name}: .* has no "):
        read(f"{name}:{tmp_path}")


def test_a_limit_is_spread_over_a_benchmark(tmp_path: Path) -> None:
    mmlu(tmp_path)
    assert [item.id for item in read(f"mmlu@0:{tmp_path}", limit=2)] == ["abstract_algebra/0", "anatomy/0"]


def test_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert parse_source("data/pack") == Source(Path("data/pack"))
    assert parse_source("~/pack") == Source(Path("/home/somebody/pack"))
    assert parse_source("pope:~/pope") == Source(Path("/home/somebody/pope"), "pope")
    assert parse_source("mmlu@0:x") == Source(Path("x"), "mmlu", 0)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pope:x").mkdir()
    assert parse_source("pope:x") == Source(Path("pope:x"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "textvq:/data",
            "unknown benchmark 'textvq' in 'textvq:/data'\n  allowed: FOLDER, or NAME:FOLDER with NAME one of",
        ),
        ("textvq:/data", "did you mean 'textvqa'? see `striate ls tasks`"),
        (
            "mmlu@6:/data",
            "'mmlu@6:/data' asks for 6 worked examples\n  allowed: at most 5\n  next:    write mmlu:/data",
        ),
        ("gqa@1:/data", "allowed: none: gqa is asked without examples"),
    ],
)
def test_sources_that_can_t_be_read(text: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_source(text)
    assert said in str(caught.value)


def test_every_benchmark_says_where_its_files_come_from() -> None:
    assert len(BENCHMARKS) == 20
    for strategy in BENCHMARKS:
        assert getattr(strategy, "source", "")
        assert getattr(strategy, "layout", ())
        assert strategy.paper
