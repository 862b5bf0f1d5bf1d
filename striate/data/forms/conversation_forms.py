"""The table of forms of a conversation, and which of them a record has. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from striate.data.forms.not_learned import refuse_beside, refuse_index, refuse_marked, refuse_said, refuse_undesired
from striate.data.forms.picture_values import is_picture
from striate.data.picture_names import KEYS, MEDIA_FILE
from striate.data.rows import Row
from striate.data.samples import PLACEHOLDER, Role
from striate.data.sources.source_options import SourceOptions
from striate.errors import did_you_mean
from striate.printable import shown
from striate.storage.read_files import parse_json

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "chatgpt": "assistant",
    "bing": "assistant",
}
LLAVA, CHAT = ("from", "value"), ("role", "content")
_ASKED, _COLUMNS = "question and answer", "question: NAME, answer: NAME"
_PAIR = "a list of pairs: [[question, answer], ...]"


class RawTurn(NamedTuple):
    """One turn as a record has it: who speaks, text or content blocks, and the place for errors."""

    role: Role
    content: Any
    row: Row


@dataclass(frozen=True)
class ConversationForm:
    """A form: the fields that a record of it must have, others that hold words, and how its turns are found.

    With `pictures_first` the form has no placeholders of its own: pictures stand before the question.
    """

    keys: tuple[str, ...]
    turns: Callable[[Row], Iterator[RawTurn]]
    texts: tuple[str, ...] = ()
    pictures_first: bool = False


def raw_turns(row: Row, options: SourceOptions) -> tuple[list[RawTurn], bool]:
    """Return the turns of a record, and whether its form puts pictures before the question.

    Raises:
        StriateError: the record has none of the forms, or several; or a turn is no turn.
    """
    if options.question and "answer" in row and "question" not in row:
        row = row.having("question", options.question)
    form = _form_of(row, options.columns)
    refuse_beside(row)
    if "answer" in form.keys and "answer" not in options.columns:
        refuse_index(row)
    turns = list(form.turns(row))
    if row.fields.get("system") not in (None, "") and not any(turn.role == "system" for turn in turns):
        turns.insert(0, RawTurn("system", row.text("system"), row))
    return turns, form.pictures_first


def _form_of(row: Row, columns: Mapping[str, str]) -> ConversationForm:
    """Return the form of which the record has all fields; of several, that of which `columns` names some."""
    if "chosen" in row and "rejected" in row:
        raise row.refuse(
            "it has 'chosen' and 'rejected' answers, and training learns from one answer",
            "samples with one answer to each question",
            "to learn the chosen ones, set data.columns={question: prompt, answer: chosen}",
        )
    found = _forms_with(frozenset(key for key, value in row.fields.items() if value is not None))
    found = [form for form in found if any(key in columns for key in form.keys)] or found
    if len(found) == 1:
        return found[0]
    names = [" with ".join(f"`{key}`" for key in form.keys) for form in found or FORMS]
    have = ", ".join(shown(key, 30) for key in list(row.fields)[:12] if key in row)
    if found:
        raise row.refuse(
            f"it has {' and '.join(names)}, which are several conversations",
            "one conversation a sample",
            f"say which with data.columns, such as {{{found[0].keys[0]}: {found[0].keys[0]}}}",
        )
    empty = next((name for name in columns if name not in KEYS and name in _WORDS and name not in row), None)
    if empty and empty in row.fields:
        raise row.refuse(
            f"its {shown(columns[empty])} is empty, which data.columns says is {empty!r}",
            "some text",
            "fill it, or remove the record",
        )
    raise row.refuse(
        f"it has no conversation; its fields are {have or 'empty'}",
        f"one of {', '.join(names)}",
        _unapplied(row, columns)
        + (_nearest(row) or _of_pictures(row) or f"say which fields hold {_ASKED}: data.columns={{{_COLUMNS}}}"),
    )


def _unapplied(row: Row, columns: Mapping[str, str]) -> str:
    """Return that the record has none of the columns that `data.columns` names, if so."""
    if not columns or any(name in row.fields for name in columns):
        return ""
    have = [key for key in row.fields if isinstance(key, str)]
    meant = next(filter(None, (did_you_mean(column, have) for column in columns.values())), "")
    return f"{meant}it has no field {', '.join(map(shown, columns.values()))} of data.columns: correct that, or "


@lru_cache(maxsize=1024)
def _forms_with(keys: frozenset[Any]) -> list[ConversationForm]:
    """Return the forms of which all fields are among `keys`; records of one file mostly have the same."""
    return [form for form in FORMS if keys.issuperset(form.keys)]


def _nearest(row: Row) -> str:
    """Return which fields are missing of a form that the record has some of; empty if it has none."""
    for form in FORMS:
        missing = [key for key in form.keys if key not in row]
        if len(missing) < len(form.keys):
            lacks = " and ".join(map(repr, missing))
            same = ", or ask every record the same with data.question" if missing == ["question"] else ""
            return f"add {lacks}, or say which field it is with data.columns={{{missing[0]}: NAME}}{same}"
    return ""


def _of_pictures(row: Row) -> str:
    """Return how a record is read that has a picture and no words that are known by name; empty if it has none."""
    there = [key for key, value in row.fields.items() if isinstance(key, str) and value is not None]
    pictures = [key for key in there if key in KEYS or is_picture(row.fields[key]) or _is_named(row.fields[key])]
    if not pictures:
        return ""
    others = [key for key in there if key not in (*pictures, "id", "task")]
    answer = others[0] if len(others) == 1 else "NAME"
    image = "" if pictures[0] in KEYS else f"image: {shown(pictures[0], 30).strip(chr(39))}, "
    return (
        f"say which field is learned, with data.columns={{{image}answer: {shown(answer, 30).strip(chr(39))}}}, and what"
        " is asked of every picture, with data.question='What is it?'"
    )


def _is_named(value: Any) -> bool:
    return isinstance(value, str) and MEDIA_FILE.fullmatch(value) is not None


def _listed(key: str, names: tuple[str, str]) -> Callable[[Row], Iterator[RawTurn]]:
    def turns(row: Row) -> Iterator[RawTurn]:
        return _turns(row, key, names)

    return turns


def _turns(row: Row, key: str, names: tuple[str, str] = CHAT) -> Iterator[RawTurn]:
    """Yield the turns of a list under `key`; a turn may have the names of LLaVA or of chat messages."""
    for number, turn in enumerate(_list_of(row, key, "a list with a question and an answer")):
        place = row.at(f"{row.place}, turn {number}")
        speaker, content = names
        # A dict is what all readers give; asking for a Mapping takes ten times as long.
        if isinstance(turn, dict) and turn.get(speaker) is None:
            speaker, content = next((pair for pair in (LLAVA, CHAT) if turn.get(pair[0]) is not None), names)
        if not isinstance(turn, dict) or turn.get(speaker) is None or turn.get(content) is None:
            raise place.refuse(
                f"it lacks {speaker!r} or {content!r}", f"an object with {speaker!r} and {content!r}", "add it"
            )
        role = _role(turn[speaker], place)
        if role == "assistant":
            refuse_marked(turn, place)
            refuse_said(turn, place)
        yield RawTurn(role, turn[content], place)


def _list_of(row: Row, key: str, wanted: str) -> list[Any]:
    """Return the turns under `key`: a list, JSON text of one, or an object of lists, as `datasets` stores sequences."""
    turns = row.fields[key]
    if isinstance(turns, str) and turns.lstrip().startswith("["):
        turns = parse_json(turns, f"{row.place}: `{key}`", row.form)
    lengths = (
        {len(part) if isinstance(part, list) else -1 for part in turns.values()} if isinstance(turns, dict) else {}
    )
    if len(lengths) == 1 and -1 not in lengths:
        turns = [dict(zip(turns, turn, strict=True)) for turn in zip(*turns.values(), strict=True)]
    if not isinstance(turns, list) or not turns:
        raise row.refuse(f"`{key}` is not a list of turns", wanted)
    return turns


def _role(value: Any, row: Row) -> Role:
    role = ROLES.get(value) if isinstance(value, str) else None
    if role is None:
        hint = did_you_mean(value, ROLES) if isinstance(value, str) else ""
        raise row.refuse(f"unknown role {shown(value)}", ", ".join(ROLES), f"{hint}rename it, or remove the sample")
    return role


def _user_and_assistant(row: Row) -> Iterator[RawTurn]:
    """Yield the turns of a list of {"user": ..., "assistant": ...}, as the Cauldron has them."""
    for number, turn in enumerate(_list_of(row, "texts", "a list of objects with 'user' and 'assistant'")):
        place = row.at(f"{row.place}, turn {number}")
        if not isinstance(turn, Mapping) or turn.get("user") is None or turn.get("assistant") is None:
            raise place.refuse("it lacks 'user' or 'assistant'", "an object with 'user' and 'assistant'", "add it")
        yield RawTurn("user", turn["user"], place)
        yield RawTurn("assistant", turn["assistant"], place)


def _query_response(row: Row) -> Iterator[RawTurn]:
    yield from _history(row)
    yield RawTurn("user", row.text("query"), row)
    yield RawTurn("assistant", row.text("response"), row)


def _alpaca(row: Row) -> Iterator[RawTurn]:
    yield from _history(row)
    more = row.fields.get("input")
    question = row.text("instruction") + (f"\n{row.text('input')}" if more not in (None, "") else "")
    yield RawTurn("user", question, row)
    yield RawTurn("assistant", row.text("output"), row)


def _history(row: Row) -> Iterator[RawTurn]:
    history = row.fields.get("history") or []
    if not isinstance(history, list):
        raise row.refuse(f"'history' is {shown(history)}", _PAIR)
    for number, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise row.refuse(f"'history' holds {shown(pair)}", _PAIR)
        place = row.at(f"{row.place}, history {number}")
        yield RawTurn("user", pair[0], place)
        yield RawTurn("assistant", pair[1], place)


def _prompt_completion(row: Row) -> Iterator[RawTurn]:
    refuse_undesired(row)
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        if isinstance(row.fields[key], list):
            yield from _turns(row, key)
        else:
            yield RawTurn("user" if role == "user" else "assistant", row.text(key), row)


def _question_answer(row: Row) -> Iterator[RawTurn]:
    for key, role in (("question", "user"), ("answer", "assistant")):
        if isinstance(row.fields[key], list):
            raise row.refuse(
                f"{key!r} is a list, {shown(row.fields[key])}, and training learns one answer to one question",
                "one text",
                "name a column with one text, or write one line for each",
            )
        yield RawTurn("user" if role == "user" else "assistant", row.text(key), row)


FORMS = (
    ConversationForm(("conversations",), _listed("conversations", LLAVA)),
    ConversationForm(("messages",), _listed("messages", CHAT)),
    ConversationForm(("texts",), _user_and_assistant, pictures_first=True),
    ConversationForm(("query", "response"), _query_response, ("history",)),
    ConversationForm(("instruction", "output"), _alpaca, ("input", "history")),
    ConversationForm(("prompt", "completion"), _prompt_completion),
    ConversationForm(("question", "answer"), _question_answer, pictures_first=True),
)
_WORDS = frozenset(key for form in FORMS for key in form.keys)
TEXT_FIELDS = frozenset({"system", *(key for form in FORMS for key in (*form.keys, *form.texts))})


def with_pictures_first(turns: list[RawTurn], count: int) -> list[RawTurn]:
    """Return the turns with `count` placeholders before the first question, on a line of their own."""
    place = next((number for number, turn in enumerate(turns) if turn.role == "user"), None)
    if place is None:
        return turns
    turn = turns[place]
    content = turn.content
    if isinstance(content, list):
        content = [{"type": "text", "text": f"{PLACEHOLDER * count}\n"}, *content]
    elif isinstance(content, str):
        content = f"{PLACEHOLDER * count}\n{content}"
    return [*turns[:place], turn._replace(content=content), *turns[place + 1 :]]
