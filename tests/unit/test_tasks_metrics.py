"""Metrics against cases worked out by hand, and properties that hold for every answer."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.errors import SpecError
from striate.tasks.inference.prompts import chat_sample, joined, plain_context
from striate.tasks.metrics import METRICS
from striate.tasks.metrics.choices.choice_logprob import ranking
from striate.tasks.metrics.reading.answer_text import normalize
from striate.tasks.metrics.reading.box_parsing import overlap, parse_box
from striate.tasks.metrics.text_match.anls import edit_distance, similarity
from striate.tasks.metrics.text_match.last_word import first_word
from striate.tasks.packs.items import Item, Mark, Reply

WORDS = st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=20)
FRACTIONS = st.integers(0, 100).map(lambda value: value / 100)
BOXES = st.tuples(FRACTIONS, FRACTIONS, FRACTIONS, FRACTIONS).filter(lambda box: box[0] < box[2] and box[1] < box[3])


def item(metric: str, *answers: str, choices: tuple[str, ...] = (), **fields: object) -> Item:
    return Item(id="a", pack="p", task="t", metric=metric, answers=answers, choices=choices, **fields)  # type: ignore[arg-type]


def mark(metric: str, text: str, *answers: str, choices: tuple[str, ...] = ()) -> Mark:
    return METRICS.get(metric).function(item(metric, *answers, choices=choices), Reply(text))


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Golden Delicious", 1),
        ("  golden delicious. ", 1),
        ("GOLDEN DELICIOUS APPLE", 1),
        ("golden  delicious", 0),
        ("a golden delicious", 0),
        ("golden delicious..", 0),
        ("golden", 0),
    ],
)
def test_exact_ignores_case_margins_and_one_full_stop_only(text: str, score: int) -> None:
    assert mark("exact", text, "Golden Delicious", "Golden Delicious Apple").score == score


def test_an_empty_answer_is_unparsed_even_where_a_full_stop_is_accepted() -> None:
    assert mark("exact", " . ", ".") == Mark(0.0, ".", unparsed=True)
    assert mark("anls", "  ", "x").unparsed


@pytest.mark.parametrize(
    ("text", "score", "unparsed"),
    [
        ("yes", 1, False),
        ("Yes.", 1, False),
        ("no", 0, False),
        ("yes, it is", 0, True),
        ("the answer is yes", 0, True),
        ("yesterday", 0, True),
        ("yes no", 0, True),
        ("", 0, True),
    ],
)
def test_choice_takes_whole_answers_only(text: str, score: int, unparsed: bool) -> None:
    found = mark("choice", text, "yes", choices=("yes", "no"))
    assert (found.score, found.unparsed) == (score, unparsed)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("abc", "abc", 0), ("ab", "ba", 2)],
)
def test_edit_distance_by_hand(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == distance


@given(WORDS, WORDS, WORDS)
def test_edit_distance_is_a_metric(first: str, second: str, third: str) -> None:
    assert edit_distance(first, second) == edit_distance(second, first)
    assert (edit_distance(first, second) == 0) == (first == second)
    assert edit_distance(first, third) <= edit_distance(first, second) + edit_distance(second, third)
    assert abs(len(first) - len(second)) <= edit_distance(first, second) <= max(len(first), len(second))


def test_anls_by_hand_and_its_threshold() -> None:
    assert mark("anls", "sitting", "kitten").score == pytest.approx(1 - 3 / 7)
    assert mark("anls", "ab", "AC").score == 0.5  # exactly half is kept
    assert mark("anls", "abc", "axy").score == 0.0  # a third is not
    assert mark("anls", "MR  D.I.Y.\n(M)", "nothing like it", "mr d.i.y. (m)").score == 1.0


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("It is at [0,0,1,1].", (0, 0, 1, 1)),
        ("[.1,.2,.3,.4] or [0.5, 0.5, 0.6, 0.6]", (0.1, 0.2, 0.3, 0.4)),
        ("0.1, 0.2, 0.3, 0.4", None),
        ("[0.1, 0.2, 0.3]", None),
        ("[0.3, 0.2, 0.1, 0.4]", None),
        ("[0.1, 0.2, 0.3, 0.2]", None),
        ("[10, 20, 30, 40]", (0.01, 0.02, 0.03, 0.04)),
        ("[-0.1, 0.2, 0.3, 0.4]", None),
        ("[a, b, c, d]", None),
        ("", None),
    ],
)
def test_boxes_that_can_be_read(text: str, box: tuple[float, ...] | None) -> None:
    assert parse_box(text) == box


def test_overlap_by_hand() -> None:
    assert overlap((0, 0, 1, 1), (0, 0, 1, 1)) == 1
    assert overlap((0, 0, 0.5, 1), (0.5, 0, 1, 1)) == 0
    assert overlap((0, 0, 0.2, 0.2), (0.1, 0.1, 0.3, 0.3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 0.1, 0.1), (0.5, 0.5, 0.6, 0.6)) == 0


@given(BOXES, BOXES)
def test_overlap_is_symmetric_and_bounded(first: tuple[float, ...], second: tuple[float, ...]) -> None:
    value = overlap(first, second)  # type: ignore[arg-type]
    assert 0 <= value <= 1 + 1e-9
    assert value == pytest.approx(overlap(second, first))  # type: ignore[arg-type]
    assert overlap(first, first) == pytest.approx(1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "score", "unparsed"),
    [
        ("[0, 0, 0.2, 0.1]", 1, False),  # an overlap of exactly 0.5
        ("[0, 0, 0.21, 0.1]", 0, False),
        ("[0, 0, 0.1, 0.1]", 1, False),
        ("top left", 0, True),
    ],
)
def test_iou50_counts_from_one_half(text: str, score: int, unparsed: bool) -> None:
    found = mark("iou50", text, "[0, 0, 0.1, 0.1]")
    assert (found.score, found.unparsed) == (score, unparsed)


def test_choice_logprob_by_mean_or_by_sum() -> None:
    reply = Reply(logprobs=(-4.0, -6.0), tokens=(2, 6))
    fields = {"choices": ("short", "a long one"), "answer_index": 1}
    by_mean = item("choice_logprob", **fields)  # type: ignore[arg-type]
    by_sum = item("choice_logprob", compare="sum", **fields)  # type: ignore[arg-type]
    assert ranking(by_mean, reply) == [-2.0, -1.0]
    assert METRICS.get("choice_logprob").function(by_mean, reply) == Mark(1.0, "a long one")
    assert METRICS.get("choice_logprob").function(by_sum, reply) == Mark(0.0, "short")


def test_of_equal_choices_the_first_counts() -> None:
    tied = item("choice_logprob", choices=("a", "b"), answer_index=1)
    assert METRICS.get("choice_logprob").function(tied, Reply(logprobs=(-1.0, -1.0), tokens=(1, 1))).score == 0


@pytest.mark.parametrize(
    ("text", "word"),
    [(' Nero."', "nero"), ("\nNero said", "nero"), ("o'clock", "o'clock"), ("...", ""), ("", ""), ("—Nero—", "nero")],
)
def test_first_word(text: str, word: str) -> None:
    assert first_word(text) == word


def test_last_word_compares_whole_words() -> None:
    assert mark("last_word", " nero, and", "Nero").score == 1
    assert mark("last_word", " Neron", "Nero").score == 0
    assert mark("last_word", ' "', "Nero") == Mark(0.0, "", unparsed=True)


def test_perplexity_is_nats_a_token_weighted_by_tokens() -> None:
    found = METRICS.get("perplexity").function(item("perplexity"), Reply(logprobs=(-6.0,), tokens=(3,)))
    assert (found.score, found.weight) == (2.0, 3.0)
    assert found.answer == f"perplexity {math.exp(2):.4g}"
    assert "too large" in METRICS.get("perplexity").function(item("perplexity"), Reply("", (-9e3,), (3,))).answer


@given(st.sampled_from(["exact", "anls", "choice", "iou50", "last_word"]), WORDS, BOXES)
def test_every_score_is_between_0_and_1_and_unparsed_answers_score_0(
    metric: str, text: str, box: tuple[float, ...]
) -> None:
    true = str(list(box)) if metric == "iou50" else "yes"
    found = mark(metric, text, true, choices=("yes", "no"))
    assert 0 <= found.score <= 1
    assert found.score == 0 or not found.unparsed


@given(WORDS.filter(lambda text: bool(normalize(text)) and bool(first_word(text))), BOXES)
def test_the_true_answer_scores_1(text: str, box: tuple[float, ...]) -> None:
    for metric in ("exact", "anls", "choice", "last_word"):
        assert mark(metric, text, "other", text, choices=("other", text)).score == 1 or metric == "last_word"
    assert mark("last_word", text, text).score == 1
    assert mark("iou50", str(list(box)), str(list(box))).score == 1


@given(WORDS, WORDS)
def test_similarity_is_symmetric_and_bounded(first: str, second: str) -> None:
    assert 0 <= similarity(first, second) <= 1
    assert similarity(first, second) == similarity(second, first)


def test_every_metric_is_described() -> None:
    assert len(METRICS) == 17
    for strategy in METRICS:
        found = METRICS.get(strategy.name)
        assert found.title
        assert found.summary
        assert found.paper.startswith("https://")
        assert found.mode in ("generate", "choose", "next_word", "perplexity")
        assert found.higher_is_better == (found.name != "perplexity")


def test_an_unknown_metric_answers_with_the_list() -> None:
    with pytest.raises(SpecError) as caught:
        METRICS.get("exakt")
    assert str(caught.value) == (
        "unknown task 'exakt'\n"
        f"  allowed: {', '.join(METRICS.names())}\n"
        "  next:    did you mean 'exact'? see `striate ls tasks`"
    )


@pytest.mark.parametrize(
    ("context", "choice", "text"),
    [
        ("and", "Betty left.", "and Betty left."),
        ("and", " Betty left.", "and Betty left."),
        ("445+678=", "1123", "445+678=1123"),
        ("line\n", "next", "line\nnext"),
        ("", "alone", "alone"),
    ],
)
def test_choices_join_their_context(context: str, choice: str, text: str) -> None:
    assert joined(context, choice) == text


def test_plain_contexts() -> None:
    assert plain_context(item("choice_logprob", question="Why? ")) == "Question: Why?\nAnswer:"
    assert plain_context(item("choice_logprob", context="He said ")) == "He said"


def test_chat_samples_show_the_image_first_and_once() -> None:
    picture = Path("x.png")
    plain = chat_sample(item("exact", "a", question="What?", image=picture))
    placed = chat_sample(item("exact", "a", question="In <image>, what?", image=picture))
    text_only = chat_sample(item("exact", "a", question="What?"))
    assert (plain.messages[0].text, plain.images) == ("<image>\nWhat?", (picture,))
    assert placed.messages[0].text == "In <image>, what?"
    assert (text_only.messages[0].text, text_only.images) == ("What?", ())
