"""Evaluate: ask a model its test packs and score every task, with 95% intervals."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from striate.artifacts import AskingFacts, EvalRecord, Prediction, TaskScore
from striate.config import EvaluateSection, MachineSection
from striate.data.pictures import PictureLimits
from striate.errors import DataError
from striate.models.io.image_token_count import image_tokens_counted
from striate.models.io.sane_model import check_finite
from striate.models.structure.anatomy import decoder_layers, unwrap
from striate.progress import Progress, Silent
from striate.runs.peak_memory import peak_memory_gib, reset_peak_memory
from striate.storage.fingerprints import earlier_fingerprint
from striate.tasks.inference.ask import ask
from striate.tasks.inference.reply_journal import Journal
from striate.tasks.inference.without_pictures import without_pictures
from striate.tasks.packs.items import Item, Mark, Pack, Reply
from striate.tasks.packs.sources import check_pack_names
from striate.tasks.scoring.compare import macro_average, macro_intervals, task_scores
from striate.tasks.scoring.mark import check_corpora, mark_all


@image_tokens_counted()
def evaluate(
    model: Any,
    processor: Any,
    packs: Sequence[Pack],
    *,
    label: str,
    model_name: str,
    config: EvaluateSection,
    machine: MachineSection,
    seed: int = 0,
    size_bytes: int = 0,
    progress: Progress | None = None,
    journal: Path | None = None,
    journal_key: str = "",
    blind: bool = False,
) -> tuple[EvalRecord, list[Prediction]]:
    """Return the model's score on every task with its 95% interval, and its answer to every item.

    Answers don't depend on the size of batches, and the model is left as it was. A task is a pack's items of one task
    name, metric and kind; `visual` and `text` are the unweighted means over their tasks, perplexity apart. With a
    journal, an evaluation that was killed resumes where it was: what has been answered is not asked again.

    Args:
        model: an LVLM, PEFT-wrapped or not, on the device where it shall run.
        processor: its processor.
        packs: the test packs, as `read_pack` reads them; `config.limit` is `read_pack`'s and has been applied there.
        label: `start`, `tuned`, `pruned`, or another name of this model in the run.
        model_name: where the model comes from.
        config: `max_new_tokens`, and the draws behind the intervals of perplexity.
        machine: `eval_batch` and `eval_tokens`, the most rows and tokens that run side by side; the largest picture.
        seed: of these draws.
        size_bytes: the model's size on disk, kept in the record.
        progress: where to say how far it is.
        journal: file for the replies meanwhile; the caller deletes it when the result is written.
        journal_key: what the replies follow from, a fingerprint of model, packs and settings.
        blind: for the floor: whether the items with a picture, and they alone, are asked with a grey one in its place.

    Raises:
        DataError: no packs, two packs of one name, a picture that can't be read, or an item that is too long.
        ModelError: weights or logits that are not finite, or a processor that is not the model's.
        ArtifactError: the journal can't be written.
    """
    items = [item for item in _all_items(packs) if item.images or not blind]
    check_corpora(items)
    check_finite(unwrap(model))
    reset_peak_memory(unwrap(model).device)
    replies_file = Journal(journal, journal_key) if journal else None
    limits, name = PictureLimits.of(machine), f"{'floor of' if blind else 'evaluate'} {label}"
    with (
        without_pictures(items, limits) if blind else nullcontext(items) as shown,
        (progress or Silent()).track(name, len(items)) as advance,
    ):
        asked = ask(
            model,
            processor,
            shown,
            max_new_tokens=config.max_new_tokens,
            batch_size=machine.eval_batch,
            token_budget=machine.eval_tokens,
            advance=advance,
            journal=replies_file,
            limits=limits,
        )
    predictions = _predictions(items, asked.replies)
    tasks = tuple(task_scores(predictions, config.bootstrap, seed))
    record = _record(model, tasks, asked.stats, label=label, model_name=model_name, size_bytes=size_bytes)
    return record.model_copy(update={"intervals": macro_intervals(predictions)}), predictions


def _all_items(packs: Sequence[Pack]) -> list[Item]:
    """Return the items of all packs, whose names must differ since predictions are told apart by them."""
    if not packs:
        raise DataError("no test packs to evaluate on", "folders with a test.jsonl", "add some to evaluate.packs")
    check_pack_names([pack.name for pack in packs])
    return [item for pack in packs for item in pack.items]


def _predictions(items: Sequence[Item], replies: Sequence[Reply]) -> list[Prediction]:
    paths = dict.fromkeys(path for item in items for path in item.images)
    # As in the predictions of earlier versions, which they are compared with.
    contents = {path: earlier_fingerprint(path) for path in paths}
    return [
        _prediction(item, mark, "+".join(contents[path] for path in item.images))
        for item, mark in zip(items, mark_all(items, replies), strict=True)
    ]


def _prediction(item: Item, mark: Mark, picture: str) -> Prediction:
    expected = item.answers if item.answer_index is None else (item.choices[item.answer_index],)
    return Prediction(
        id=item.id,
        pack=item.pack,
        task=item.task,
        metric=item.metric,
        question=item.question or item.context or item.text,
        image=None if item.image is None else str(item.image),
        expected=expected,
        answer=mark.answer,
        score=mark.score,
        weight=mark.weight,
        unparsed=mark.unparsed,
        choices=item.choices,
        picture=picture,
    )


def _record(
    model: Any, tasks: tuple[TaskScore, ...], asking: AskingFacts, *, label: str, model_name: str, size_bytes: int
) -> EvalRecord:
    return EvalRecord(
        label=label,
        model=model_name,
        tasks=tasks,
        visual=macro_average(tasks, "visual"),
        text=macro_average(tasks, "text"),
        parameters=_parameters(model),
        num_layers=len(decoder_layers(model)),
        size_bytes=size_bytes,
        seconds=asking.seconds,
        peak_memory_gib=peak_memory_gib(unwrap(model).device),
        asking=asking,
    )


def _parameters(model: Any) -> int:
    """Return the number of parameters: adapters count, the originals that PEFT keeps beside trained copies do not."""
    named = unwrap(model).named_parameters()
    return sum(parameter.numel() for name, parameter in named if ".original_module." not in name)
