from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from PIL import Image
from scorer_formulas import SampleStates
from scorer_formulas import scores as formulas

from striate.artifacts import Scores
from striate.data.collate import Collator
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.errors import ConfigError, DataError, ModelError, SpecError
from striate.models.structure.anatomy import decoder_layers
from striate.scorers import SCORERS
from striate.stages.analyze import analyze

if TYPE_CHECKING:
    from collections.abc import Iterator

    from striate.models.io.load import Loaded

NAMES = tuple(one.name for one in SCORERS if getattr(one, "source", "") in ("hidden states", "attention"))


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir / "train.json")


def close(a: Scores, b: Scores, tolerance: float = 1e-5) -> None:
    for one, other in zip(a.scorers, b.scorers, strict=True):
        assert one.scorer == other.scorer
        np.testing.assert_allclose(one.values, other.values, atol=tolerance)


def states_of(loaded: Loaded, sample: Sample) -> SampleStates:
    """Return the states of one unpadded sample in float64, read without hooks, and its attention maps."""
    processor, model = loaded.processor, loaded.model
    pictures = [Image.open(path).convert("RGB") for path in sample.images] or None
    text = processor.apply_chat_template(sample.chat())
    inputs = processor(images=pictures, text=[text], return_tensors="pt")
    inputs = {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True, output_attentions=True)
    states = torch.cat(output.hidden_states).numpy()
    ids = inputs["input_ids"][0]
    answer = Collator(processor, 512, train=True)([sample])["labels"][0] != -100
    return SampleStates(
        states[:-1],
        states[1:],
        (ids == model.config.image_token_index).numpy(),
        answer.numpy(),
        torch.cat(output.attentions).numpy(),
    )


def expected_scores(loaded: Loaded, samples: Sequence[Sample]) -> dict[str, dict[str, np.ndarray]]:
    """Return the definitions worked out in float64, one sample at a time."""
    model = loaded.model.double()
    model.set_attn_implementation("eager")
    model.model.language_model.norm = torch.nn.Identity()
    return formulas([states_of(loaded, sample) for sample in samples])


def test_scores_match_the_definitions_in_float64(tiny_llava: Loaded, samples: list[Sample]) -> None:
    scores = analyze(tiny_llava.model, tiny_llava.processor, samples, NAMES, batch_size=5)
    expected = expected_scores(tiny_llava, samples)
    assert (scores.num_layers, scores.samples) == (4, len(samples))
    for entry in scores.scorers:
        parts = expected[entry.scorer]
        np.testing.assert_allclose(entry.values, parts.pop("score"), rtol=1e-4)
        counted = {"modality-block-influence", "linear-cka", "matrix-entropy"}
        assert list(entry.parts) == [
            part for part in parts if entry.scorer in counted or part in SCORERS.get(entry.scorer).shown
        ]
        for part, values in entry.parts.items():
            np.testing.assert_allclose(values, parts[part], rtol=1e-4)
            bands = zip(entry.part_low[part], values, entry.part_high[part], strict=True)
            assert all(low < value < high for low, value, high in bands)
        assert entry.samples == len(samples)
        assert all(low < value < high for low, value, high in zip(entry.low, entry.values, entry.high, strict=True))
        assert entry.split_half is not None
        assert entry.peak is not None
    aware = scores.of("modality-block-influence")
    assert aware.tokens["image"] == 4 * sum(len(sample.images) for sample in samples)
    assert aware.tokens["prompt"] + aware.tokens["answer"] == aware.tokens["text"]
    assert scores.of("block-influence").tokens["all"] == aware.tokens["image"] + aware.tokens["text"]
    assert scores.of("angular-distance").tokens == {"last": len(samples)}


