"""A chat template for llama.cpp that puts pictures where the processor puts them; the same for Ollama's own language.

llama.cpp hands a picture to the template as a text `<__media...__>`, which stands for the image tokens and what
llama.cpp itself writes around them. What a processor's template writes around a picture would be lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TEXT, ANSWER, SYSTEM, MARKER = "\x01", "\x02", "\x03", "<__media__>"
_FLAT = (
    "{%- set flat = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- set whole = namespace(text='', marked='') -%}"
    "{%- if message['content'] is string -%}{%- set whole.text = message['content'] -%}{%- else -%}"
    "{%- for part in message['content'] -%}{%- set whole.text = whole.text + part['text'] -%}{%- endfor -%}"
    "{%- endif -%}"
    "{%- for piece in whole.text.split('<__media') -%}"
    "{%- if loop.first -%}{%- set whole.marked = piece -%}{%- else -%}"
    "{%- set halves = piece.split('__>') -%}"
    "{%- set whole.marked = whole.marked + BEFORE + '<__media' + halves[0] + '__>' + AFTER + halves[1:]|join('__>') -%}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if '<__media' in whole.text -%}"
    "{%- set flat.messages = flat.messages + [{'role': message['role'], 'content': whole.marked}] -%}"
    "{%- else -%}{%- set flat.messages = flat.messages + [message] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = flat.messages -%}"
)


@dataclass(frozen=True)
class PictureTemplate:
    """How a conversation is written.

    Attributes:
        jinja: the chat template that goes into the language model's file, if there is one.
        exact: whether llama.cpp's chat writes pictures as the processor does.
        go: the same for Ollama, None where its language can't say it.
        stop: what ends an answer.
    """

    jinja: str | None
    exact: bool
    go: str | None
    stop: str


def template_of(processor: Any) -> str | None:
    """Return the processor's chat template, else its tokenizer's."""
    for holder in (processor, processor.tokenizer):
        if isinstance(found := getattr(holder, "chat_template", None), str):
            return found
    return None


def picture_template(
    processor: Any, around: tuple[str, str] = ("", ""), own: tuple[str, str] = ("", "")
) -> PictureTemplate:
    """Return the chat template of `processor` for llama.cpp and Ollama.

    Args:
        processor: with a tokenizer and, in it or itself, a chat template.
        around: what the processor, but not its template, writes around a picture.
        own: what llama.cpp writes around a picture by itself.
    """
    template = template_of(processor)
    if template is None:
        return PictureTemplate(None, exact=False, go=None, stop="")
    wrapped = _wrapped(processor, template, around, own)
    go, stop = _go_template(processor, template)
    return PictureTemplate(wrapped or template, wrapped is not None, go, stop)


def _wrapped(processor: Any, template: str, around: tuple[str, str], own: tuple[str, str]) -> str | None:
    """Return `template` behind what turns parts into texts; None where it would write something else than itself."""
    sides = _sides(processor, template, around, own)
    if sides is None:
        return None
    flat = _FLAT.replace("BEFORE", _quoted(sides[0])).replace("AFTER", _quoted(sides[1])) + template
    theirs = _render(processor, flat, [_message("user", MARKER + TEXT)])
    plain = _render(processor, template, [_message("user", TEXT)])
    expected = plain.replace(TEXT, sides[0] + MARKER + sides[1] + TEXT) if plain else None
    return flat if theirs is not None and theirs == expected else None


def _sides(processor: Any, template: str, around: tuple[str, str], own: tuple[str, str]) -> tuple[str, str] | None:
    """Return what stands before and after a picture beyond what llama.cpp writes; None where it can't be told."""
    plain = _render(processor, template, [_message("user", TEXT)])
    typed = _render(processor, template, [_message("user", [("image", ""), ("text", TEXT)])])
    token = next((found for found in _picture_tokens(processor) if typed and found in typed), None)
    if plain is None or typed is None or token is None or TEXT not in plain:
        return None
    start, end = plain.split(TEXT, 1)
    if not (typed.startswith(start) and typed.endswith(TEXT + end)):
        return None
    before, after = typed[len(start) : len(typed) - len(TEXT + end)].split(token, 1)
    # The token itself may be one of those that llama.cpp writes.
    before, after = around[0] + before.removesuffix(own[0]), after.removeprefix(own[1]) + around[1]
    return before, after


def _picture_tokens(processor: Any) -> list[str]:
    named = (
        getattr(holder, name, None)
        for holder in (processor, processor.tokenizer)
        for name in ("boi_token", "image_token")
    )
    return [token for token in named if isinstance(token, str) and token]


def _go_template(processor: Any, template: str) -> tuple[str | None, str]:
    """Return Ollama's template, and what ends an answer; Ollama puts pictures first in the prompt."""
    asked = _render(processor, template, [_message("user", TEXT)])
    told = _render(processor, template, [_message("user", TEXT), _message("assistant", ANSWER)], prompt=False)
    if asked is None or told is None or TEXT not in asked or ANSWER not in told:
        return None, ""
    start, between = _without_first(processor, asked).split(TEXT, 1)
    ending = told.split(ANSWER, 1)[1]
    ruled = _render(processor, template, [_message("system", SYSTEM), _message("user", TEXT)])
    opening = start
    if ruled and SYSTEM in ruled and TEXT in ruled:
        system, rest = _without_first(processor, ruled).split(SYSTEM, 1)
        opening = (
            f"{{{{ if .System }}}}{system}{{{{ .System }}}}{rest.split(TEXT, 1)[0]}{{{{ else }}}}{start}{{{{ end }}}}"
        )
    if any(mark in part for part in (asked, told, ruled or "") for mark in ("{{", "}}")):
        return None, ending.strip()
    return f"{opening}{{{{ .Prompt }}}}{between}{{{{ .Response }}}}{ending}", ending.strip()


def _without_first(processor: Any, text: str) -> str:
    """Return `text` without the token that the tokenizer puts first by itself."""
    first = processor.tokenizer.bos_token_id
    adds = first is not None and processor.tokenizer("a")["input_ids"][0] == first
    return text.removeprefix(processor.tokenizer.bos_token) if adds else text


def _message(role: str, content: str | Sequence[tuple[str, str]]) -> dict[str, Any]:
    if isinstance(content, str):
        return {"role": role, "content": content}
    return {"role": role, "content": [{"type": kind, "text": text} for kind, text in content]}


def _render(processor: Any, template: str, messages: list[dict[str, Any]], *, prompt: bool = True) -> str | None:
    """Return the conversation as text; None where the template refuses it or fails."""
    try:
        return str(
            processor.tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=prompt
            )
        )
    except MemoryError:
        raise
    except Exception:  # A template is a program of the model's authors.
        return None


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
