"""Metrics and figures of whole tasks: POPE, MME, perplexity, CIDEr; and how replies are scored together."""

from __future__ import annotations

import math
import sys
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.artifacts import Prediction
from striate.errors import DataError
from striate.tasks.metrics import METRICS
from striate.tasks.metrics.choices.yes_no import mme_details, pope_details
from striate.tasks.metrics.cider import words_of
from striate.tasks.packs.items import Item, Mark, Reply
from striate.tasks.scoring.mark import check_corpora, mark_all

WORDS = st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=20)
DOGS = ("a dog", "two dogs", "a cat")


def item(metric: str, *answers: str, **fields: object) -> Item:
    return Item(id="a", pack="p", task="t", metric=metric, answers=answers, **fields)  # type: ignore[arg-type]


def mark(metric: str, text: str, *answers: str, **fields: object) -> Mark:
    return METRICS.get(metric).function(item(metric, *answers, **fields), Reply(text))


def predictions(*rows: tuple[str, str, str]) -> list[Prediction]:
    return [
        Prediction(
            id=str(number),
            pack="p",
            task="t",
            metric="yes_no",
            question="?",
            image=image,
            expected=(true,),
            answer=text,
            score=mark("yes_no", text, true).score,
        )
        for number, (image, true, text) in enumerate(rows)
    ]


def test_pope_figures_by_hand() -> None:
    # 3 hits, 1 miss, 2 false alarms (one of them no answer at all), 2 right noes
    rows = predictions(
        ("a", "yes", "Yes"),
        ("a", "yes", "yes."),
        ("b", "yes", "Yes"),
        ("b", "yes", "No"),
        ("c", "no", "Yes"),
        ("c", "no", "hm"),
        ("d", "no", "no"),
        ("d", "no", "There is not"),
    )
    assert pope_details(rows) == pytest.approx(
        {"accuracy": 5 / 8, "precision": 3 / 5, "recall": 3 / 4, "f1": 2 * 0.6 * 0.75 / 1.35, "yes_rate": 4 / 8}
    )


def test_pope_figures_without_a_yes_are_0_not_an_error() -> None:
    assert pope_details(predictions(("a", "no", "no"))) == {
        "accuracy": 1.0,
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "yes_rate": 0.0,
    }


def test_mme_score_by_hand() -> None:
    # accuracy 3/4; of two pictures one has both right: 75 + 50
    rows = predictions(("a", "yes", "yes"), ("a", "no", "no"), ("b", "yes", "yes"), ("b", "no", "yes"))
    assert mme_details(rows) == {"accuracy": 75.0, "accuracy_plus": 50.0, "mme_score": 125.0}
    named = [row.model_copy(update={"id": f"{'count' if row.image == 'a' else 'OCR'}/{row.id}"}) for row in rows]
    assert mme_details(named) == {
        "accuracy": 75.0,
        "accuracy_plus": 50.0,
        "mme_score": 250.0,
        "count": 200.0,
        "OCR": 50.0,
    }


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["yes", "no"]), WORDS), min_size=1, max_size=8))
def test_figures_of_yes_no_are_bounded(rows: list[tuple[str, str, str]]) -> None:
    found = predictions(*rows)
    assert all(0 <= value <= 1 for value in pope_details(found).values())
    assert 0 <= mme_details(found)["mme_score"] <= 200
    assert mme_details(found)["mme_score"] == pytest.approx(
        mme_details(found)["accuracy"] + mme_details(found)["accuracy_plus"]
    )


def test_perplexity_states_its_tokens() -> None:
    rows = [
        Prediction(id=str(n), pack="p", task="t", metric="perplexity", question="x", score=score, weight=weight)
        for n, (score, weight) in enumerate([(2.0, 3.0), (1.0, 1.0)])
    ]
    assert METRICS.get("perplexity").details(rows) == {"tokens": 4.0, "perplexity": pytest.approx(math.exp(1.75))}


def captions(*texts: str) -> list[Mark]:
    answers = [("a red bus on a wet road", "red bus"), ("two cats sleep on the sofa",), ("a plate of cold fish",)]
    items = [Item(str(n), "p", "t", "cider", answers=given_answers) for n, given_answers in enumerate(answers)]
    return mark_all(items[: len(texts)], [Reply(text) for text in texts])


def test_cider_by_hand() -> None:
    pytest.importorskip("pycocoevalcap")
    found = captions("A red bus on a wet road!", "Two cats sleep on the sofa.", "")
    # one reference, word for word: cosine 1 for 1- to 4-grams, no length penalty
    assert found[1].score == pytest.approx(1.0)
    # identical to one of two references; the second adds its own cosine
    assert 0.5 <= found[0].score < 1
    assert found[2] == Mark(0.0, "", unparsed=True)
    details = METRICS.get("cider").details
    row = Prediction(id="a", pack="p", task="t", metric="cider", question="", score=found[1].score)
    assert details([row])["cider"] == pytest.approx(1000)


def test_cider_of_two_word_captions_in_closed_form() -> None:
    pytest.importorskip("pycocoevalcap")
    items = [Item("0", "p", "t", "cider", answers=("red bus",)), Item("1", "p", "t", "cider", answers=("two cats",))]
    found = mark_all(items, [Reply("red car"), Reply("cats two")])
    # every word has idf log 2; unigrams: cosine 1/2 and 1; bigrams: none shared; mean over n = 1..4
    assert [one.score for one in found] == pytest.approx([0.5 / 4, 1 / 4])


def test_cider_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(DataError, match=r"needs the package pycocoevalcap(.|\n)*pip install 'striate\[captions\]'"):
        captions("x", "y")
    assert "not installed: pip install 'striate[captions]'" in METRICS.get("cider").check(item("cider", "x"))


def test_cider_scores_a_task_together(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Cider:
        def compute_score(self, references: dict[int, list[str]], found: dict[int, list[str]]) -> tuple[float, list]:
            seen.append((references, found))
            return 0.0, [2.5] * len(found)

    module = ModuleType("pycocoevalcap.cider.cider")
    module.Cider = Cider  # type: ignore[attr-defined]
    for name in ("pycocoevalcap", "pycocoevalcap.cider"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    assert [one.score for one in captions("A bus!", "Cats.")] == [0.25, 0.25]
    assert seen == [
        ({0: ["a red bus on a wet road", "red bus"], 1: ["two cats sleep on the sofa"]}, {0: ["a bus"], 1: ["cats"]})
    ]


def test_one_caption_has_no_cider() -> None:
    alone = [item("cider", "x"), item("exact", "x")]
    with pytest.raises(DataError, match=r"p/t has one item, and metric 'cider' weighs(.|\n)*raise evaluate\.limit"):
        check_corpora(alone)
    check_corpora([*alone, item("cider", "y")])
    assert words_of("It's a DOG, isn’t it?") == "it's a dog isn’t it"


def test_marks_come_back_in_the_order_of_the_items() -> None:
    items = [item("exact", "x"), item("letter", choices=DOGS, answer_index=1), item("exact", "y")]
    found = mark_all(items, [Reply("x"), Reply("A"), Reply("y")])
    assert [one.score for one in found] == [1, 0, 1]


def test_reasoning_before_an_answer_is_no_part_of_it() -> None:
    items = [item("exact", "oak"), item("exact", "oak")]
    found = mark_all(items, [Reply("\n</think>\n\noak"), Reply("<think>an oak?</think>an elm")])
    assert [(mark.score, mark.answer) for mark in found] == [(1.0, "oak"), (0.0, "an elm")]
