"""Chat templates for llama.cpp and Ollama: pictures stand where the processor puts them, text stays as it was."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from gguf_kit import tokenizer

from striate.models.convert.gguf.modelfile import modelfile
from striate.models.convert.gguf.picture_template import PictureTemplate, picture_template

PART = (
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'PICTURE' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
TURNS = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}" + PART + "{% endif %}"
    "{{ '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def processor(template: str | None, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(tokenizer=tokenizer(), chat_template=template, image_token="<image>", **more)


def rendered(made: PictureTemplate, content: Any) -> str:
    messages = [{"role": "user", "content": content}]
    return str(
        tokenizer().apply_chat_template(messages, chat_template=made.jinja, tokenize=False, add_generation_prompt=True)
    )


@pytest.mark.parametrize(
    ("picture", "around", "own", "expected"),
    [
        ("<image>\\n", ("", ""), ("", ""), "<__media_a__>\n"),
        ("\\nit\\'s: <image>", ("", ""), ("", ""), "\nit's: <__media_a__>"),
        ("<|vision_start|><image><|vision_end|>", ("", ""), ("<|vision_start|>", "<|vision_end|>"), "<__media_a__>"),
        ("<image>", ("\n\n", "\n"), ("", ""), "\n\n<__media_a__>\n"),
    ],
)
def test_what_stands_around_a_picture_comes_back(
    picture: str, around: tuple[str, str], own: tuple[str, str], expected: str
) -> None:
    made = picture_template(processor(TURNS.replace("PICTURE", picture)), around, own)
    assert made.exact
    # A string with llama.cpp's mark, parts of text, and both without a picture.
    assert rendered(made, "<__media_a__>Why?") == f"<user>{expected}Why?</s>\n<assistant>"
    parts = [{"type": "text", "text": "A "}, {"type": "text", "text": "<__media_a__>"}, {"type": "text", "text": "B"}]
    assert rendered(made, parts) == f"<user>A {expected}B</s>\n<assistant>"
    assert rendered(made, "Why? __> so") == "<user>Why? __> so</s>\n<assistant>"
    two = "<__media_a__><__media_b__>?"
    assert rendered(made, two).count("<__media_") == 2


def test_a_conversation_for_ollama() -> None:
    made = picture_template(processor(TURNS.replace("PICTURE", "<image>")))
    assert made.stop == "</s>"
    assert modelfile(["a.gguf"], made) == (
        "FROM ./a.gguf\n"
        'TEMPLATE """{{ if .System }}<system>{{ .System }}</s>\n<user>{{ else }}<user>{{ end }}{{ .Prompt }}'
        '</s>\n<assistant>{{ .Response }}</s>\n"""\n'
        'PARAMETER stop "</s>"\nPARAMETER temperature 0\n'
    )


def test_what_ollama_has_no_words_for_is_left_out() -> None:
    hostile = PictureTemplate(None, exact=False, go='{{ .Prompt }}"""\nADAPTER ./evil', stop='"\nADAPTER ./evil')
    assert modelfile(["a.gguf"], hostile) == "FROM ./a.gguf\nPARAMETER temperature 0\n"


def test_braces_of_ollamas_language_are_not_written() -> None:
    made = picture_template(processor(TURNS.replace("'</s>\n'", "'{' ~ '{' ~ '\n'")))
    assert made.stop == "{{"
    assert made.go is None


@pytest.mark.parametrize(
    "template",
    [
        None,
        # It takes texts alone, refuses all, knows no generation prompt, or writes no picture.
        "{% for message in messages %}{{ message['content'].upper() }}{% endfor %}",
        "{{ raise_exception('no') }}",
        # More than the sandbox of templates lets it.
        "{% for turn in range(99999999) %}{% endfor %}",
        TURNS.replace("PICTURE", ""),
    ],
)
def test_other_templates_stay_as_they_are(template: str | None) -> None:
    made = picture_template(processor(template))
    assert (made.jinja, made.exact) == (template, False)
