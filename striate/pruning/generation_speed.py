"""Measures how fast a model reads a prompt with a picture and writes tokens with the KV cache, and its peak memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from striate.artifacts import SpeedRecord, Spread
from striate.data.collate import Collator
from striate.data.samples import PLACEHOLDER, Message, Sample
from striate.errors import ConfigError
from striate.models.interventions.eval_mode import evaluating
from striate.models.io.placing import on_device
from striate.models.structure.anatomy import find_anatomy, unwrap
from striate.runs.peak_memory import peak_memory_gib, reset_peak_memory, reset_resident_peak, resident_peak_gib
from striate.tasks.inference.generate import generate_greedily
from striate.tasks.inference.text_tokens import check_length, context_limit

WORD, SOME, PIXELS = " a", 16, 336
NO_LIMIT = 2**31 - 1


class SpeedTest:
    """A model with its prompts: each `round` measures once, so that several models can take turns on a busy machine."""

    def __init__(self, model: Any, tokenizer: Any, inputs: Mapping[str, Tensor], new_tokens: int) -> None:
        """Take a model, its tokenizer, prompts of one length (`speed_prompts`), and how many tokens follow each.

        Raises:
            ConfigError: fewer than two new tokens.
            DataError: prompt and new tokens are more than the model takes.
        """
        if new_tokens < 2:
            raise ConfigError(
                f"{new_tokens} new tokens, and decoding is timed from the first to the last",
                "two tokens or more",
                "ask for more new tokens",
            )
        self._model, self._tokenizer, self._new_tokens = model, tokenizer, new_tokens
        self._anatomy, self._core = find_anatomy(model), unwrap(model)
        self._inputs = on_device(self._core, inputs)
        check_length(self.prompt_tokens + new_tokens, context_limit(self._core), "speed")
        self.prefill_seconds: list[float] = []
        self.decode_seconds: list[float] = []
        self._peaks: list[float] = []

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, image tokens included."""
        return int(self._inputs["input_ids"].shape[1])

    def warm_up(self) -> None:
        """Run once without measuring: kernels are chosen and memory is allocated."""
        self._run()

    def round(self) -> None:
        """Measure once."""
        with _peak_of(self._core) as peaks:
            prefill, decode = self._run()
        self.prefill_seconds.append(prefill)
        self.decode_seconds.append(decode)
        self._peaks += peaks

    def record(self) -> SpeedRecord:
        """Return what the rounds so far measured; at least one."""
        ids_BT = self._inputs["input_ids"]
        written = len(ids_BT) * (self._new_tokens - 1)
        return SpeedRecord(
            device=_name(self._core.device),
            dtype=str(self._core.dtype).removeprefix("torch."),
            num_layers=self._anatomy.num_layers,
            prompts=len(ids_BT),
            prompt_tokens=self.prompt_tokens,
            image_tokens=int(self._anatomy.image_mask(ids_BT[:1]).sum()),
            new_tokens=self._new_tokens,
            repeats=len(self.prefill_seconds),
            prefill_seconds=_spread(self.prefill_seconds),
            decode_tokens_per_second=_spread([written / seconds for seconds in self.decode_seconds]),
            weights_gib=_weight_bytes(self._core) / 2**30,
            peak_memory_gib=max(self._peaks, default=None),
        )

    def _run(self) -> tuple[float, float]:
        """Return the seconds of the prefill, and of all tokens after the first."""
        clock = _Clock(self._new_tokens, _waiting(self._core.device))
        with torch.inference_mode(), evaluating(self._core):
            begin = clock.now()
            stop = StoppingCriteriaList([clock])
            count = self._new_tokens
            generate_greedily(self._model, self._tokenizer, self._inputs, [], count, stopping_criteria=stop)
        return clock.first - begin, clock.last - clock.first


def speed_prompts(processor: Any, prompt_tokens: int, prompts: int = 1) -> dict[str, Tensor]:
    """Return `prompts` equal questions about a made-up picture, `prompt_tokens` long to a word, as a batch.

    A prompt is never shorter than its picture takes.
    """
    collator = Collator(processor, NO_LIMIT, train=False)
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "gradient.png"
        Image.linear_gradient("L").resize((PIXELS, PIXELS)).convert("RGB").save(picture)

        def encoded(words: int, times: int = 1) -> dict[str, Tensor]:
            text = f"{PLACEHOLDER}\nDescribe{WORD * words}"
            return collator.encode_prompts([Sample("speed", (Message("user", text),), (picture,))] * times)

        def length(words: int) -> int:
            return int(encoded(words)["input_ids"].shape[1])

        shortest = length(0)
        words = max(0, (prompt_tokens - shortest) * SOME // (length(SOME) - shortest))
        while words and length(words) > prompt_tokens:
            words -= 1
        return encoded(words, prompts)


def measure_speed(
    model: Any,
    processor: Any,
    *,
    prompt_tokens: int = 776,
    new_tokens: int = 64,
    prompts: int = 1,
    repeats: int = 5,
) -> SpeedRecord:
    """Return how fast `model` reads prompts with a picture and writes tokens: medians with the lowest and highest.

    It is transformers' own greedy `generate` with the KV cache that is timed, on the model's device and in its number
    format, after one run that is not. Of models to compare, give each a `SpeedTest` and let them take turns.

    Args:
        model: an LVLM.
        processor: the model's.
        prompt_tokens: length of a prompt, image tokens included.
        new_tokens: tokens to write after it.
        prompts: prompts side by side.
        repeats: measurements.

    Raises:
        ConfigError: fewer than two new tokens.
        DataError: prompt and new tokens are more than the model takes.
    """
    inputs = speed_prompts(processor, prompt_tokens, prompts)
    test = SpeedTest(model, processor.tokenizer, inputs, new_tokens)
    test.warm_up()
    for _ in range(repeats):
        test.round()
    return test.record()


class _Clock(StoppingCriteria):
    """Stops nothing, and notes when the first and the last new token were there."""

    def __init__(self, new_tokens: int, wait: Callable[[], None]) -> None:
        self._left, self._wait = new_tokens, wait
        self.first = self.last = 0.0

    def now(self) -> float:
        """Return the time once the device has done what was asked of it."""
        self._wait()
        return time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Return for each row that it goes on."""
        self._left -= 1
        if not self.first:
            self.first = self.now()
        elif not self._left:
            self.last = self.now()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def _spread(values: Sequence[float]) -> Spread:
    return Spread(median=statistics.median(values), low=min(values), high=max(values))


def _weight_bytes(model: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def _waiting(device: torch.device) -> Callable[[], None]:
    """Return what waits until the device has done all that was asked of it."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return torch.mps.synchronize if device.type == "mps" else lambda: None


@contextmanager
def _peak_of(model: Any) -> Iterator[list[float]]:
    """Yield a list that holds the peak memory in GiB after the block; none where the system does not tell.

    Of an accelerator it is what the model weighs and what came on top, whatever else lies there.
    """
    peaks: list[float] = []
    device = model.device
    known = device.type == "cuda" or (device.type == "cpu" and reset_resident_peak())
    reset_peak_memory(device)
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    yield peaks
    if device.type == "cuda":
        peaks.append(peak_memory_gib(device) + (_weight_bytes(model) - before) / 2**30)
    elif known and (peak := resident_peak_gib()) is not None:
        peaks.append(peak)
