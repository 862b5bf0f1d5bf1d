"""Special tokens written in data are text: they end no turn, open none, and stand for no picture."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from striate.data.chat_template.special_text import SpecialText, special_words
from striate.data.collate import Collator
from striate.data.label_mask import IGNORED
from striate.data.samples import Message, Sample
from striate.errors import DataError
from striate.tasks.inference.text_tokens import encode

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

WORDS = ("<|im_end|>", "<|im_start|>", "<pad>", "<|endoftext|>")
HARMLESS = "%%%"


def conversation(question: str, answer: str, image: Path | None = None) -> Sample:
    pictures = (image,) if image else ()
    asked = f"{'<image>' if image else ''}\n{question}"
    return Sample("s7", (Message("user", asked), Message("assistant", answer)), pictures)


def control_ids(processor: Any, ids: torch.Tensor) -> list[int]:
    special = set(processor.tokenizer.convert_tokens_to_ids([*special_words(processor), "<image>"]))
    return [token for token in ids[0].tolist() if token in special]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("picture", [False, True])
def test_training_reads_them_as_text(tiny_llava: Loaded, pack_dir: Path, word: str, picture: bool) -> None:
    image = next((pack_dir / "images").glob("*.png")) if picture else None
    collator = Collator(tiny_llava.processor, 512, train=True)
    batch = collator([conversation(f"What does {word} mean?", f"It is {word}, {word}.", image)])
    plain = collator([conversation(f"What does {HARMLESS} mean?", f"It is {HARMLESS}, {HARMLESS}.", image)])
    assert control_ids(tiny_llava.processor, batch["input_ids"]) == control_ids(
        tiny_llava.processor, plain["input_ids"]
    )
    tokenizer = tiny_llava.processor.tokenizer
    assert tokenizer.decode(batch["input_ids"][0]) == tokenizer.decode(plain["input_ids"][0]).replace(HARMLESS, word)
    labels = batch["labels"][0]
    assert tokenizer.decode(labels[labels != IGNORED]) == f"It is {word}, {word}.<|im_end|>"
    assert torch.equal(labels[labels != IGNORED], batch["input_ids"][0][labels != IGNORED])
    for name in ("attention_mask", "labels"):
        assert batch[name].shape == batch["input_ids"].shape
    with torch.no_grad():
        assert torch.isfinite(tiny_llava.model(**batch).loss)


@pytest.mark.parametrize("word", WORDS)
def test_prompts_and_plain_texts_read_them_as_text(tiny_llava: Loaded, word: str) -> None:
    tokenizer = tiny_llava.processor.tokenizer
    sample = Sample("s7", (Message("user", f"{word} A turn\n{word}"),))
    ids = Collator(tiny_llava.processor, 512, train=False)([sample])["input_ids"]
    assert f"{word} A turn\n{word}<|im_end|>" in tokenizer.decode(ids[0])
    assert len(control_ids(tiny_llava.processor, ids)) == 3
    scored = encode(tokenizer, f"The text {word} goes on", 8)
    assert not control_ids(tiny_llava.processor, torch.tensor([scored.tokens]))
    assert tokenizer.decode(scored.tokens[scored.start :]) == f" {word} goes on"


def test_samples_without_any_stay_as_they_are(tiny_llava: Loaded) -> None:
    marks = SpecialText(tiny_llava.processor)
    sample = conversation("What is it?", "A square.")
    assert marks.marked(sample) is sample
    assert marks.encoder("What is it?") is None
    assert "_copy" not in vars(marks)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    st.lists(st.sampled_from([*WORDS, "\U000f5700", "\U000f5701", "é", "a", " ", "\n", "<|im_", "end|>"]), min_size=1)
)
def test_any_mixture_is_decoded_to_itself(tiny_llava: Loaded, parts: list[str]) -> None:
    answer = f"x{''.join(parts)}x"
    batch = Collator(tiny_llava.processor, 4096, train=True)([conversation("Say it.", answer)])
    labels = batch["labels"][0]
    assert tiny_llava.processor.tokenizer.decode(labels[labels != IGNORED]) == f"{answer}<|im_end|>"
    assert len(control_ids(tiny_llava.processor, batch["input_ids"])) == 4


def unigram() -> PreTrainedTokenizerFast:
    """Return a tokenizer with spaces as `▁`, whose vocabulary of text holds `</s>` too."""
    inner = Tokenizer(models.Unigram())
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    specials = ["<unk>", "</s>", "<image>"]
    alphabet = list("</s>|%,.?abcdefghijklmnopqrstuvwxyzIW:_\n")
    trainer = trainers.UnigramTrainer(
        vocab_size=80, special_tokens=specials, unk_token="<unk>", initial_alphabet=alphabet
    )
    inner.train_from_iterator(["What does it mean? It is so, user assistant: yes."] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", eos_token="</s>", pad_token="</s>", extra_special_tokens=["<image>"]
    )


def test_a_vocabulary_of_text_that_holds_the_special_token(tiny_llava: Loaded) -> None:
    processor = type(tiny_llava.processor)(
        image_processor=tiny_llava.processor.image_processor,
        tokenizer=unigram(),
        patch_size=14,
        chat_template="{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}",
    )
    batch = Collator(processor, 512, train=True)([conversation("What does </s> mean?", "It is </s>, so.")])
    assert control_ids(processor, batch["input_ids"]) == [processor.tokenizer.eos_token_id] * 2
    labels = batch["labels"][0]
    assert processor.tokenizer.decode(labels[labels != IGNORED]).replace(" ", "") == "Itis</s>,so.</s>"


def test_a_tokenizer_that_has_no_other_way_is_refused_by_sample(
    tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object, *args: object, **more: object) -> None:
        raise NotImplementedError("this tokenizer takes no new tokens")

    monkeypatch.setattr(type(tiny_llava.processor.tokenizer), "add_tokens", refuse)
    collator = Collator(tiny_llava.processor, 512, train=True)
    with pytest.raises(DataError, match=r"sample 's7' holds a special token of the model, '<\|im_end\|>', which can't"):
        collator([conversation("What?", "a <|im_end|> b")])
    collator([conversation("What?", "a b")])


def test_a_processor_that_drops_the_marks_is_refused_by_sample(tiny_llava: Loaded) -> None:
    marks = SpecialText(tiny_llava.processor)
    sample = marks.marked(conversation("What?", "a <|im_end|> b"))
    text = sample.messages[1].text
    encoded = Collator(tiny_llava.processor, 512, train=True).encode_each([replace(sample, id="other")])[0]
    with pytest.raises(DataError, match="sample 's7' holds a special token"):
        marks.restored("s7", text, encoded)
