"""Thirty and more forms in which models really answer, by metric, beside what the benchmark's own script reads.

Each table has a row a reply: what metrics give it (`-`: unparsed, which scores 0), and, in columns with a star, what
the published scripts give it (`?`: a choice drawn at random). These are LLaVA-1.5's conversion with GQA's comparison;
the VQA evaluation; the visual-region paper's OCRVQA evaluation; ANLS of the challenge; chain-of-thought-hub's of
BIG-Bench Hard; LLaVA-1.5's of ScienceQA; MMMU's; POPE's; MME's; Qwen-VL's of RefCOCO; pix2struct's of ChartQA.
"""

from __future__ import annotations

import ast

import pytest

from striate.tasks.metrics import METRICS
from striate.tasks.metrics.choices.letter import chosen
from striate.tasks.metrics.choices.yes_no import said
from striate.tasks.metrics.cider import words_of
from striate.tasks.packs.items import Item, Reply

ANIMALS = ("a dog", "a cat", "a bird", "a fish")
PARTS = ["a", "9", "[1", " ", "\n", "(", "yes!", "answer:", "answer is ", "\\boxed{", "<think>", "A, ", "**", "\ud800"]
PEOPLE = ("red",) * 9 + ("crimson",)

# The true answer is red; of ten people one said crimson.
SHORT = r"""
reply                                    exact gqa* norm vqa vqa* choice line cont ocr* anls anls* final bbh* last
'red'                                    1     1    1    1   1    1      1    1    1    1    1     -     1    1
'Red'                                    1     1    1    1   1    1      1    1    1    1    1     -     0    1
'Red.'                                   1     1    1    1   1    1      1    1    1    0.75 0.75  -     0    1
'red!'                                   0     0    1    1   1    -      0    1    1    0.75 0.75  -     0    1
'RED'                                    1     1    1    1   1    1      1    1    1    1    1     -     0    1
' red\n'                                 1     0    1    1   1    1      1    1    1    1    1     -     0    1
'**Red**'                                0     0    0    0   0    -      0    1    1    0    0     -     0    1
'`red`'                                  0     0    1    1   1    -      0    1    1    0.6  0.6   -     0    1
'"Red"'                                  0     0    1    1   1    -      0    1    1    0.6  0.6   -     0    1
"'red'"                                  0     0    0    0   0    -      0    1    1    0.6  0.6   -     0    1
'a red'                                  0     0    1    1   1    -      0    1    1    0.6  0.6   -     0    0
'The red.'                               0     0    1    1   1    -      0    1    1    0    0     -     0    0
'It is red.'                             0     0    0    0   0    -      0    1    1    0    0     -     0    0
'The answer is red.'                     0     0    0    0   0    -      0    1    1    0    0     1     1    0
'the answer is: Red'                     0     0    0    0   0    -      0    1    1    0    0     1     0    0
'The answer is **Red**.'                 0     0    0    0   0    -      0    1    1    0    0     1     0    0
'The ball is red'                        0     0    0    0   0    -      0    1    1    0    0     -     0    0
'red ball'                               0     0    0    0   0    -      0    1    1    0    0     -     0    1
'red, blue'                              0     0    0    0   0    -      0    1    1    0    0     -     0    1
'red or blue'                            0     0    0    0   0    -      0    1    1    0    0     -     0    1
'red/blue'                               0     0    0    0   0    -      0    1    1    0    0     -     0    0
'not red'                                0     0    0    0   0    -      0    1    1    0    0     -     0    0
'reddish'                                0     0    0    0   0    -      0    1    1    0    0     -     0    0
'dark red'                               0     0    0    0   0    -      0    1    1    0    0     -     0    0
'red\nIt is round.'                      0     0    0    0   0    -      1    1    1    0    0     -     0    1
'red. It is round.'                      0     0    0    0   0    -      0    1    1    0    0     -     0    1
'Answer: red'                            0     0    0    0   0    -      0    1    1    0    0     -     0    0
'rd'                                     0     0    0    0   0    -      0    0    0    0.67 0.67  -     0    0
'Reed'                                   0     0    0    0   0    -      0    0    0    0.75 0.75  -     0    0
'blue'                                   0     0    0    0   0    0      0    0    0    0    0     -     0    0
'The answer is blue, not red.'           0     0    0    0   0    -      0    1    1    0    0     0     0    0
'Red is warm.\nSo the answer is red'     0     0    0    0   0    -      0    1    1    0    0     1     1    1
'The answer is red. The answer is blue.' 0     0    0    0   0    -      0    1    1    0    0     0     0    0
"I don't know."                          0     0    0    0   0    -      0    0    0    0    0     -     0    0
''                                       -     0    -    -   0    -      -    -    1    -    0     -     0    -
'.'                                      -     0    -    -   0    -      -    -    0    0    0     -     0    -
'r'                                      0     0    0    0   0    -      0    1    1    0    0     -     0    0
'red (crimson)'                          0     0    0    0   0    -      0    1    1    0    0     -     0    1
'rot'                                    0     0    0    0   0    -      0    0    0    0    0     -     0    0
'赤'                                      0     0    0    0   0    -      0    0    0    0    0     -     0    0
'<b>red</b>'                             0     0    0    0   0    -      0    1    1    0    0     -     0    0
'red red'                                0     0    0    0   0    -      0    1    1    0    0     -     0    1
'-red'                                   0     0    1    1   1    -      0    1    1    0.75 0.75  -     0    1
"It's red"                               0     0    0    0   0    -      0    1    1    0    0     -     0    0
"""
# Of a dog, a cat, a bird and a fish.
LETTERS = r"""
reply                                         letter ScienceQA* MMMU*
'B'                                           B      B          B
'B.'                                          B      -          B
'(B)'                                         B      -          B
'b'                                           B      -          ?
'b)'                                          B      -          ?
'(b)'                                         B      -          ?
'B: a cat'                                    B      -          ?
'B. a cat'                                    B      B          ?
'B - a cat'                                   B      -          B
'B) a cat'                                    B      -          ?
'B, a cat'                                    B      -          ?
'b, a cat'                                    B      -          ?
'**B**'                                       B      -          ?
'**B.** a cat'                                B      -          ?
'B\nBecause it meows.'                        B      -          ?
'B. Because it meows.'                        B      B          ?
'The answer is B'                             B      -          B
'The answer is B.'                            B      B          B
'The answer is **B**.'                        B      -          ?
'The correct answer is B. Option A is a dog.' B      -          A
'The correct option is (B), not A.'           B      -          B
'Answer: B'                                   B      -          B
'Answer: (B) a cat'                           B      -          B
'**Answer:** B'                               B      -          B
'Option B'                                    B      -          B
'I choose B.'                                 B      -          B
'B is correct.'                               B      -          B
'(B) is wrong.'                               -      -          B
'A is incorrect.'                             -      -          A
"It's B."                                     B      -          B
'a cat'                                       B      -          ?
'A cat.'                                      B      -          A
'\\boxed{B}'                                  B      -          ?
'The final answer is $\\boxed{\\text{B}}$.'   B      -          ?
'<think>A or C?</think>B'                     B      -          ?
'<think>hm A</think>\n<answer>B</answer>'     B      -          ?
'The answer is "B".'                          B      -          ?
"The answer is 'B'."                          B      -          ?
'“B”'                                         B      -          ?
'The answer is A or B'                        -      A          B
'A, B and C'                                  -      -          C
'B, C'                                        -      -          C
'A or B'                                      -      -          B
'A and B'                                     -      -          B
'A/B'                                         -      -          ?
'A\nB'                                        -      -          ?
'A. a dog\nB. a cat\nC. a bird\nD. a fish'    -      A          D
'A. a dog\nB. a cat\nThe answer is B.'        B      A          B
'C. Wait, the answer is B.'                   -      C          B
'The answer is not B.'                        -      -          B
'The answer is a cat'                         -      -          ?
'Answer: A cat.'                              -      -          A
'A dog or a cat'                              -      -          A
'Both B and C'                                -      -          C
'E'                                           -      -          ?
'The answer is E.'                            -      -          ?
'I, for one, think the answer is B.'          B      -          B
'I think so'                                  -      -          ?
'None of the above'                           -      -          ?
''                                            -      -          ?
'Because it meows'                            -      -          ?
'The answer is B because it meows.'           B      B          B
'B because it meows'                          B      -          B
'The answer is option B.'                     B      -          B
'The best choice is B'                        B      -          B
'B is the answer'                             B      -          B
'The answer is B, A is a dog'                 B      B          A
'The answer is B and A is not'                B      B          A
'1. B'                                        B      -          B
'> B'                                         B      -          B
'B\n\nA is a dog'                             B      -          ?
'The answer is B or the answer is C'          -      B          C
'It is a cat, so B.'                          -      -          B
'Vitamin C.'                                  -      -          C
'The picture shows a cat (B).'                -      -          B
'A, maybe B'                                  -      -          B
'A (or B)'                                    -      -          A
'A or possibly B.'                            -      -          B
'A. B.'                                       -      A          B
'(A)(B)'                                      -      -          B
'A & B'                                       -      -          B
'A+B'                                         -      -          ?
'a, b'                                        -      -          ?
'a or b'                                      -      -          ?
'Options A and B'                             -      -          B
'A, but could be B'                           -      -          B
"""
YES_OR_NO = r"""
reply                                         yes_no POPE* MME*
'Yes'                                         yes    yes   yes
'yes'                                         yes    yes   yes
'Yes.'                                        yes    yes   yes
'No'                                          no     no    no
'no.'                                         no     no    no
'NO!'                                         no     yes   no
'Yes, there is a dog with no collar.'         yes    no    yes
'Yes\nThere is no text on it.'                yes    no    yes
'Yes! There are no cars, only a bus.'         yes    no    yes
'No, there is a cat, yes.'                    no     no    no
'There is a dog.'                             -      yes   -
'There is no dog.'                            no     no    -
'There is not a dog in it.'                   no     no    -
"There isn't a dog."                          no     yes   -
"I'm not sure."                               -      no    -
'I am not certain.'                           -      no    -
"I can't tell."                               -      yes   -
'It is not clear.'                            -      no    -
'Yes and no'                                  -      no    yes
'Yes or no'                                   -      no    yes
'yes/no'                                      -      yes   yes
'Yes, no'                                     -      no    yes
'No idea'                                     -      no    no
'No doubt, there is.'                         -      no    no
'not really'                                  no     no    no
'**Yes**'                                     yes    yes   -
'**No**, it is red.'                          no     yes   no
'The answer is yes.'                          yes    yes   -
'The answer is no, there is none.'            no     no    -
'Answer: Yes'                                 yes    yes   -
'I think so'                                  -      yes   -
'yesterday'                                   -      yes   yes
'nothing'                                     -      yes   no
''                                            -      yes   -
'Nope'                                        no     yes   no
'Yeah, there is'                              yes    yes   -
'1. Yes'                                      yes    yes   -
'I cannot see a dog in the picture.'          -      yes   -
"I can't see a collar, so the answer is yes." yes    yes   -
'As an AI, I cannot determine this.'          -      yes   -
'Not only a dog but a cat: yes'               yes    yes   no
'There is not. Yes?'                          no     no    -
'I don’t think so.'                           no     yes   -
"I don't know"                                -      yes   -
"Sorry, I can't help with that."              -      yes   -
'<think>no</think>Yes'                        yes    yes   -
'\\boxed{yes}'                                yes    yes   -
'It is, yes, with no collar.'                 yes    no    -
'Unclear'                                     -      yes   -
'Yes - no collar though'                      yes    no    yes
'Yes (not red)'                               yes    yes   yes
'No. Yes.'                                    no     no    no
'Does it? Yes, it does.'                      yes    yes   -
'The image does not contain a dog.'           no     no    -
"""
NUMBERS = r"""
reply               true     relaxed ChartQA*
'100'               '100'    1       1
'100.0'             '100'    1       1
'105'               '100'    1       1
'95'                '100'    1       1
'94'                '100'    0       0
'106'               '100'    0       0
'1e2'               '100'    1       1
'+100'              '100'    1       1
'100%'              '100'    0       0
'100 %'             '100'    0       0
'$100'              '100'    -       0
'100 dollars'       '100'    -       0
'about 100'         '100'    -       0
'100.'              '100'    1       1
'100,0'             '100'    -       0
'1,00'              '100'    -       0
'0100'              '100'    1       1
'one hundred'       '100'    -       0
'**100**'           '100'    -       0
'The answer is 100' '100'    -       0
'~100'              '100'    -       0
'100-105'           '100'    -       0
'-100'              '100'    0       0
''                  '100'    -       0
'nan'               '100'    -       0
'inf'               '100'    -       0
'1e999'             '100'    -       0
'100\n'             '100'    1       1
'１００'               '100'    1       1
'10 0'              '100'    -       0
'0'                 '100'    0       0
'1e-400'            '100'    0       0
'1200'              '1,200'  1       0
'1.2k'              '1,200'  -       0
'$1,200'            '1,200'  -       0
'1200.0'            '1,200'  1       0
'1141'              '1,200'  1       0
'1139'              '1,200'  0       0
'0.05'              '5%'     1       1
'5'                 '5%'     0       0
'5 %'               '5%'     1       1
'5.2%'              '5%'     1       1
'5 percent'         '5%'     -       0
'france'            'France' 1       1
'France.'           'France' 0       0
' France '          'France' 1       0
'**France**'        'France' 0       0
'12'                'France' 0       0
'1e999'             '1e999'  1       0
'5'                 '1e999'  0       0
'inf'               '1e999'  0       0
"""
# The true box is [0.1, 0.2, 0.5, 0.6].
BOXES = r"""
reply                                               iou50 Qwen-VL*
'[0.1, 0.2, 0.5, 0.6]'                              1     0
'(0.1, 0.2, 0.5, 0.6)'                              1     0
'[0.10,0.20,0.50,0.60]'                             1     0
'0.1, 0.2, 0.5, 0.6'                                -     0
'[[0.1, 0.2, 0.5, 0.6]]'                            1     0
'[100, 200, 500, 600]'                              1     0
'(100,200),(500,600)'                               1     1
'<box>(100,200),(500,600)</box>'                    1     1
'<ref>the cat</ref><box>(100,200),(500,600)</box>'  1     1
'[100, 200], [500, 600]'                            1     0
'<box>100 200 500 600</box>'                        1     0
'{<10><20><50><60>}'                                1     0
'<loc0205><loc0102><loc0614><loc0512>'              1     0
'The cat is at [0.1, 0.2, 0.5, 0.6].'               1     0
'{"bbox_2d": [100, 200, 500, 600], "label": "cat"}' 1     0
'```json\n[{"bbox": [0.1, 0.2, 0.5, 0.6]}]\n```'    1     0
'[0.5, 0.6, 0.1, 0.2]'                              -     0
'[0.1, 0.2, 0.1, 0.6]'                              -     0
'[0.1, 0.2, 0.4, 0.4]'                              0     0
'[0.1, 0.2, 0.3, 0.6]'                              1     0
'[0.6, 0.6, 0.9, 0.9]'                              0     0
'[0.6, 0.6, 0.9, 0.9] or [0.1, 0.2, 0.5, 0.6]'      0     0
'[0.1 0.2 0.5 0.6]'                                 1     0
'[-0.1, 0.2, 0.5, 0.6]'                             -     0
'[0.1, 0.2, 0.5]'                                   -     0
'x1=0.1, y1=0.2, x2=0.5, y2=0.6'                    -     0
'[10%, 20%, 50%, 60%]'                              -     0
'[nan, 0.2, 0.5, 0.6]'                              -     0
'[1e-1, 0.2, 0.5, 0.6]'                             -     0
'the left one'                                      -     0
''                                                  -     0
'[0.1, 0.2, 0.5, 0.6'                               -     0
'**[0.1, 0.2, 0.5, 0.6]**'                          1     0
'[1000, 2000, 5000, 6000]'                          -     0
"""
# A caption, and the words of it that `cider` compares.
CAPTIONS = {
    "a man riding a horse": "a man riding a horse",
    "A man riding a horse.": "a man riding a horse",
    "A man, riding a horse!": "a man riding a horse",
    "the man's horse": "the man's horse",
    "the man’s horse": "the man’s horse",
    "a well-lit room": "a well lit room",
    "**A dog** on grass": "a dog on grass",
    "a dog\non grass": "a dog on grass",
    "a dog  on   grass": "a dog on grass",
    '"a dog"': "a dog",
    "(a dog)": "a dog",
    "a dog...": "a dog",
    "A DOG": "a dog",
    "the sign says 'STOP'": "the sign says stop",
    "3 dogs": "3 dogs",
    "3.5 metres": "3 5 metres",
    "1,000 people": "1 000 people",
    "50% off": "50 off",
    "a dog/cat": "a dog cat",
    "dogs & cats": "dogs cats",
    "e-mail": "e mail",
    "don't walk": "don't walk",
    "o'clock": "o'clock",
    "café": "café",
    "日本": "日本",
    "a dog 🐕": "a dog",
    "": "",
    "...": "",
    "<unk>": "unk",
    "C++": "c",
    "- a dog": "a dog",
    "1. a dog": "1 a dog",
    "caption: a dog": "caption a dog",
}