def test_batch_size_and_order_change_no_score(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    one = analyze(model, processor, samples, NAMES, batch_size=1)
    many = analyze(model, processor, samples, NAMES, batch_size=len(samples))
    turned = analyze(model, processor, samples[::-1], NAMES, batch_size=4)
    close(one, many)
    close(one, turned)
    np.testing.assert_allclose(one.scorers[0].low, turned.scorers[0].low, atol=1e-5)
    assert analyze(model, processor, samples, NAMES) == analyze(model, processor, samples, NAMES)


def test_padding_changes_no_score(tiny_llava: Loaded, samples: list[Sample]) -> None:
    long = Sample("long", (Message("user", "What is it? " * 30), Message("assistant", "red " * 20)))
    model, processor = tiny_llava.model, tiny_llava.processor
    apart = analyze(model, processor, [samples[0], long], NAMES, batch_size=1)
    padded = analyze(model, processor, [samples[0], long], NAMES, batch_size=2)
    close(apart, padded)


def test_a_layer_that_adds_nothing_scores_0(tiny_llava: Loaded, samples: list[Sample]) -> None:
    layer = decoder_layers(tiny_llava.model)[2]
    torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
    torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    names = [name for name in NAMES if name != "image-attention"]
    scores = analyze(tiny_llava.model, tiny_llava.processor, samples[:3], names)
    for entry in scores.scorers:
        assert entry.values[2] == 0
        assert min(entry.values[:2]) > 1e-3


def test_the_last_layer_is_read_before_the_final_norm(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    before = analyze(model, processor, samples[:2], NAMES)
    model.model.language_model.norm.weight.data.uniform_(-3, 3)
    assert analyze(model, processor, samples[:2], NAMES) == before


def hooks(model: torch.nn.Module) -> list[Any]:
    """Return all hooks but those that transformers itself leaves in a model when it runs."""
    found = [*(hook for module in model.modules() for hook in module._forward_hooks.values())]
    found += [hook for module in model.modules() for hook in module._forward_pre_hooks.values()]
    return [hook for hook in found if not getattr(hook, "__module__", "").startswith("transformers.")]


def test_the_model_is_left_as_it_was(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model = tiny_llava.model
    model.train()
    decoder_layers(model)[1].eval()
    modes = [module.training for module in model.modules()]
    grads = [parameter.requires_grad for parameter in model.parameters()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    analyze(model, tiny_llava.processor, samples[:3], NAMES)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == grads
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())
    assert hooks(model) == []


def test_the_model_is_left_as_it_was_after_an_exception(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model = tiny_llava.model
    model.train()

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = decoder_layers(model)[2].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        analyze(model, tiny_llava.processor, samples[:2])
    assert hooks(model) == [fail]
    handle.remove()
    assert all(module.training for module in model.modules())
    assert hooks(model) == []


def test_a_peft_model_scores_with_its_adapters(tiny_llava: Loaded, samples: list[Sample]) -> None:
    from peft import LoraConfig, get_peft_model

    model, processor = tiny_llava.model, tiny_llava.processor
    plain = analyze(model, processor, samples[:4], NAMES)
    names = [f"model.language_model.layers.{layer}.mlp.down_proj" for layer in (1, 3)]
    wrapped = get_peft_model(model, LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    adapted = analyze(wrapped, processor, samples[:4], NAMES)
    merged = analyze(wrapped.merge_and_unload(), processor, samples[:4], NAMES)
    close(adapted, merged)
    assert abs(adapted.scorers[0].values[1] - plain.scorers[0].values[1]) > 1e-4
    assert adapted.scorers[0].values[0] == pytest.approx(plain.scorers[0].values[0], abs=1e-6)


def test_text_only_samples_add_text_tokens_only(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    pictured = [sample for sample in samples if sample.images]
    plain = [sample for sample in samples if not sample.images]
    assert plain
    name = "modality-block-influence"
    without = analyze(model, processor, pictured, [name]).of(name)
    joined = analyze(model, processor, [*pictured, *plain], [name]).of(name)
    assert joined.tokens["image"] == without.tokens["image"] == 4 * len(pictured)
    assert joined.tokens["text"] > without.tokens["text"]
    np.testing.assert_allclose(joined.parts["image"], without.parts["image"], atol=1e-5)
    with pytest.raises(DataError, match="needs image tokens, and the calibration set has none"):
        analyze(model, processor, plain, [name])
    assert analyze(model, processor, plain).samples == len(plain)


class Bars:
    def __init__(self) -> None:
        self.seen: list[tuple[str, int, list[int]]] = []

    def track(self, label: str, total: int) -> AbstractContextManager[Any]:
        @contextmanager
        def bar() -> Iterator[Any]:
            steps: list[int] = []
            self.seen.append((label, total, steps))
            yield steps.append

        return bar()

    def say(self, text: str) -> None:
        raise AssertionError(text)


def test_progress_counts_samples(tiny_llava: Loaded, samples: list[Sample]) -> None:
    bars = Bars()
    analyze(tiny_llava.model, tiny_llava.processor, samples[:5], batch_size=2, progress=bars)
    assert bars.seen == [("analyze", 5, [2, 2, 1])]


def test_scorers_run_once_each_in_the_order_named(tiny_llava: Loaded, samples: list[Sample]) -> None:
    names = ["angular-distance", "block-influence", "angular-distance"]
    scores = analyze(tiny_llava.model, tiny_llava.processor, samples[:2], names)
    assert [entry.scorer for entry in scores.scorers] == names[:2]
    assert Scores.model_validate_json(scores.model_dump_json()) == scores


def test_what_a_person_gets_wrong_is_said_in_words(tiny_llava: Loaded, samples: list[Sample]) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    with pytest.raises(SpecError, match="unknown scorer 'block-influense'"):
        analyze(model, processor, samples, ["block-influense"])
    with pytest.raises(SpecError, match="no scorer was named"):
        analyze(model, processor, samples, [])
    with pytest.raises(DataError, match="the calibration set is empty"):
        analyze(model, processor, [])
    with pytest.raises(ConfigError, match="a batch of 0 samples"):
        analyze(model, processor, samples, batch_size=0)
    with pytest.raises(DataError, match="does not fit"):
        analyze(model, processor, [replace(samples[0], id="wide")], max_length=6)


def test_a_text_only_model_is_refused(samples: list[Sample], tiny_llava: Loaded) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    text = LlamaForCausalLM(
        LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2, vocab_size=400)
    )
    with pytest.raises(ModelError, match="text-only"):
        analyze(text, tiny_llava.processor, samples)


def test_overflow_in_half_precision_is_said(tiny_llava: Loaded, samples: list[Sample]) -> None:
    # Finite weights whose products are not: what a half-precision layer makes of large states.
    decoder_layers(tiny_llava.model)[1].mlp.down_proj.weight.data.fill_(3e38)
    with pytest.raises(ModelError, match="block-influence is not a number at layer 1, 2, 3"):
        analyze(tiny_llava.model, tiny_llava.processor, samples[:2])


def test_bfloat16_scores_are_close_to_float32_ones(tiny_llava: Loaded, samples: list[Sample]) -> None:
    exact = analyze(tiny_llava.model, tiny_llava.processor, samples[:4], NAMES)
    rough = analyze(tiny_llava.model.bfloat16(), tiny_llava.processor, samples[:4], NAMES)
    close(exact, rough, tolerance=0.02)
