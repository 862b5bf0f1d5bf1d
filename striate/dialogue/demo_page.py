"""The page of `striate demo`: drop a picture, ask, compare the models, and see which layers read the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from striate.data.samples import PLACEHOLDER
from striate.dialogue.answer_stream import answer_stream
from striate.dialogue.answering import Answer
from striate.dialogue.attention_strip import attention_strip
from striate.dialogue.conversation import Conversation, checked_picture
from striate.dialogue.page_models import PageModels
from striate.errors import ModelError, StriateError
from striate.reporting.html.markup import Html, tag
from striate.wording import amount

LONGEST_QUESTION = 4000
KEPT_SECONDS = 3600
"""How long uploaded pictures are kept at most."""


def picture_place(uploads: Path) -> Any:
    """Return a place to drop a picture: of what a browser names only an upload of its own is opened, nothing fetched.

    It is gradio's component with other functions on this one object: a subclass would write a file beside this module.
    """
    place = gr.Image(label="picture", sources=["upload", "clipboard"], type="filepath", buttons=["fullscreen"])

    def own(path: str | Path | None) -> str | None:
        return None if path is None else checked_upload(path, uploads)

    async def own_later(path: str | Path | None) -> str | None:
        return own(path)

    place.move_resource_to_block_cache = own
    place.async_move_resource_to_block_cache = own_later
    # As it was sent: striate's own decoders open it.
    place.preprocess = lambda payload: None if payload is None else own(payload.path)
    return place


def checked_upload(path: str | Path, uploads: Path) -> str:
    """Return the path of a file in `uploads`.

    Raises:
        Error: gradio's, if it lies elsewhere, or is an address.
    """
    file = Path(path).resolve()
    if not file.is_relative_to(uploads) or not file.is_file():
        raise gr.Error("only pictures that were dropped here are opened", print_exception=False)
    return str(file)


def demo_page(models: PageModels, uploads: Path) -> gr.Blocks:
    """Return the page, not served yet; uploaded pictures lie in `uploads`."""
    labels = list(models.answerers)
    with gr.Blocks(title=f"striate: {models.title}", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.HTML(tag("h1", models.title))
        with gr.Row():
            with gr.Column(scale=2):
                picture = picture_place(uploads.resolve())
            with gr.Column(scale=3):
                question = gr.Textbox(
                    label="question", lines=1, max_lines=4, max_length=LONGEST_QUESTION, elem_id="question"
                )
                ask = gr.Button("Ask", variant="primary", elem_id="ask")
        shown: list[Any] = []
        with gr.Row():
            for label in labels:
                with gr.Column():
                    answer = gr.Textbox(label=label, lines=4, interactive=False, elem_id=f"answer-{label}")
                    shown += [answer, gr.HTML(elem_id=f"facts-{label}")]
        shown.append(gr.HTML(elem_id="strip"))

        def answers(given: str | None, words: str) -> Iterator[list[Any]]:
            yield from _answers(models, given and checked_upload(given, uploads.resolve()), words)

        for event in (ask.click, question.submit):
            event(answers, [picture, question], shown, api_visibility="private", concurrency_limit=1, concurrency_id=1)
    return page


def _answers(models: PageModels, picture: str | None, question: str) -> Iterator[list[Any]]:
    """Yield all that the page shows, again and again: an answer and its facts for each model, and the strip last."""
    begun = Conversation()
    try:
        if not question.strip():
            raise gr.Error("ask something about the picture", print_exception=False)
        begun = begun.showing(*([checked_picture(picture)] if picture else []))
        asked = begun.asked(question[:LONGEST_QUESTION].replace(PLACEHOLDER, ""))
        shown: dict[str, tuple[str, Html]] = dict.fromkeys(models.answerers, ("", Html("")))
        answered: dict[str, Conversation] = {}
        for label, answerer in models.answerers.items():
            for piece in answer_stream(answerer, asked.sample()):
                if isinstance(piece, Answer):
                    shown[label] = (piece.text, _facts(piece))
                    answered[label] = asked.answered(piece.text)
                else:
                    shown[label] = (shown[label][0] + piece, Html(""))
                yield _values(shown, Html(""))
        yield _values(shown, _strip(models, answered))
    except StriateError as error:
        raise gr.Error(_without_place(str(error), picture), print_exception=False) from error


def _values(shown: dict[str, tuple[str, Html]], strip: Html) -> list[Any]:
    return [*(value for pair in shown.values() for value in pair), strip]


def _facts(answer: Answer) -> Html:
    pictured = f", {answer.image_tokens} of them image tokens" if answer.image_tokens else ""
    return tag(
        "p",
        f"{answer.seconds:.2f} s, {answer.first_token_seconds:.2f} s to the first token;"
        f" {amount(answer.tokens, 'token')} after {answer.prompt_tokens} read{pictured}",
        class_="facts",
    )


def _strip(models: PageModels, answered: dict[str, Conversation]) -> Html:
    """Return the drawing of which layers read the picture, or why there is none."""
    try:
        rows = {label: models.attention(label, said.sample()) for label, said in answered.items()}
    except ModelError as error:
        return tag("p", error.given, class_="facts")
    return attention_strip(rows, models.num_layers, models.region)


def _without_place(text: str, picture: str | None) -> str:
    """Return an error's text without the place of the upload, which says nothing to who dropped it."""
    return text.replace(picture, Path(picture).name) if picture else text
