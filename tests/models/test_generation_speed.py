"""What a measurement of speed counts and divides: with a clock that ticks once a reading, so that nothing is timed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from striate.errors import ConfigError, DataError
from striate.models.io.load import Loaded
from striate.models.surgery.remove_layers import remove_layers
from striate.pruning import generation_speed
from striate.pruning.generation_speed import SpeedTest, measure_speed, speed_prompts


@pytest.fixture
def _ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds: Iterator[int] = count(1)
    monkeypatch.setattr(generation_speed.time, "perf_counter", lambda: float(next(seconds)))


@pytest.mark.usefixtures("_ticking")
def test_a_prompt_is_prefilled_once_and_the_tokens_after_the_first_are_decoded(tiny_llava: Loaded) -> None:
    calls: list[int] = []
    language = tiny_llava.model.model.language_model

    def seen(_: Any, args: Any, kwargs: Any) -> None:
        calls.append(kwargs["inputs_embeds"].shape[1])

    language.register_forward_pre_hook(seen, with_kwargs=True)
    record = measure_speed(tiny_llava.model, tiny_llava.processor, prompt_tokens=60, new_tokens=5, prompts=2, repeats=3)
    # One run that warms up, and three that count.
    assert calls == 4 * [60, 1, 1, 1, 1]
    assert (record.prompts, record.prompt_tokens, record.image_tokens, record.new_tokens) == (2, 60, 4, 5)
    assert (record.repeats, record.num_layers, record.dtype) == (3, 4, "float32")
    # Every reading of the clock is a second after the one before: begin, first token, last token.
    assert record.prefill_seconds.model_dump() == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert record.decode_tokens_per_second.median == 2 * 4
    assert record.device == f"CPU, {torch.get_num_threads()} threads"


def test_medians_and_what_memory_is_told(tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([float(reading) for start, end in ((1, 3), (4, 5), (2, 6)) for reading in (0.0, start, end)])
    peaks = iter([1.0, 3.0, 2.0])
    inputs = speed_prompts(tiny_llava.processor, 40)
    test = SpeedTest(tiny_llava.model, tiny_llava.processor.tokenizer, inputs, 3)
    monkeypatch.setattr(generation_speed.time, "perf_counter", lambda: next(readings))
    monkeypatch.setattr(generation_speed, "reset_resident_peak", lambda: True)
    monkeypatch.setattr(generation_speed, "resident_peak_gib", lambda: next(peaks))
    for _ in range(3):
        test.round()
    record = test.record()
    assert record.prefill_seconds.model_dump() == {"median": 2.0, "low": 1.0, "high": 4.0}
    # Two tokens in 2, 1 and 4 seconds.
    assert record.decode_tokens_per_second.model_dump() == {"median": 1.0, "low": 0.5, "high": 2.0}
    assert record.peak_memory_gib == 3.0


@pytest.mark.usefixtures("_ticking")
def test_memory_that_the_system_does_not_tell_is_left_out(tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation_speed, "reset_resident_peak", lambda: False)
    record = measure_speed(tiny_llava.model, tiny_llava.processor, prompt_tokens=30, new_tokens=2, repeats=1)
    assert record.peak_memory_gib is None


def test_a_smaller_model_weighs_what_its_layers_weighed_less(tiny_llava: Loaded) -> None:
    inputs = speed_prompts(tiny_llava.processor, 30)
    smaller = copy.deepcopy(tiny_llava.model)
    layer = sum(tensor.numel() for tensor in smaller.model.language_model.layers[1].parameters())
    remove_layers(smaller, [1, 2])
    records = []
    for model in (tiny_llava.model, smaller):
        test = SpeedTest(model, tiny_llava.processor.tokenizer, inputs, 2)
        test.round()
        records.append(test.record())
    assert records[0].weights_gib - records[1].weights_gib == pytest.approx(2 * layer * 4 / 2**30)
    assert [record.num_layers for record in records] == [4, 2]


def test_a_prompt_is_as_long_as_asked_and_never_shorter_than_its_picture(tiny_llava: Loaded) -> None:
    lengths = [speed_prompts(tiny_llava.processor, asked)["input_ids"].shape for asked in (1, 50, 51, 200)]
    assert [tuple(length) for length in lengths[1:]] == [(1, 50), (1, 51), (1, 200)]
    assert 4 < lengths[0][1] < 50


def test_what_can_not_be_measured_is_refused(tiny_llava: Loaded) -> None:
    with pytest.raises(ConfigError, match="1 new tokens, and decoding is timed from the first to the last"):
        measure_speed(tiny_llava.model, tiny_llava.processor, new_tokens=1)
    with pytest.raises(DataError, match=r"item 'speed' needs \d+ tokens, but the language model takes"):
        measure_speed(tiny_llava.model, tiny_llava.processor, prompt_tokens=100_000)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "gemma3", "mllama"])
def test_families_that_count_positions_in_their_own_way(
    name: str, family_builder: Callable[[str], tuple[Any, dict[str, Any]]]
) -> None:
    model, inputs = family_builder(name)
    test = SpeedTest(model, SimpleNamespace(pad_token_id=0), inputs, 3)
    test.round()
    record = test.record()
    assert (record.prompts, record.prompt_tokens) == tuple(inputs["input_ids"].shape)
    assert record.decode_tokens_per_second.median > 0
