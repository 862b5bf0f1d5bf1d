"""Batches: labels on answers only, padding, limits, and processors that expand placeholders in odd ways."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from striate.data.collate import Collator
from striate.data.label_mask import IGNORED, LabelMask
from striate.data.reading import read_samples
from striate.data.samples import Message, Sample
from striate.errors import DataError, ModelError

if TYPE_CHECKING:
    from striate.models.io.load import Loaded


@pytest.fixture
def samples(pack_dir: Path) -> list[Sample]:
    return read_samples(pack_dir)


def answers_of(processor: Any, batch: dict[str, torch.Tensor], row: int) -> str:
    labels = batch["labels"][row]
    return processor.tokenizer.decode(labels[labels != IGNORED])


def test_labels_are_the_answers_and_their_ends(tiny_llava: Loaded, samples: list[Sample]) -> None:
    batch = Collator(tiny_llava.processor, 64, train=True)([samples[0], samples[1], samples[-1]])
    assert answers_of(tiny_llava.processor, batch, 0) == "red<|im_end|>"
    assert answers_of(tiny_llava.processor, batch, 1) == "green<|im_end|>1<|im_end|>"
    assert answers_of(tiny_llava.processor, batch, 2) == "yes<|im_end|>"
    labelled = batch["labels"] != IGNORED
    assert torch.equal(batch["labels"][labelled], batch["input_ids"][labelled])
    assert batch["pixel_values"].shape[0] == 2


def test_padding_is_right_for_training_and_left_for_asking(tiny_llava: Loaded, samples: list[Sample]) -> None:
    collator = Collator(tiny_llava.processor, 64, train=True)
    training = collator([samples[1], samples[-1]])
    assert training["attention_mask"][1].tolist() == sorted(training["attention_mask"][1].tolist(), reverse=True)
    asking = collator.encode_prompts([samples[1], samples[-1]])
    assert asking["attention_mask"][1].tolist() == sorted(asking["attention_mask"][1].tolist())
    assert "labels" not in asking
    text = tiny_llava.processor.tokenizer.decode(asking["input_ids"][1], skip_special_tokens=False)
    assert text.endswith("Is ice cold?<|im_end|>\n<|im_start|>assistant\n")
    prompted = Collator(tiny_llava.processor, 64, train=False)([samples[1], samples[-1]])
    assert torch.equal(prompted["input_ids"], asking["input_ids"])


def test_padding_changes_no_logits(tiny_llava: Loaded, samples: list[Sample]) -> None:
    collator = Collator(tiny_llava.processor, 64, train=True)
    together, alone = collator([samples[0], samples[1], samples[-1]]), collator([samples[-1]])
    length = alone["input_ids"].shape[1]
    with torch.no_grad():
        many = tiny_llava.model(**together).logits[2, :length]
        one = tiny_llava.model(**alone).logits[0]
    torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-4)


def test_image_mask(tiny_llava: Loaded, samples: list[Sample]) -> None:
    collator = Collator(tiny_llava.processor, 64, train=True)
    mask = collator.image_mask(collator([samples[0], samples[-1]]))
    assert mask.dtype == torch.bool
    assert mask.sum(dim=1).tolist() == [4, 0]


def test_text_is_cut_but_never_a_picture(tiny_llava: Loaded, samples: list[Sample]) -> None:
    whole = Collator(tiny_llava.processor, 64, train=True)([samples[1]])
    first_answer = int((whole["labels"][0] != IGNORED).nonzero()[0])
    cut = Collator(tiny_llava.processor, first_answer + 1, train=True)([samples[1]])
    assert cut["input_ids"].shape[1] == first_answer + 1
    assert torch.equal(cut["labels"], whole["labels"][:, : first_answer + 1])
    for length in (first_answer, 5):
        with pytest.raises(DataError, match=r"'train-01' does not fit: \d+ tokens, 4 of them image tokens"):
            Collator(tiny_llava.processor, length, train=True)([samples[1]])
    with pytest.raises(DataError, match="does not fit"):
        Collator(tiny_llava.processor, 10, train=True).encode_prompts([samples[1]])


def test_pictures_in_later_turns(tiny_llava: Loaded, samples: list[Sample]) -> None:
    turns = (
        Message("user", "<image>\nFirst?"),
        Message("assistant", "red"),
        Message("user", "<image>\nAnd this?"),
        Message("assistant", "green"),
    )
    sample = Sample("two", turns, samples[0].images + samples[1].images)
    collator = Collator(tiny_llava.processor, 96, train=True)
    batch = collator([sample, samples[0]])
    assert answers_of(tiny_llava.processor, batch, 0) == "red<|im_end|>green<|im_end|>"
    assert collator.image_mask(batch).sum(dim=1).tolist() == [8, 4]


def test_prefixes_and_offsets_agree(tiny_llava: Loaded, samples: list[Sample], monkeypatch: pytest.MonkeyPatch) -> None:
    collator = Collator(tiny_llava.processor, 64, train=True)
    by_offsets = collator(samples)["labels"]
    monkeypatch.setattr(LabelMask, "_by_offsets", lambda *_: None)
    assert torch.equal(collator(samples)["labels"], by_offsets)


def test_a_template_without_end_of_turn_gets_one(tiny_llava: Loaded, samples: list[Sample]) -> None:
    tiny_llava.processor.chat_template = (
        "{% for m in messages %}{{ m['role'].upper() }}: {% for c in m['content'] %}"
        "{{ '<image>\n' if c['type'] == 'image' else c['text'] + ' ' }}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    batch = Collator(tiny_llava.processor, 96, train=True)([samples[1]])
    assert answers_of(tiny_llava.processor, batch, 0) == " green<|im_end|> 1<|im_end|>"


def test_a_generation_prompt_with_more_than_the_header(tiny_llava: Loaded, samples: list[Sample]) -> None:
    template = tiny_llava.processor.chat_template
    tiny_llava.processor.chat_template = template.replace(
        "assistant\n' }}{% endif %}", "assistant\n[think]' }}{% endif %}"
    )
    assert tiny_llava.processor.chat_template != template
    batch = Collator(tiny_llava.processor, 64, train=True)([samples[1]])
    assert answers_of(tiny_llava.processor, batch, 0) == "green<|im_end|>1<|im_end|>"


# As Qwen3 has it: an empty block before the last answer, and with THINKING in the generation prompt half of it.
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and (loop.last or ALL) %}<think>\n\n</think>\n\n{% endif %}"
    "{% for c in m['content'] %}{{ '<image>' if c['type'] == 'image' else c['text'] }}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\nTHINKING{% endif %}"
)


@pytest.mark.parametrize("answer", ["red", "in", "<think", "</think>", "<|im_end|> in", "\nthink\n"])
@pytest.mark.parametrize(
    ("every", "thinking"), [("true", ""), ("false", ""), ("true", "<think>\n"), ("false", "<think>")]
)
def test_what_a_template_writes_before_an_answer_is_learned_and_never_taken_for_it(
    tiny_llava: Loaded, answer: str, every: str, thinking: str
) -> None:
    tiny_llava.processor.chat_template = THINKS.replace("ALL", every).replace("THINKING", thinking)
    turns = (Message("user", "a"), Message("assistant", answer), Message("user", "b"), Message("assistant", answer))
    processor, sample = tiny_llava.processor, Sample("s", turns)
    block = "<think>\n\n</think>\n\n".removeprefix(thinking)
    first = block if every == "true" else ""
    tokens = Collator(processor, 999, train=True)([sample])["labels"]
    learned = processor.tokenizer.decode(tokens[tokens != IGNORED])
    assert learned == f"{first}{answer}<|im_end|>{block}{answer}<|im_end|>"


def test_a_template_that_changes_answers_is_refused(tiny_llava: Loaded, samples: list[Sample]) -> None:
    tiny_llava.processor.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(DataError, match="chat template changes or drops the answer 'yes'"):
        Collator(tiny_llava.processor, 64, train=True)([samples[-1]])


def test_no_template_is_refused(tiny_llava: Loaded) -> None:
    tiny_llava.processor.chat_template = None
    with pytest.raises(ModelError, match="LlavaProcessor has no chat template"):
        Collator(tiny_llava.processor, 64, train=True)


def test_pictures_and_placeholders_must_agree(tiny_llava: Loaded, samples: list[Sample]) -> None:
    stray = replace(samples[0], images=samples[0].images * 2)
    with pytest.raises(DataError, match="sample 'train-00' has 1 <image> placeholders and 2 pictures"):
        Collator(tiny_llava.processor, 64, train=True)([stray])


def test_a_refusing_processor_names_the_sample(
    tiny_llava: Loaded, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("a stray image token")

    monkeypatch.setattr(type(tiny_llava.processor), "__call__", refuse)
    with pytest.raises(DataError, match="sample 'train-00': LlavaProcessor refuses it: a stray image token"):
        Collator(tiny_llava.processor, 64, train=True)([samples[0]])


def test_a_damaged_picture_names_the_sample(tiny_llava: Loaded, samples: list[Sample]) -> None:
    samples[0].images[0].write_bytes(b"rubbish")
    with pytest.raises(DataError, match="sample 'train-00': can't read picture"):
        Collator(tiny_llava.processor, 64, train=True)([samples[0]])


def test_pictures_of_different_tile_counts_are_padded(tiny_llava: Loaded) -> None:
    from striate.data.collate import _cat_padded

    one, three = torch.ones(1, 1, 3, 2, 2), torch.ones(1, 3, 3, 2, 2)
    joined = _cat_padded([one, three])
    assert joined.shape == (2, 3, 3, 2, 2)
    assert joined[0, 1:].sum() == 0
    assert torch.equal(joined[1], three[0])