def rows(table: str) -> list[tuple[str, list[str]]]:
    heading, *lines = table.strip().split("\n")
    assert len(lines) >= 30
    cut = [line.rsplit(maxsplit=len(heading.split()) - 1) for line in lines]
    return [(ast.literal_eval(cells[0]), cells[1:]) for cells in cut]


def read(metric: str, reply: str, *answers: str, choices: tuple[str, ...] = ()) -> str:
    item = Item(id="a", pack="p", task="t", metric=metric, answers=answers, choices=choices)
    mark = METRICS.get(metric).function(item, Reply(reply))
    assert mark.score == 0 or not mark.unparsed
    return "-" if mark.unparsed else f"{mark.score:.2f}".rstrip("0").rstrip(".")


def short_answer(reply: str) -> list[str]:
    red = [
        read(name, reply, "red", choices=("red", "blue")) for name in ("exact", "normalised", "choice", "first_line")
    ]
    more = [read(name, reply, "red") for name in ("containment", "anls", "final_answer", "last_word")]
    return [*red, read("vqa", reply, *PEOPLE), *more]


def test_short_answers() -> None:
    places = (1, 3, 6, 7, 4, 8, 10, 12, 14)
    for reply, cells in rows(SHORT):
        assert (reply, short_answer(reply)) == (reply, [cells[place - 1] for place in places])


