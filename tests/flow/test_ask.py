"""`striate ask` and `striate chat`: what a person types, what comes back, and what is refused in one message."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from striate.cli import app, asking_verbs
from striate.data.collate import Collator
from striate.data.samples import Message, Sample
from striate.dialogue import answering, terminal_chat
from striate.dialogue.answering import Answerer
from striate.dialogue.conversation import Conversation
from striate.dialogue.picture_reading import attention_to_pictures
from striate.dialogue.terminal_chat import Terminal, run_chat
from striate.errors import DataError
from striate.models.io.load import Loaded, load_model
from striate.models.io.placing import on_device
from striate.stages.analyze import analyze

QUESTION = "What colour is the square?"


def striate(*words: str | Path, typed: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=typed, env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def pictures(saved_pack: Path) -> list[Path]:
    return sorted((saved_pack / "images").iterdir())[:2]


def by_hand(loaded: Loaded, sample: Sample, tokens: int) -> str:
    """The greedy answer by a plain `generate`."""
    inputs = on_device(loaded.model, Collator(loaded.processor, 512, train=False).encode_prompts([sample]))
    written = loaded.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return str(loaded.processor.tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_an_answer_is_that_of_plain_generate_and_streams(run_of_three: Path, pictures: list[Path], count: int) -> None:
    shown = striate("ask", run_of_three, *pictures[:count], QUESTION, "--max-new-tokens", "12", "--json")
    assert shown.exit_code == 0, shown.output
    said = json.loads(shown.stdout)
    (answer,) = said["answers"]
    assert (said["question"], answer["label"]) == (QUESTION, "pruned")
    text = QUESTION if not count else f"{'<image>' * count}\n{QUESTION}"
    sample = Sample("q", (Message("user", text),), tuple(pictures[:count]))
    loaded = load_model(run_of_three / "pruned", device="cpu")
    assert answer["text"] == by_hand(loaded, sample, 12).strip()
    assert answer["image_tokens"] == 4 * count
    assert 0 < answer["first_token_seconds"] < answer["seconds"]
    pieces: list[str] = []
    again = Answerer(loaded.model, loaded.processor, 12).answer(sample, pieces.append)
    assert "".join(pieces).strip() == again.text == answer["text"]
    streamed = striate("ask", run_of_three, *pictures[:count], QUESTION, "--max-new-tokens", "12")
    assert streamed.stdout.strip() == asking_verbs.printable(answer["text"]).strip()
    assert "tokens written after" in streamed.stderr


def test_words_are_handed_on_as_they_are_whole_and_the_end_is_not(tiny_llava: Loaded) -> None:
    tokenizer = tiny_llava.processor.tokenizer
    pieces: list[str] = []
    words = answering._Words(tokenizer, [tokenizer.eos_token_id], pieces.append)
    words.put(torch.tensor([[1, 2, 3]]))
    assert words.first == 0
    for token in [*tokenizer("A red square, or two.").input_ids, tokenizer.eos_token_id]:
        words.put(torch.tensor([token]))
    words.end()
    assert words.first > 0
    assert "".join(pieces) == "A red square, or two."
    assert len(pieces) > 3
    assert not any(piece.startswith("<|") for piece in pieces)


def test_all_models_of_a_run_stand_side_by_side(run_of_three: Path, pictures: list[Path], tiny_llava_dir: Path) -> None:
    shown = striate("ask", run_of_three, pictures[0], QUESTION, "--all", "--max-new-tokens", "6")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.split("\n")[0].split() == ["start", "tuned", "pruned"]
    assert shown.stdout.count(" s, ") == 3
    answers = json.loads(striate("ask", run_of_three, pictures[0], QUESTION, "--all", "--json").stdout)["answers"]
    assert [answer["label"] for answer in answers] == ["start", "tuned", "pruned"]
    assert len({answer["text"] for answer in answers}) == 3
    alone = json.loads(striate("ask", run_of_three, pictures[0], QUESTION, "--model", "tuned", "--json").stdout)[
        "answers"
    ]
    assert [answer["text"] for answer in alone] == [answers[1]["text"]]
    one = json.loads(striate("ask", tiny_llava_dir, pictures[0], QUESTION, "--json").stdout)["answers"]
    assert [answer["label"] for answer in one] == ["model"]


@pytest.mark.parametrize(
    ("words", "said", "hint"),
    [
        (["RUN", "nothing.png", QUESTION], "nothing.png does not exist", "check the path"),
        (["RUN", "FOLDER", QUESTION], "is a folder", "check the path"),
        (["RUN", "TEXT", QUESTION], "can't read picture", "give another picture"),
        (["RUN", "PICTURE"], "is a file, and there is no question", 'end with it, as in "What is this?"'),
        (["RUN", "PICTURE", " "], "the last word is empty, and there is no question", "end with it"),
        (["nowhere/at/all", QUESTION], "no run or model at 'nowhere/at/all'", "check the path"),
        (["TEXT", QUESTION], "is a file", "give the folder that the file is in"),
        (["FOLDER", QUESTION], "has no config.json", "next:"),
        (["RUN", QUESTION, "--model", "tunde"], "has no model 'tunde'", "start, tuned, pruned"),
        (["RUN", QUESTION, "--model", "tuned", "--all"], "--all asks every model, and --model names one", "leave one"),
        (["MODEL", QUESTION, "--all"], "is one model, and --all compares those of a run", "leave out --all"),
        (["RUN", "word " * 600], "does not fit", "lower --max-new-tokens"),
        (["RUN", "<image> what?"], "has 1 <image> placeholders and 0 pictures", "name the pictures"),
        (["RUN", "PICTURE", "PICTURE", "<image> what?"], "1 <image> placeholders and 2 pictures", "in order, or none"),
    ],
)
def test_what_can_not_be_asked_is_one_message(
    run_of_three: Path,
    pictures: list[Path],
    tiny_llava_dir: Path,
    tmp_path: Path,
    words: list[str],
    said: str,
    hint: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no picture")
    places = {"RUN": run_of_three, "PICTURE": pictures[0], "FOLDER": tmp_path / "empty", "TEXT": tmp_path / "note.txt"}
    places["MODEL"] = tiny_llava_dir
    shown = striate("ask", *(places.get(word, word) for word in words))
    assert shown.exit_code == 1
    assert said in shown.stderr
    assert hint in shown.stderr
    assert "Traceback" not in shown.output
    assert shown.stdout == ""


class Scripted:
    """A terminal whose lines are given, and which keeps what was written."""

    def __init__(self, *lines: Any) -> None:
        self.lines, self.written, self.told = list(lines), "", []

    def read(self) -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, BaseException):
            raise line
        return str(line)

    def write(self, text: str) -> None:
        self.written += text

    @property
    def terminal(self) -> Terminal:
        return Terminal(self.read, self.write, self.told.append)


def test_a_chat_has_a_history_and_new_forgets_it(tiny_llava: Loaded, pictures: list[Path]) -> None:
    answerer = Answerer(tiny_llava.model, tiny_llava.processor, 8)
    asked: list[Sample] = []
    answer = answerer.answer
    answerer.answer = lambda sample, on_text: (asked.append(sample), answer(sample, on_text))[1]  # type: ignore[method-assign]
    typed = Scripted(f"/picture '{pictures[0]}'", "What is it?", "", "Sure?", "/new", "And now?", "/quit", "never")
    run_chat(answerer, Conversation(), typed.terminal)
    assert typed.lines == ["never"]
    assert [len(sample.messages) for sample in asked] == [1, 3, 1]
    assert [sample.images for sample in asked] == [(pictures[0],), (pictures[0],), ()]
    first = answer(asked[0]).text
    assert asked[1].messages[1] == Message("assistant", first)
    assert typed.written.startswith(first)
    assert typed.told == [f"{pictures[0].name} is shown with the next question", "a new conversation"]


def test_a_dropped_picture_has_backslashes_before_its_spaces(pictures: list[Path], tmp_path: Path) -> None:
    dropped = shutil.copyfile(pictures[0], tmp_path / "my photo (1).png")
    written = re.sub(r"([ ()])", r"\\\1", str(dropped))
    typed = Scripted(f"/picture {written}", f"/picture {dropped}", f"/picture '{dropped}'")
    run_chat(None, Conversation(), typed.terminal)  # type: ignore[arg-type]
    assert typed.told == ["my photo (1).png is shown with the next question"] * 3


def test_a_chat_goes_on_after_what_is_wrong_and_after_ctrl_c_in_an_answer(
    tiny_llava: Loaded, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = Answerer(tiny_llava.model, tiny_llava.processor, 8)
    typed = Scripted("/picture nothing.png", "/pictures x", "/nonsense", "word " * 600, "Sure?", KeyboardInterrupt())
    write = Scripted.write

    def stopping(self: Scripted, text: str) -> None:
        write(self, text)
        if text.strip() and "(stopped)" not in text:
            raise KeyboardInterrupt

    monkeypatch.setattr(Scripted, "write", stopping)
    run_chat(answerer, Conversation(), typed.terminal)
    assert [line.split("\n")[0] for line in typed.told] == [
        "error: nothing.png does not exist",
        f"no command /pictures: did you mean '/picture'? {terminal_chat.HELP}",
        f"no command /nonsense: {terminal_chat.HELP}",
        typed.told[3].split("\n")[0],
    ]
    assert "does not fit" in typed.told[3]
    assert "begin a new conversation" in typed.told[3]
    assert typed.written.endswith(" (stopped)\n\n")


def test_a_question_that_ctrl_c_takes_back_before_a_word_was_never_asked(
    tiny_llava: Loaded, pictures: list[Path]
) -> None:
    answerer = Answerer(tiny_llava.model, tiny_llava.processor, 4)
    asked: list[Sample] = []
    answer = answerer.answer

    def slow(sample: Sample, on_text: Any) -> Any:
        asked.append(sample)
        if len(asked) == 1:
            raise KeyboardInterrupt
        return answer(sample, on_text)

    answerer.answer = slow  # type: ignore[method-assign]
    typed = Scripted("What?", "Which colour?")
    run_chat(answerer, Conversation().showing(pictures[0]), typed.terminal)
    assert typed.written.startswith(" (stopped)\n")
    assert [message.text for message in asked[1].messages] == ["<image>\nWhich colour?"]


def test_the_verb_reads_lines_until_they_end(run_of_three: Path, pictures: list[Path]) -> None:
    shown = striate("chat", run_of_three, pictures[0], "--max-new-tokens", "4", typed=f"{QUESTION}\nAnd?\n")
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("> ") >= 3
    assert "pruned: " in shown.stdout
    wrong = striate("chat", run_of_three, "nothing.png", typed="")
    assert wrong.exit_code == 1
    assert "nothing.png does not exist" in wrong.stderr


def test_ctrl_c_at_the_prompt_of_a_real_terminal_leaves(tiny_llava_dir: Path) -> None:
    child, terminal = pty.fork()
    if not child:
        try:
            # What began the tests may have it ignored.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            # pytest's own stand in their places.
            sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
            app(["chat", str(tiny_llava_dir), "--max-new-tokens", "3"], standalone_mode=False)
            os._exit(0)
        except BaseException:
            os._exit(9)
    said, left = "", (0, 0)
    try:
        # Again and again: one that comes before readline listens is lost.
        for _ in range(300):
            if select.select([terminal], [], [], 0.2)[0]:
                said += os.read(terminal, 4096).decode()
            elif said.endswith("> "):
                os.write(terminal, b"\x03")
            left = os.waitpid(child, os.WNOHANG)
            if left[0]:
                break
    except OSError:  # Nothing is left at the other end.
        left = os.waitpid(child, 0)
    finally:
        if not left[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)
    assert left[0], said
    assert os.waitstatus_to_exitcode(left[1]) == 0, said


def test_layers_looked_at_the_picture_as_analyze_says(tiny_llava: Loaded, pictures: list[Path]) -> None:
    conversation = Conversation().showing(pictures[0]).asked(QUESTION).answered("It is red.")
    seen = attention_to_pictures(tiny_llava.model, tiny_llava.processor, conversation.sample())
    scores = analyze(tiny_llava.model, tiny_llava.processor, [conversation.sample()], ["image-attention"])
    assert seen == pytest.approx(scores.scorers[0].values)
    assert len(seen) == 4
    assert all(0 < share < 1 for share in seen)
    unanswered = Conversation().showing(pictures[0]).asked(QUESTION).answered("").sample()
    assert len(attention_to_pictures(tiny_llava.model, tiny_llava.processor, unanswered)) == 4
    assert attention_to_pictures(tiny_llava.model, tiny_llava.processor, Conversation().asked("Why?").sample()) == ()


def test_a_text_that_is_no_picture_names_no_sample(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"%PDF-1.4 and so on")
    with pytest.raises(DataError) as caught:
        terminal_chat.checked_picture(tmp_path / "a.png")
    assert str(caught.value) == (
        f"can't read picture {tmp_path / 'a.png'}: it is PDF inside\n"
        "  allowed: a whole picture in JPEG, PNG, WEBP, GIF, BMP or TIFF, of a usual size\n"
        "  next:    give another picture, or save this one again"
    )
