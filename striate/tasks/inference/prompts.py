"""Prompts of an item: a chat sample, or plain text to continue. No torch."""

from striate.data.samples import PLACEHOLDER, Message, Sample
from striate.tasks.packs.items import Item


def chat_sample(item: Item) -> Sample:
    """Return the item as a sample that ends with the user's question, its images before the words."""
    text = item.question
    if item.images and PLACEHOLDER not in text:
        text = f"{PLACEHOLDER * len(item.images)}\n{text}"
    return Sample(item.id, (Message("user", text),), item.images, item.task)


def plain_context(item: Item) -> str:
    """Return the plain text that a choice or the next word continues, without a chat template.

    A question is written as `Question: ...` and `Answer:` on two lines (Brown et al. 2020, arXiv 2005.14165,
    appendix G); a context stays as it is, less the spaces at its end.
    """
    if item.context:
        return item.context.rstrip(" ")
    return f"Question: {item.question.strip()}\nAnswer:"


def joined(context: str, choice: str) -> str:
    """Return `context` continued by `choice`: with a space between, except after `=`, `：`, a line break or a tab."""
    tight = not context or context.endswith(("=", "：", "\n", "\t"))
    return f"{context}{'' if tight else ' '}{choice.strip()}"