def test_letters() -> None:
    for reply, cells in rows(LETTERS):
        place = chosen(reply, ANIMALS)
        assert (reply, "-" if place is None else "ABCD"[place]) == (reply, cells[0])


def test_yes_or_no() -> None:
    for reply, cells in rows(YES_OR_NO):
        assert (reply, said(reply) or "-") == (reply, cells[0])
        for metric in ("yes_no", "mme"):
            assert read(metric, reply, "yes") == {"yes": "1", "no": "0", "-": "-"}[cells[0]]


def test_numbers() -> None:
    for reply, cells in rows(NUMBERS):
        assert (reply, read("relaxed", reply, ast.literal_eval(cells[0]))) == (reply, cells[1])


def test_boxes() -> None:
    for reply, cells in rows(BOXES):
        assert (reply, read("iou50", reply, "[0.1, 0.2, 0.5, 0.6]")) == (reply, cells[0])


def test_captions() -> None:
    assert len(CAPTIONS) >= 30
    assert {caption: words_of(caption) for caption in CAPTIONS} == CAPTIONS


@pytest.mark.parametrize("metric", [metric.name for metric in METRICS if METRICS.get(metric.name).mode == "generate"])
def test_no_reply_takes_long_or_raises(metric: str) -> None:
    accepted = PEOPLE if metric == "vqa" else ("[0.1, 0.2, 0.5, 0.6]",) if metric == "iou50" else ("yes",)
    for part in PARTS:
        item = Item("a", "p", "t", metric, answers=accepted, choices=("yes", "no"), answer_index=0)
        assert 0 <= METRICS.get(metric).function(item, Reply(part * 20_000)).score <= 1
