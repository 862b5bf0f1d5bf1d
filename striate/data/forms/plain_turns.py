"""The turns of an ordinary record, in one pass: large data is nearly all of these. No torch."""

from __future__ import annotations

from striate.data.forms.conversation_forms import CHAT, LLAVA, ROLES
from striate.data.forms.not_learned import BESIDE, MARKS, SAID
from striate.data.rows import Row
from striate.data.samples import PLACEHOLDER, Message

_FORMS = (("conversations", *LLAVA), ("messages", *CHAT))
# Fields by which a record may have another form, or turns besides the list's.
_OTHERS = frozenset({"system", "texts", "query", "instruction", "prompt", "question", "chosen", "rejected", *BESIDE})
_TOLD = MARKS.union(SAID)


def plain_turns(row: Row) -> tuple[list[Message], int] | None:
    """Return the turns and how many pictures their placeholders stand for; None of a record with anything else in it.

    That is read in full, by `raw_turns`, which says what is wrong with it if something is.
    """
    fields = row.fields
    lists = [form for form in _FORMS if form[0] in fields]
    if len(lists) != 1 or not _OTHERS.isdisjoint(fields):
        return None
    key, speaker, content = lists[0]
    turns, messages, pictures = fields[key], list[Message](), 0
    if type(turns) is not list:
        return None
    for turn in turns:
        if type(turn) is not dict or (len(turn) > 2 and not _TOLD.isdisjoint(turn)):
            return None
        who, text = turn.get(speaker), turn.get(content)
        role = ROLES.get(who) if type(who) is str else None
        if role is None or type(text) is not str:
            return None
        if "<" in text:
            count = text.count(PLACEHOLDER)
            # Another tag may be a picture, a video or a sound.
            if role != "user" or text.count("<") != count:
                return None
            pictures += count
        messages.append(Message(role, text.strip() if role == "assistant" else text))
    return (messages, pictures) if messages else None
