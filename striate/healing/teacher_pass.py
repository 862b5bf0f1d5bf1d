"""One pass of the tuned model over the samples that heal: what it says of every answer token, stored once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from striate.config import HealSection
from striate.data.checks.broken_samples import usable
from striate.data.collate import Collator
from striate.data.encoding import Encoded
from striate.data.samples import Sample
from striate.errors import ArtifactError, TrainingError
from striate.healing.teacher_rows import COUNTS, IDS, LOG_PROBS, STATES, TeacherRows, part_name
from striate.models.interventions.eval_mode import evaluating
from striate.models.interventions.selected_logits import answer_outputs
from striate.models.io.image_token_count import image_tokens_counted
from striate.models.io.placing import on_device
from striate.progress import Progress, Silent
from striate.training.batching.label_positions import label_positions
from striate.training.batching.prefetch import encoded_ahead
from striate.training.caching.tensor_store import StoredTensors, write_once
from striate.training.precision import HALF

Add = Callable[[str, torch.Tensor], None]


@image_tokens_counted()
def teacher_rows(
    model: Any,
    samples: Sequence[Sample],
    collator: Collator,
    section: HealSection,
    *,
    batch_size: int = 8,
    workers: int = 0,
    folder: Path | None = None,
    key: str = "",
    progress: Progress | None = None,
) -> TeacherRows | None:
    """Return what `model` says of every answer token of `samples`; None where healing learns from the answers alone.

    Kept of each: the log-probabilities of its `section.top_k` likeliest tokens and of all others together, in 16 bits;
    with `section.hidden` also the hidden state after the final norm.

    Args:
        model: the teacher, whole: layers are removed afterwards.
        samples: that heal; equal ones are asked once.
        collator: encodes them, with labels.
        section: says what is learned of the teacher.
        batch_size: samples of a forward pass.
        workers: processes that read pictures ahead.
        folder: where rows are stored, or read if those of `key` are there; None keeps them in memory.
        key: what they follow from.
        progress: where to show it.

    Raises:
        TrainingError: the model has no LM head to take hidden states from, or logits that are not finite.
        DataError: a sample that can't be used, or none that can.
        ArtifactError: the folder can't be written.
    """
    if not section.needs_teacher:
        return None
    progress = progress or Silent()
    distinct = list(dict.fromkeys(samples))
    if folder is None:
        in_memory: dict[str, torch.Tensor] = {}
        _run(model, distinct, collator, section, batch_size, workers, in_memory.__setitem__, progress)
        return TeacherRows(distinct, in_memory)
    known = stored_rows(folder, key, distinct)
    if known is None:
        # What lies there is of other samples, damaged, or the rest of a pass that was killed.
        shutil.rmtree(folder, ignore_errors=True)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ArtifactError(
                f"can't make the folder {folder}: {error.strerror}",
                "a folder that can be made, or is one",
                f"move what lies at {folder} away; nothing in it is needed again",
            ) from error
        write_once(
            folder / key,
            lambda writer: _run(model, distinct, collator, section, batch_size, workers, writer.add, progress),
        )
        known = TeacherRows(distinct, StoredTensors(folder / key), key)
    return known


def stored_rows(folder: Path, key: str, samples: Sequence[Sample]) -> TeacherRows | None:
    """Return the rows of `key` that a teacher left in `folder`; None where there are none, or they are damaged."""
    try:
        known = StoredTensors(folder / key)
        # Each is compared with its checksum as it is read: once before steps rely on it.
        for _ in known.values():
            pass
        return TeacherRows(list(dict.fromkeys(samples)), known, key)
    except ArtifactError:
        return None


def _run(
    model: Any,
    samples: Sequence[Sample],
    collator: Collator,
    section: HealSection,
    batch_size: int,
    workers: int,
    add: Add,
    progress: Progress,
) -> None:
    """Ask the model of all samples, those of like length together, and hand the rows of each to `add`."""
    size = lambda number: (len(samples[number].images), sum(len(turn.text) for turn in samples[number].messages))  # noqa: E731
    can_be_used = set(usable(collator, samples))
    order = sorted((number for number, sample in enumerate(samples) if sample in can_be_used), key=size, reverse=True)
    counts = torch.zeros(len(samples), dtype=torch.long)
    encoded = encoded_ahead([samples[number] for number in order], collator, workers)
    with progress.track("teacher", len(order)) as advance, evaluating(model), torch.no_grad():
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            rows = _asked(model, collator, list(islice(encoded, len(numbers))), section)
            for number, parts in zip(numbers, rows, strict=True):
                counts[number] = len(parts[IDS])
                for part, tensor in parts.items():
                    add(part_name(number, part), tensor)
            advance(len(numbers))
    add(COUNTS, counts)


def _asked(
    model: Any, collator: Collator, items: list[Encoded], section: HealSection
) -> Iterator[dict[str, torch.Tensor]]:
    """Yield the rows of each sample, by one forward pass."""
    batch = collator.join(items)
    rows_N, columns_N, _ = label_positions(batch["labels"])
    moved = on_device(model, batch)
    device = moved["input_ids"].device
    logits_NV, states_ND = answer_outputs(model, moved, rows_N.to(device), columns_N.to(device))
    k = section.top_k if section.kl else 1
    parts = dict(zip((LOG_PROBS, IDS), likeliest(logits_NV.float(), k), strict=True))
    if not bool(torch.isfinite(parts[LOG_PROBS][:, :-1]).all()):
        raise TrainingError(
            "the tuned model's logits are not finite, and healing would learn from them",
            "finite logits",
            "use machine.dtype=float32 or bfloat16, or heal.kl=0",
        )
    if section.hidden:
        if states_ND is None:
            raise TrainingError(
                "heal.hidden needs the hidden states before the LM head, and this model has no LM head of its own",
                "heal.hidden=0 with this model",
                "use heal.kl, which learns from logits",
            )
        parts[STATES] = states_ND if states_ND.dtype in HALF else states_ND.half()
    sizes = rows_N.bincount(minlength=len(items)).tolist()
    split = {part: tensor.cpu().split(sizes) for part, tensor in parts.items()}
    for index in range(len(items)):
        yield {part: pieces[index] for part, pieces in split.items()}


def likeliest(logits_NV: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log-probabilities (N, K + 1) of the K likeliest tokens and of all others together, and the K tokens.

    K is `k`, or V where that is less: the others then have probability 0. In 16 bits, tokens as int32.
    """
    values_NK, ids_NK = logits_NV.topk(min(k, logits_NV.shape[1]))
    rest_NV = logits_NV.scatter(1, ids_NK, -torch.inf)
    joined_NL = torch.cat([values_NK, rest_NV.logsumexp(1, keepdim=True)], dim=1)
    return joined_NL.log_softmax(1).half(), ids_NK.int()
