"""Glue to lmms-eval (Zhang et al. 2024, arXiv 2407.12772): pictures and questions go through striate's own asking.

Import this module only where the package lmms-eval is installed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from lmms_eval.api.registry import register_model
from lmms_eval.evaluator import simple_evaluate
from lmms_eval.tasks import TaskManager
from PIL.Image import Image

from striate.data.samples import PLACEHOLDER
from striate.errors import DataError, ModelError
from striate.harness.outcome import Outcome, outcome_of
from striate.harness.suites import Suite, check_tasks
from striate.models.io.load import Loaded, load_model
from striate.tasks.inference.ask import ask
from striate.tasks.packs.items import Item

NEW_TOKENS = 128


@register_model("striate")
class StriateLmms(lmms):
    """Any LVLM that striate loads, asked with its own chat template: a checkpoint, an adapter or a pruned model."""

    is_simple = True

    def __init__(
        self,
        pretrained: str | Loaded,
        device: str | None = "auto",
        dtype: str = "auto",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        """Load `pretrained`, a folder or hub id, unless it is loaded already."""
        super().__init__()
        if isinstance(pretrained, str):
            pretrained = load_model(pretrained, device=device or "auto", dtype=dtype, merge=True)
        self.loaded = pretrained
        self.batch_size = int(batch_size) if batch_size else None

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Return the greedy answer to every request, cut before the first of its stop texts.

        Raises:
            DataError: a request with something other than pictures.
            ModelError: a request for sampled answers.
        """
        answers: dict[int, str] = {}
        with tempfile.TemporaryDirectory(prefix="striate-") as folder:
            store = Path(folder)
            groups: dict[int, list[int]] = {}
            for place, request in enumerate(requests):
                groups.setdefault(_new_tokens(request.args[1]), []).append(place)
            for limit, places in groups.items():
                items = [self._item(requests[place], place, store) for place in places]
                model, processor = self.loaded.model, self.loaded.processor
                asked = ask(model, processor, items, max_new_tokens=limit, batch_size=self.batch_size)
                answers.update({place: reply.text for place, reply in zip(places, asked.replies, strict=True)})
        return [cut(answers[place], request.args[1].get("until")) for place, request in enumerate(requests)]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Raise: tasks that compare likelihoods of text run under lm-eval."""
        raise ModelError(
            "lmms-eval asks for log-likelihoods, which striate's model class for it does not give",
            "lmms-eval tasks that generate answers",
            "use lm-eval:TASKS for likelihoods of text",
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Raise: each question is asked once."""
        raise ModelError(
            "lmms-eval asks in several rounds, which striate's model class for it does not do",
            "lmms-eval tasks of one round",
            "leave this task out",
        )

    def _item(self, request: Any, place: int, store: Path) -> Item:
        context, _, to_visuals, number, task, split = request.args
        pictures = _pictures(to_visuals, self.task_dict[task][split][number], task)
        paths = [store / f"{place}-{index}.png" for index in range(len(pictures))]
        for path, picture in zip(paths, pictures, strict=True):
            picture.convert("RGB").save(path, compress_level=1)
        question = context if context.count(PLACEHOLDER) == len(paths) else context.replace(PLACEHOLDER, "").strip()
        return Item(
            id=f"{task}/{number}",
            pack=task,
            task=task,
            metric="exact",
            question=question,
            image=paths[0] if paths else None,
            more_images=tuple(paths[1:]),
        )


def cut(answer: str, until: str | Sequence[str] | None) -> str:
    """Return `answer` up to the first of the texts `until`, without spaces around it."""
    stops = [until] if isinstance(until, str) else list(until or ())
    places = [answer.index(stop) for stop in stops if stop and stop in answer]
    return answer[: min(places, default=len(answer))].strip()


def run(suite: Suite, loaded: Loaded, *, limit: int | None, batch_size: int | None) -> Outcome:
    """Return what the harness measured on the tasks of `suite`.

    Raises:
        SpecError: a task that the harness does not know.
    """
    manager = TaskManager("ERROR", include_path=None if suite.folder is None else str(suite.folder))
    check_tasks(suite, list(manager.all_tasks))
    results = simple_evaluate(
        model=StriateLmms(loaded, batch_size=batch_size),
        tasks=list(suite.tasks),
        task_manager=manager,
        limit=limit,
        bootstrap_iters=1000,
        log_samples=True,
        verbosity="ERROR",
    )
    return outcome_of(results)


def _new_tokens(options: dict[str, Any]) -> int:
    if options.get("do_sample") and options.get("temperature"):
        raise ModelError(
            f"lmms-eval asks for sampled answers ({options})",
            "greedy answers: do_sample false or temperature 0",
            "set generation_kwargs in a task file of your own",
        )
    return int(options.get("max_new_tokens") or NEW_TOKENS)


def _pictures(to_visuals: Callable[[Any], Any], row: Any, task: str) -> list[Image]:
    pictures = list(to_visuals(row) or []) if callable(to_visuals) else []
    strangers = [picture for picture in pictures if not isinstance(picture, Image)]
    if strangers:
        raise DataError(
            f"task {task!r} shows {type(strangers[0]).__name__}, not a picture",
            "tasks whose doc_to_visual returns pictures (PIL)",
            "leave out tasks with video or sound",
        )
    return pictures
