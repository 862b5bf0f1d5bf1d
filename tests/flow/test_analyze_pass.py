"""The one pass of analyze: packed rows, mixed pictures, too little memory, tasks, and a model left as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from training_kit import Said
from transformers.modeling_utils import AttentionInterface

import striate
from striate.artifacts import Scores
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.errors import ConfigError, ModelError
from striate.models.structure.anatomy import decoder_layers, find_anatomy
from striate.scorers import SCORERS
from striate.scorers.streaming.masks import token_masks
from striate.scorers.streaming.stream import LayerStream
from striate.stages.analyze import analyze

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

PLAIN = [scorer for scorer in SCORERS if scorer.source in ("hidden states", "attention")]
NAMES = [one.name for one in PLAIN]


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir / "train.json")


def close(a: Scores, b: Scores, tolerance: float = 1e-5) -> None:
    for one, other in zip(a.scorers, b.scorers, strict=True):
        assert one.scorer == other.scorer
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.values, other.values, atol=tolerance)
        for part, values in one.parts.items():
            np.testing.assert_allclose(values, other.parts[part], atol=tolerance)


def stream_of(loaded: Loaded, batch: dict[str, Any]) -> LayerStream:
    masks = token_masks(batch, find_anatomy(loaded.model))
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad(), LayerStream(decoder_layers(loaded.model), PLAIN) as stream, stream.batch(masks):
        loaded.model(**inputs, use_cache=False)
    return stream


def test_samples_packed_into_one_row_score_as_they_do_apart(tiny_llava: Loaded, samples: list[Sample]) -> None:
    text_only = next(sample for sample in samples if not sample.images)
    collate = Collator(tiny_llava.processor, 512, train=True)
    rows = [collate([one]) for one in (samples[0], samples[1], text_only, samples[2])]
    packed = {name: torch.cat([row[name] for row in rows], dim=1) for name in ("input_ids", "labels")}
    packed["position_ids"] = torch.cat([torch.arange(row["input_ids"].shape[1]) for row in rows])[None]
    packed["pixel_values"] = torch.cat([row["pixel_values"] for row in rows if "pixel_values" in row])
    together = stream_of(tiny_llava, packed)
    apart = [stream_of(tiny_llava, row) for row in rows]
    for name in NAMES:
        for part, sums in together.results(name).items():
            alone = [one.results(name)[part] for one in apart]
            np.testing.assert_allclose(sums.sums, np.concatenate([one.sums for one in alone]), atol=2e-5, rtol=1e-5)
            np.testing.assert_array_equal(sums.counts, np.concatenate([one.counts for one in alone]))
    np.testing.assert_allclose(together.spans(), np.concatenate([one.spans() for one in apart]), atol=1e-5)


def test_text_one_picture_and_two_pictures_share_a_batch(tiny_llava: Loaded, samples: list[Sample]) -> None:
    first, second = samples[0], samples[1]
    two = Sample(
        "two",
        (Message("user", "<image>\n<image>\nAre they the same?"), Message("assistant", "no")),
        (*first.images, *second.images),
    )
    mixed = [samples[-1], first, two]
    assert [len(one.images) for one in mixed] == [0, 1, 2]
    model, processor = tiny_llava.model, tiny_llava.processor
    close(analyze(model, processor, mixed, NAMES, batch_size=1), analyze(model, processor, mixed, NAMES, batch_size=3))


def forbid_batches_above(model: torch.nn.Module, most: int) -> list[int]:
    """Make forward passes of more rows run out of memory; return the sizes that were tried."""
    tried: list[int] = []

    def check(_: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        tried.append(len(output[0] if isinstance(output, tuple) else output))
        if tried[-1] > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    decoder_layers(model)[2].register_forward_hook(check, with_kwargs=True)
    return tried


def test_a_batch_that_runs_out_of_memory_is_halved(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    whole = analyze(model, processor, samples[:7], NAMES, batch_size=7)
    tried = forbid_batches_above(model, 2)
    close(whole, analyze(model, processor, samples[:7], NAMES, batch_size=7))
    assert tried == [7, 4, 2, 2, 2, 1]


def test_a_sample_that_does_not_fit_at_all_is_named(tiny_llava: Loaded, samples: list[Sample]) -> None:
    forbid_batches_above(tiny_llava.model, 0)
    with pytest.raises(ModelError, match="alone does not fit into the device's memory"):
        analyze(tiny_llava.model, tiny_llava.processor, samples[:3], NAMES, batch_size=2)


def hooks(model: torch.nn.Module) -> int:
    """Return the number of hooks that transformers did not put there itself."""
    found = [hook for module in model.modules() for hook in module._forward_hooks.values()]
    found += [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return sum(not getattr(hook, "__module__", "").startswith("transformers.") for hook in found)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_a_notebook_model_is_left_as_it_was(
    tiny_llava: Loaded, samples: list[Sample], fails: bool, implementation: str
) -> None:
    model = tiny_llava.model.train()
    model.set_attn_implementation(implementation)
    before = AttentionInterface.get_interface
    if fails:
        forbid_batches_above(model, 0)
        with pytest.raises(ModelError):
            striate.analyze(model, tiny_llava.processor, samples[:3], scorers=NAMES)
    else:
        striate.analyze(model, tiny_llava.processor, samples[:3], scorers=NAMES)
    assert AttentionInterface.get_interface is before
    assert model.config.text_config._attn_implementation == implementation
    assert model.config.vision_config._attn_implementation == implementation
    assert hooks(model) == int(fails)
    assert all(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attention_that_is_not_the_softmax_of_queries_and_keys_is_refused(
    tiny_llava: Loaded, samples: list[Sample]
) -> None:
    name = type(decoder_layers(tiny_llava.model)[0].self_attn).__name__

    def biased(module: torch.nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        weights = (query @ key.mT * options["scaling"]).relu()
        return (weights @ value).transpose(1, 2), weights

    tiny_llava.model.config.text_config.num_key_value_heads = 4
    AttentionInterface.register("relu", biased)
    try:
        for layer in decoder_layers(tiny_llava.model):
            layer.self_attn.config._attn_implementation = "relu"
            layer.self_attn.k_proj = torch.nn.Linear(32, 32)
            layer.self_attn.v_proj = torch.nn.Linear(32, 32)
        with pytest.raises(ModelError, match=r"layer 0: its attention is not the softmax of its queries and keys"):
            analyze(tiny_llava.model, tiny_llava.processor, samples[:2], ["image-attention"])
    finally:
        AttentionInterface._global_mapping.pop("relu")
    assert name == "LlamaAttention"


def test_layers_without_attention_are_named(tiny_llava: Loaded, samples: list[Sample]) -> None:
    class NoAttention(torch.nn.Module):
        def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
            return hidden_states, None

    decoder_layers(tiny_llava.model)[1].self_attn = NoAttention()
    with pytest.raises(ModelError, match="no attention over tokens was seen in layer 1") as caught:
        analyze(tiny_llava.model, tiny_llava.processor, samples[:2], ["image-attention"])
    assert "leave image-attention out" in str(caught.value)


def by_task(samples: Sequence[Sample]) -> list[Sample]:
    names = ("ocr", "count", "")
    return [replace(sample, task=names[index % 3]) for index, sample in enumerate(samples)]


def test_each_task_scores_as_it_does_alone(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model, processor, tasked = tiny_llava.model, tiny_llava.processor, by_task(samples)
    scores = analyze(model, processor, tasked, NAMES, by="task")
    assert list(scores.tasks) == ["count", "ocr", "other"]
    for task, name in (("count", "count"), ("ocr", "ocr"), ("other", "")):
        own = [sample for sample in tasked if sample.task == name]
        alone = analyze(model, processor, own, NAMES)
        close(alone, replace_scorers(scores, task))
        np.testing.assert_allclose(scores.of("block-influence", task).low, alone.scorers[0].low, atol=1e-5)
        assert scores.of("angular-distance", task).samples == len(own)
        for span, row in zip(
            scores.of("angular-distance", task).spans, alone.of("angular-distance").spans, strict=True
        ):
            np.testing.assert_allclose(span, row, atol=1e-5)
    close(scores, analyze(model, processor, tasked, NAMES))
    assert analyze(model, processor, tasked, NAMES).tasks == {}
    turned = analyze(model, processor, tasked[::-1], NAMES, by="task")
    close(replace_scorers(turned, "ocr"), replace_scorers(scores, "ocr"))


def replace_scorers(scores: Scores, task: str) -> Scores:
    return scores.model_copy(update={"scorers": scores.tasks[task]})


def test_a_task_without_pictures_leaves_out_what_needs_them_and_says_so(
    tiny_llava: Loaded, samples: list[Sample]
) -> None:
    said = Said()
    names = ["block-influence", "modality-block-influence"]
    scores = analyze(tiny_llava.model, tiny_llava.processor, samples, names, by="task", progress=said)
    assert [entry.scorer for entry in scores.tasks["text"]] == ["block-influence"]
    assert len(scores.tasks["colour"]) == 2
    assert said.said == ["analyze: task 'text' has no tokens that modality-block-influence needs; left out there"]


def test_scorers_of_every_source_run_together_and_need_samples_only_where_they_read_some(
    tiny_llava: Loaded, tiny_llava_dir: Path, samples: list[Sample]
) -> None:
    names = ["spectrum-snr", "knock-out", "block-influence", "gradient-norm", "parameter-change"]
    model, processor = tiny_llava.model, tiny_llava.processor
    scores = analyze(model, processor, samples[:5], names, by="task", base=tiny_llava_dir)
    assert [entry.scorer for entry in scores.scorers] == names
    assert [entry.samples for entry in scores.scorers] == [0, 5, 5, 5, 0]
    assert scores.of("parameter-change").values == (0.0,) * 4
    assert [entry.scorer for entry in scores.tasks["colour"]] == ["knock-out", "block-influence", "gradient-norm"]
    assert analyze(model, processor, [], ["spectrum-snr"]).samples == 0


def test_what_is_missing_for_a_source_is_said_before_anything_runs(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    with pytest.raises(ConfigError, match="parameter-change compares with the untuned checkpoint, and none is named"):
        analyze(model, processor, samples, ["block-influence", "parameter-change"])
    with pytest.raises(ConfigError, match="1 pairs of pictures have no interval"):
        analyze(model, processor, samples, ["token-swap"], pairs=1)
