"""Chat templates with image tokens: Vicuna's USER / ASSISTANT conversation, or a wrapper of a language model's own."""

from __future__ import annotations

from striate.errors import ModelError

IMAGE_TOKEN = "<image>"
SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
# A message is a text, or a list of parts: its pictures stand on lines of their own.
_TEXT_OF = (
    "{%- macro text_of(content) -%}"
    "{%- if content is string -%}{{ content }}{%- else -%}"
    "{%- for part in content -%}"
    "{%- if part['type'] == 'image' -%}{{ '" + IMAGE_TOKEN + "\\n' }}{%- else -%}{{ part['text'] }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
)


def conversation(ending: str, *, system: str = SYSTEM) -> str:
    """Return the chat template of Vicuna v1 conversations: `SYSTEM USER: ... ASSISTANT: ...` and `ending`.

    The same text as LLaVA-1.5 (vicuna_v1) and Bunny were tuned on, which differ in `ending` only. A system message of
    the conversation replaces `system`.
    """
    quoted = system.replace("\\", "\\\\").replace("'", "\\'")
    return (
        _TEXT_OF + "{%- if messages[0]['role'] == 'system' -%}"
        "{%- set opening, turns = text_of(messages[0]['content']), messages[1:] -%}"
        "{%- else -%}{%- set opening, turns = '" + quoted + "', messages -%}{%- endif -%}"
        "{{ opening + ' ' }}"
        "{%- for message in turns -%}"
        "{%- if message['role'] == 'user' -%}{{ 'USER: ' + text_of(message['content']) + ' ' }}"
        "{%- else -%}{{ 'ASSISTANT: ' + text_of(message['content']) + '" + ending + "' }}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}"
    )


def with_pictures(template: str) -> str:
    """Return a text-only chat template that takes pictures too: lists of parts become texts before it sees them."""
    return (
        _TEXT_OF + "{%- set flat = namespace(messages=[]) -%}"
        "{%- for message in messages -%}"
        "{%- set flat.messages = flat.messages"
        " + [dict(message, content=text_of(message['content']))] -%}"
        "{%- endfor -%}"
        "{%- set messages = flat.messages -%}" + template
    )


def check_ending(tokenizer: object, ending: str, owner: str) -> int:
    """Return the id of `ending`.

    Raises:
        ModelError: the tokenizer does not hold it as one token, so that an answer would never end.
    """
    token = tokenizer.convert_tokens_to_ids(ending)  # type: ignore[attr-defined]
    unknown = getattr(tokenizer, "unk_token_id", None)
    if isinstance(token, int) and (token != unknown or ending == getattr(tokenizer, "unk_token", None)):
        return token
    raise ModelError(
        f"the tokenizer in {owner} has no token {ending!r}, which ends each answer",
        "the tokenizer of the same checkpoint",
        "copy its files again",
    )
