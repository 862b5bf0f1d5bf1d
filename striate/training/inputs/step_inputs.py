"""What happens to a micro-batch between the collator and the model: a list of inputs, each a small object; a tally."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

from torch import nn

from striate.data.packing import FILLER, SEGMENTS, Batch
from striate.models.interventions.model_rule import reading_batch
from striate.training.batching.label_positions import ANSWERS, label_positions
from striate.training.batching.micro_batches import BROKEN, broken_of

# The shapes of the pictures whose vision features are cached.
SHAPES = "vision_shapes"
# Read on the CPU alone: asking the accelerator for them would make the CPU wait for it.
_ON_CPU = (FILLER, SEGMENTS, SHAPES, BROKEN)


class StepInput:
    """One change of a micro-batch; what a kind of input does not override changes nothing."""

    def installed(self) -> AbstractContextManager[None]:
        """Return a context, of a whole training, in which the model takes what the input gives."""
        return nullcontext()

    def prepared(self, batch: Batch) -> Batch:
        """Return the batch with what can be found on the CPU."""
        return batch

    def serving(self, batch: Batch, on_cpu: Batch) -> AbstractContextManager[Batch]:
        """Return a context with the batch on the device as the model takes it, until its backward pass is done."""
        return nullcontext(batch)


class StepInputs:
    """The inputs of a training, in their order."""

    def __init__(self, parts: Sequence[StepInput], to_device: Callable[[Batch], Batch]) -> None:
        """Take the inputs, and what moves a batch to the device."""
        self.parts, self._to_device = parts, to_device

    @contextmanager
    def on_device(self, batch: Batch) -> Iterator[Batch]:
        """Yield `batch` on the device as the model takes it; the block ends with its backward pass."""
        for part in self.parts:
            batch = part.prepared(batch)
        moved = self._to_device({name: value for name, value in batch.items() if name not in _ON_CPU})
        with ExitStack() as stack:
            for part in self.parts:
                moved = stack.enter_context(part.serving(moved, batch))
            yield moved


class LabelPositions(StepInput):
    """Finds the answers in the labels on the CPU, so that nothing waits for the accelerator."""

    def __init__(self, multiple: int = 1) -> None:
        """Fill the answers of a batch up to a `multiple` with some that count for nothing."""
        self._multiple = multiple

    def prepared(self, batch: Batch) -> Batch:
        """Return the batch with the positions of its labels in their place."""
        rest = {name: value for name, value in batch.items() if name != "labels"}
        return {**rest, ANSWERS: label_positions(batch["labels"], self._multiple)} if "labels" in batch else batch


class SkippingInput(StepInput):
    """Tells a model whose image tokens skip layers where these tokens are (visual token skipping)."""

    def __init__(self, model: nn.Module) -> None:
        """Take the model, whether it has such a rule or not."""
        self._model = model

    @contextmanager
    def serving(self, batch: Batch, on_cpu: Batch) -> Iterator[Batch]:
        """Yield the batch, with its layout told in the block."""
        lengths = on_cpu[SEGMENTS][:, 0].tolist() if SEGMENTS in on_cpu else None
        with reading_batch(self._model, on_cpu["input_ids"], batch["input_ids"].device, lengths):
            yield batch


class StepTally:
    """Counts one process's micro-batches.

    Attributes:
        longest: tokens of the longest sample so far; None where that of earlier sessions is not known.
    """

    def __init__(self, name_of: Callable[[int], str], longest: int | None) -> None:
        """Take what the log calls a sample of a number, and the longest sample of earlier sessions."""
        self.longest = longest
        self._name_of = name_of
        self._tokens = self._slots = 0
        self._skipped: dict[str, str] = {}

    def add(self, batch: Batch) -> None:
        """Count the tokens of a micro-batch, padding among the slots alone."""
        slots = batch["input_ids"].numel()
        longest = int(batch[SEGMENTS][:, 0].max()) if SEGMENTS in batch else batch["input_ids"].shape[1]
        self.longest = None if self.longest is None else max(self.longest, longest)
        self._slots += slots
        self._tokens += int(batch["attention_mask"].sum()) if "attention_mask" in batch else slots
        self._tokens -= int(batch.get(FILLER, 0))
        if BROKEN in batch:
            self._skipped |= {self._name_of(number): why for number, why in broken_of(batch).items()}

    def take(self) -> tuple[int, int]:
        """Return tokens and slots since the last call."""
        counts = self._tokens, self._slots
        self._tokens = self._slots = 0
        return counts

    def take_skipped(self) -> dict[str, str]:
        """Return why samples were left out since the last call, by their names."""
        skipped, self._skipped = self._skipped, {}
        return skipped
