"""Metrics with a published definition, on cases worked out by hand from it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from striate.tasks.metrics import METRICS
from striate.tasks.metrics.choices.choice_logprob import ranking
from striate.tasks.metrics.choices.letter import chosen, options_of
from striate.tasks.metrics.choices.yes_no import said
from striate.tasks.metrics.reading.answer_text import vqa_text
from striate.tasks.metrics.reading.box_parsing import parse_box
from striate.tasks.metrics.text_match.relaxed import number_of
from striate.tasks.metrics.text_match.vqa import soft_accuracy
from striate.tasks.packs.items import Item, Mark, Reply

WORDS = st.text(alphabet=st.characters(blacklist_categories=["Cs"]), max_size=20)
DOGS = ("a dog", "two dogs", "a cat")


def item(metric: str, *answers: str, **fields: object) -> Item:
    return Item(id="a", pack="p", task="t", metric=metric, answers=answers, **fields)  # type: ignore[arg-type]


def mark(metric: str, text: str, *answers: str, **fields: object) -> Mark:
    return METRICS.get(metric).function(item(metric, *answers, **fields), Reply(text))


@pytest.mark.parametrize(
    ("text", "processed"),
    [
        ("The Two Dogs.", "2 dogs"),
        ("none", "0"),
        ("dont know", "don't know"),
        ("It's 10:30", "it's 10:30"),
        ("3.5 metres.", "3.5 metres"),
        ("1,200", "1200"),
        ("red/green", "red green"),
        ("red / green", "red green"),
        ("yes!", "yes"),
        ("well-lit room", "well lit room"),
        ("  a  man,  an   umbrella ", "man umbrella"),
        ("The", ""),
        ("theatre", "theatre"),
    ],
)
def test_answers_are_cleaned_up_as_the_vqa_evaluation_lists_it(text: str, processed: str) -> None:
    assert vqa_text(text) == processed


@given(WORDS)
def test_the_clean_up_leaves_no_article_case_or_spare_space(text: str) -> None:
    words = vqa_text(text).split(" ")
    assert not {"a", "an", "the"} & set(words)
    assert vqa_text(text) == " ".join(vqa_text(text).split()).strip()


def test_normalised_match() -> None:
    assert mark("normalised", "The two dogs.", "2 dogs").score == 1
    assert mark("normalised", "two dogs and a cat", "2 dogs").score == 0
    assert mark("normalised", "the.", "the") == Mark(0.0, "the.", unparsed=True)


@pytest.mark.parametrize(("people", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_by_the_number_of_people(people: int, score: float) -> None:
    # visualqa.org/evaluation.html; for 3 of 10: (3 * min(2/3, 1) + 7 * 1) / 10
    answers = ("red",) * people + tuple(f"other {index}" for index in range(10 - people))
    assert mark("vqa", "Red.", *answers).score == pytest.approx(score)


@given(st.lists(st.sampled_from("abc"), min_size=10, max_size=10), st.sampled_from("abc"))
def test_vqa_accuracy_is_the_mean_over_all_sets_of_nine(given_answers: list[str], answer: str) -> None:
    subsets = [given_answers[:place] + given_answers[place + 1 :] for place in range(10)]
    expected = math.fsum(min(subset.count(answer) / 3, 1) for subset in subsets) / 10
    assert soft_accuracy(answer, given_answers) == pytest.approx(expected)
    assert 0 <= soft_accuracy(answer, given_answers) <= 1
    assert soft_accuracy(answer, given_answers) == pytest.approx(soft_accuracy(answer, sorted(given_answers)))


def test_vqa_needs_ten_answers() -> None:
    assert "has 3 entries, but VQA accuracy needs ten" in METRICS.get("vqa").check(item("vqa", "a", "b", "c"))
    assert METRICS.get("vqa").check(item("vqa", *"abcdefghij")) == ""


@pytest.mark.parametrize(
    ("text", "true", "score", "unparsed"),
    [
        ("105", "100", 1, False),
        ("95.0", "100", 1, False),
        ("105.1", "100", 0, False),
        ("94", "100", 0, False),
        ("-95", "-100", 1, False),
        ("0", "0", 1, False),
        ("0.01", "0", 0, False),
        ("1,200", "1200", 1, False),
        ("5%", "5%", 1, False),
        ("5%", "0.05", 1, False),
        ("5", "5%", 0, False),
        ("about 100", "100", 0, True),
        ("", "100", 0, True),
        ("france", "France", 1, False),
        ("France ", "Germany", 0, False),
        ("12", "Germany", 0, False),
    ],
)
def test_relaxed_accuracy_of_chartqa(text: str, true: str, score: int, unparsed: bool) -> None:
    found = mark("relaxed", text, true)
    assert (found.score, found.unparsed) == (score, unparsed)


@given(st.floats(1e-3, 1e6), st.floats(-0.2, 0.2))
def test_relaxed_accuracy_is_relative_to_the_true_number(true: float, error: float) -> None:
    found = mark("relaxed", repr(true * (1 + error)), repr(true))
    if abs(abs(error) - 0.05) > 1e-6:
        assert found.score == float(abs(error) < 0.05)


@pytest.mark.parametrize(
    ("text", "value"), [(".5", 0.5), ("-3", -3), ("1e3", 1000), ("12,34", None), ("%", None), ("e5", None), ("3.", 3)]
)
def test_numbers(text: str, value: float | None) -> None:
    assert number_of(text) == value


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("B", 1),
        ("b.", 1),
        ("(C)", 2),
        ("B: two dogs", 1),
        ("C) a cat", 2),
        ("A, since it barks", 0),
        ("a dog", 0),
        ("Two dogs.", 1),
        ("The answer is B.", 1),
        ("the correct option is (C), not A", 2),
        ("The answer is B or the answer is C", None),
        ("The answer is a dog", None),
        ("the answer is (b)", 1),
        ("Answer: C", 2),
        ("D", None),
        ("A dog or two dogs", None),
        ("Because it barks", None),
        ("", None),
    ],
)
def test_letters(text: str, place: int | None) -> None:
    assert chosen(text, DOGS) == place


def test_letter_scores_and_options() -> None:
    assert mark("letter", "B", choices=DOGS, answer_index=1) == Mark(1.0, "B")
    assert mark("letter", "C", choices=DOGS, answer_index=1) == Mark(0.0, "C")
    assert mark("letter", "dunno", choices=DOGS, answer_index=1) == Mark(0.0, "dunno", unparsed=True)
    assert options_of(("x", "y")) == "A. x\nB. y"
    assert "'answer_index' is 3, but must be 0 to 2" in METRICS.get("letter").check(
        item("letter", choices=DOGS, answer_index=3)
    )
    assert "has 1 entries" in METRICS.get("letter").check(item("letter", choices=("x",), answer_index=0))


@given(st.integers(0, 25))
def test_every_letter_names_its_choice(place: int) -> None:
    choices = tuple(f"choice number {index}" for index in range(26))
    for text in (chr(65 + place), f"({chr(97 + place)})", f"{chr(65 + place)}. choice", choices[place]):
        assert chosen(text, choices) == place


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Yes, there is a dog.", "yes"),
        ("No.", "no"),
        ("There is not. Yes?", "no"),
        ("I think so", ""),
        ("yesterday", ""),
        ("nothing", ""),
        ("", ""),
    ],
)
def test_yes_and_no(text: str, answer: str) -> None:
    assert said(text) == answer


@pytest.mark.parametrize(
    ("text", "true", "score", "unparsed"),
    [
        ("the great gatsby", "Gatsby", 1, False),
        ("Gatsby", "The Great Gatsby", 1, False),
        ("gatsby!", "The Great Gatsby", 0, False),
        ("", "anything", 0, True),
        (".", "anything", 0, True),
    ],
)
def test_containment_goes_both_ways(text: str, true: str, score: int, unparsed: bool) -> None:
    found = mark("containment", text, true)
    assert (found.score, found.unparsed) == (score, unparsed)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("(0.1, 0.2, 0.3, 0.4)", (0.1, 0.2, 0.3, 0.4)),
        ("[0.1 0.2 0.3 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("[100, 200, 300, 400]", (0.1, 0.2, 0.3, 0.4)),
        ("<box>[[100, 200, 300, 400]]</box>", (0.1, 0.2, 0.3, 0.4)),
        ("<ref>dog</ref><box>(100,200),(300,400)</box>", (0.1, 0.2, 0.3, 0.4)),
        ("<box>100 200 300 400</box>", (0.1, 0.2, 0.3, 0.4)),
        ("[0.1, 0.2], [0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("<p>dog</p> {<10><20><30><40>}", (0.1, 0.2, 0.3, 0.4)),
        ("<loc0256><loc0128><loc0512><loc0896> dog", (0.125, 0.25, 0.875, 0.5)),
        ('{"bbox_2d": [100, 200, 300, 400], "label": "dog"}', (0.1, 0.2, 0.3, 0.4)),
        ("[0, 0, 1, 1]", (0, 0, 1, 1)),
        ("[100, 200, 300, 1001]", None),
        ("100, 200, 300, 400", None),
        ("(1, 2)", None),
    ],
)
def test_boxes_in_their_text_forms(text: str, box: tuple[float, ...] | None) -> None:
    assert parse_box(text) == (None if box is None else pytest.approx(box))


def test_pixels_where_the_size_is_known() -> None:
    assert parse_box("[64, 48, 320, 240]", (640, 480)) == (0.1, 0.1, 0.5, 0.5)
    assert parse_box("[0.1, 0.1, 0.5, 0.5]", (640, 480)) == (0.1, 0.1, 0.5, 0.5)
    assert parse_box("[64, 48, 700, 240]", (640, 480)) is None
    assert mark("iou50", "[64, 48, 320, 240]", "[64, 48, 320, 240]", size=(640, 480)).score == 1


@given(st.tuples(*[st.integers(0, 1000)] * 4).filter(lambda box: box[0] < box[2] and box[1] < box[3] and max(box) > 1))
def test_all_forms_of_a_box_are_one_box(box: tuple[int, int, int, int]) -> None:
    x1, y1, x2, y2 = box
    true = (x1 / 1000, y1 / 1000, x2 / 1000, y2 / 1000)
    for text in (f"[{x1}, {y1}, {x2}, {y2}]", f"({x1},{y1}),({x2},{y2})", f"<box>{x1} {y1} {x2} {y2}</box>"):
        assert parse_box(text) == true
    assert parse_box(str([value / 1000 for value in box])) == true


@pytest.mark.parametrize(
    ("text", "score", "unparsed"),
    [
        ("2 + 3 is 5. So the answer is 5.", 1, False),
        ("The answer is: 5", 1, False),
        ("The answer is 4. No, so the answer is 5.\nQ: next", 1, False),
        ("the answer is 6", 0, False),
        ("2 + 3 is 5", 0, True),
        ("", 0, True),
    ],
)
def test_final_answers(text: str, score: int, unparsed: bool) -> None:
    found = mark("final_answer", text, "5")
    assert (found.score, found.unparsed) == (score, unparsed)


@pytest.mark.parametrize(
    ("text", "score", "unparsed"),
    [("(A)\n\nQ: next", 1, False), ("\n (a). ", 1, False), ("It is (A)", 0, False), (" \n ", 0, True)],
)
def test_first_lines(text: str, score: int, unparsed: bool) -> None:
    found = mark("first_line", text, "(A)")
    assert (found.score, found.unparsed) == (score, unparsed)


def test_choices_by_log_probability_a_character() -> None:
    fields = {"choices": ("short", "a long one"), "answer_index": 0}
    asked = item("choice_logprob", compare="characters", **fields)
    assert ranking(asked, Reply(logprobs=(-4.0, -6.0), tokens=(1, 9))) == [-0.8, -0.6]


GENERATED = [
    name for name in METRICS.names() if METRICS.get(name).mode == "generate" and METRICS.get(name).corpus is None
]


@pytest.mark.parametrize("metric", GENERATED)
@given(text=WORDS)
def test_scores_are_bounded_and_unparsed_answers_score_0(metric: str, text: str) -> None:
    answers = ("[0.1, 0.2, 0.3, 0.4]",) if metric == "iou50" else ("yes",) * (10 if metric == "vqa" else 1)
    found = mark(metric, text, *answers, choices=("yes", "no"), answer_index=0)
    assert 0 <= found.score <= 1
    assert found.score == 0 or not found.unparsed


@pytest.mark.parametrize("metric", GENERATED)
@given(text=WORDS.filter(lambda text: bool(vqa_text(text))))
def test_a_perfect_answer_scores_1(metric: str, text: str) -> None:
    if metric in ("yes_no", "mme", "iou50"):
        text = "[0.1, 0.2, 0.3, 0.4]" if metric == "iou50" else "no"
    answers = (text,) * (10 if metric == "vqa" else 1)
    if metric == "final_answer":
        assert mark(metric, "I think the answer is red.", "red").score == 1
    elif metric == "letter":
        assert mark(metric, "B", choices=("other", text), answer_index=1).score == 1
    elif metric == "choice":
        assert mark(metric, text, text, choices=("other", text)).score == 1
    elif metric == "first_line":
        assert mark(metric, f"red\n{text}", "red").score == 1
    elif (metric != "exact" and metric != "containment") or text.strip(" ."):
        assert mark(metric, text, *answers).score == 1


@given(WORDS, WORDS)
def test_containment_is_symmetric(first: str, second: str) -> None:
    assert mark("containment", first, second).score == mark("containment", second, first).score
