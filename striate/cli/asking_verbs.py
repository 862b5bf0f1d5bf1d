"""Verbs that ask a model: ask, chat and demo."""

from __future__ import annotations

import gc
import json
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Annotated

import typer

from striate.cli.boundary import guard
from striate.cli.console import ERR, OUT, RichProgress, print_json
from striate.cli.options import Device, Dtype, Json, Only, chosen_places, load_place
from striate.errors import ConfigError
from striate.printable import printable
from striate.storage.read_files import user_path

if TYPE_CHECKING:
    from rich.console import Console

    from striate.dialogue.answering import Answer, Answerer
    from striate.dialogue.conversation import Conversation
    from striate.models.io.load import Loaded
    from striate.pipeline.run_models import ModelPlace

Source = Annotated[str, typer.Argument(metavar="MODEL|RUN", help="Model folder, hub id, builtin, or run folder.")]
Which = Annotated[
    str | None, typer.Option("--model", metavar="LABEL", help="Of a run: start, tuned or pruned; the last by default.")
]
Tokens = Annotated[int, typer.Option("--max-new-tokens", min=1, max=100_000, help="The longest answer.")]


def register(app: typer.Typer) -> None:
    """Add this module's verbs to the command line."""
    app.command("ask")(ask)
    app.command("chat")(chat)
    app.command("demo")(demo)


def ask(
    source: Source,
    words: Annotated[list[str], typer.Argument(metavar="[PICTURE...] QUESTION", help="Pictures, then the question.")],
    *,
    model: Which = None,
    everything: Annotated[bool, typer.Option("--all", help="Ask every model of the run, side by side.")] = False,
    max_new_tokens: Tokens = 256,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json_: Json = False,
) -> None:
    """Ask a model, or all models of a run, about pictures. The answer streams."""
    with guard(None):
        conversation = _question(words)
        places = _places(source, model, everything)
        side_by_side = len(places) > 1
        answers: dict[str, Answer] = {}
        for place in places:
            on_text = (lambda text: None) if json_ or side_by_side else _write
            with _told(f"asking {place.label}", ERR if side_by_side and not json_ else None):
                answerer = _answerer(load_place(place, device, dtype), max_new_tokens)
                if side_by_side:
                    answerer.warm_up(conversation.sample())
                answers[place.label] = answerer.answer(conversation.sample(), on_text)
            del answerer
            gc.collect()
        _show(source, words[-1], places, answers, json_)


def chat(
    source: Source,
    picture: Annotated[str | None, typer.Argument(help="A picture to begin with.")] = None,
    *,
    model: Which = None,
    max_new_tokens: Tokens = 512,
    device: Device = "auto",
    dtype: Dtype = "auto",
) -> None:
    """Talk with a model about pictures. There are /picture PATH, /new and /quit."""
    with guard(None):
        from striate.dialogue.conversation import Conversation, checked_picture
        from striate.dialogue.terminal_chat import HELP, Terminal, run_chat

        with suppress(ImportError):
            # Arrow keys move in the line, and bring earlier ones back.
            import readline  # noqa: F401
        begun = Conversation().showing(*([checked_picture(picture)] if picture else []))
        (place,) = _places(source, model, False)
        answerer = _answerer(load_place(place, device, dtype), max_new_tokens)
        _tell(f"{place.label}: {place.path}")
        _tell(HELP)
        run_chat(answerer, begun, Terminal(read=lambda: input("> "), write=_write, tell=_tell))


def demo(
    source: Source,
    *,
    only: Only = None,
    max_new_tokens: Tokens = 256,
    device: Device = "auto",
    dtype: Dtype = "auto",
    host: Annotated[str, typer.Option(help="Address to listen on; by default this machine alone can reach it.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes one that is free.")] = 7860,
) -> None:
    """Serve a page that asks and compares a run's models. It shows which layers read a picture."""
    with guard(None):
        from striate.dialogue.page_server import LOOPBACK, check_gradio, free_port, served_page

        check_gradio()
        # Before models are loaded, which takes a while.
        free_port(host, port)
        from striate.pipeline.run_models import is_run

        places = chosen_places([source], only)
        loads = {label: partial(load_place, place, device, dtype) for label, place in places.items()}
        from striate.dialogue.page_models import PageModels

        run = user_path(source) if is_run(source) else None
        with ERR.status(f"loading {', '.join(places)}"):
            models = PageModels.load(Path(source).resolve().name if run else source, loads, max_new_tokens, run)
        with served_page(models, host, port) as address:
            OUT.print(f"{address}  (Ctrl-C ends it)", soft_wrap=True)
            if host not in LOOPBACK:
                OUT.print(f"reachable by every machine that reaches {host}; nothing asks for a password", style="bold")
            _wait_for_the_end()


def _wait_for_the_end() -> None:
    """Return at Ctrl-C, or where the system asks the process to end."""
    ended = Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with suppress(KeyboardInterrupt):
        ended.wait()


def _question(words: Sequence[str]) -> Conversation:
    """Return the conversation that asks the last of `words` about the pictures before it."""
    from striate.dialogue.conversation import Conversation, checked_picture

    *pictures, question = words
    if not question.strip() or _is_file(question):
        given = f"{question} is a file" if question.strip() else "the last word is empty"
        raise ConfigError(
            f"{given}, and there is no question", "pictures, then a question", 'end with it, as in "What is this?"'
        )
    return Conversation().showing(*map(checked_picture, pictures)).asked(question)


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except OSError:  # Longer than a file's name may be.
        return False


def _show(source: str, question: str, places: Sequence[ModelPlace], answers: dict[str, Answer], as_json: bool) -> None:
    """Print the answers, or what is left to say of the one that was printed as it came."""
    if as_json:
        rows = [{"label": place.label, "path": place.path, **asdict(answers[place.label])} for place in places]
        print_json(json.dumps({"source": source, "question": question, "answers": rows}, ensure_ascii=False))
    elif len(places) > 1:
        from striate.cli.views.answer_table import answer_table

        OUT.print(answer_table(answers))
    else:
        from striate.cli.views.answer_table import facts_line

        OUT.print()
        ERR.print(facts_line(answers[places[0].label]), style="dim", soft_wrap=True)


def _places(source: str, label: str | None, everything: bool) -> list[ModelPlace]:
    """Return the models to ask."""
    from striate.pipeline.run_models import UNHEALED, is_run, model_of, models_of, warn_unhealed

    if not everything:
        return [model_of(source, label, RichProgress(ERR))]
    if label:
        raise ConfigError("--all asks every model, and --model names one", "one of the two", "leave one out")
    if not is_run(source):
        raise ConfigError(
            f"{source} is one model, and --all compares those of a run", "a run folder", "leave out --all"
        )
    models = models_of(source, RichProgress(ERR))
    warn_unhealed(models, RichProgress(ERR))
    return [place for label, place in models.items() if label != UNHEALED]


def _answerer(loaded: Loaded, max_new_tokens: int) -> Answerer:
    from striate.dialogue.answering import Answerer

    return Answerer(loaded.model, loaded.processor, max_new_tokens)


def _write(text: str) -> None:
    """Print a piece of an answer where the last one ended."""
    print(printable(text), end="", flush=True)


def _tell(text: str) -> None:
    OUT.print(text, style="dim", soft_wrap=True)


@contextmanager
def _told(text: str, console: Console | None) -> Iterator[None]:
    """Show what happens meanwhile, where there is a console for it."""
    if console is None:
        yield
        return
    with console.status(text):
        yield
