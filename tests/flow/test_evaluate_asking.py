"""Asking a tiny LVLM: against plain loops, at every batch size, and without traces left behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from striate.data.collate import Collator
from striate.errors import DataError, ModelError
from striate.tasks.inference import likelihood
from striate.tasks.inference import token_batches as batches
from striate.tasks.inference.ask import ask
from striate.tasks.inference.generate import WORD_AND_SPACE, end_ids, word_replies
from striate.tasks.inference.prompts import chat_sample, joined, plain_context
from striate.tasks.inference.reply_journal import Journal
from striate.tasks.inference.run_state import AskState, Budget
from striate.tasks.inference.text_tokens import encode
from striate.tasks.inference.token_batches import run_in_batches
from striate.tasks.packs.items import Item, Reply
from striate.tasks.packs.reader import read_pack

if TYPE_CHECKING:
    from striate.models.io.load import Loaded

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "and", "reads", "the", "word", "STRIPE"]


def asked(*arguments: Any, **more: Any) -> list[Reply]:
    return ask(*arguments, **more).replies


def choose(name: str, length: int, *choices: str, **fields: Any) -> Item:
    context = " ".join(WORDS[:length])
    return Item(id=name, pack="p", task="t", metric="choice_logprob", context=context, choices=choices, **fields)


def read(name: str, text: str) -> Item:
    return Item(id=name, pack="p", task="t", metric="perplexity", text=text)


def word(name: str, context: str) -> Item:
    return Item(id=name, pack="p", task="t", metric="last_word", context=context, answers=("x",))


def question(name: str, text: str, image: Path | None = None) -> Item:
    return Item(id=name, pack="p", task="t", metric="exact", question=text, image=image, answers=("x",))


CHOICES = [
    choose("a", 3, "red", "a blue square", "1"),
    choose("b", 12, "yes", "no"),
    choose("c", 1, "over the moon", "over the sun"),
    Item(id="d", pack="p", task="t", metric="choice_logprob", question="Is it red?", choices=("yes", "no, it is not")),
    Item(id="e", pack="p", task="t", metric="choice_logprob", context="445+678=", choices=("1123", "9")),
]
TEXTS = [read("a", "A red square."), read("b", " ".join(WORDS * 4)), read("c", "Is ice cold?"), read("d", "no way")]


def log_probabilities(model: Any, tokens: Sequence[int]) -> np.ndarray:
    """Log-probability of each token but the first, by one plain forward pass, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([list(tokens)])).logits[0].double().numpy()
    logits -= logits.max(-1, keepdims=True)
    logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return logs[np.arange(len(tokens) - 1), list(tokens[1:])]


def greedy(model: Any, inputs: dict[str, Any], ends: list[int], limit: int) -> list[int]:
    """Greedy tokens by whole passes without a cache."""
    ids, found = inputs.pop("input_ids"), []
    while len(found) < limit:
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **inputs).logits
        token = int(logits[0, -1].argmax())
        if token in ends:
            break
        found.append(token)
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
    return found


def test_choices_equal_plain_forward_passes(tiny_llava: Loaded) -> None:
    tokenizer = tiny_llava.processor.tokenizer
    for item, reply in zip(CHOICES, asked(tiny_llava.model, tiny_llava.processor, CHOICES), strict=True):
        context = plain_context(item)
        start = len(tokenizer(context)["input_ids"])
        for choice, total, count in zip(item.choices, reply.logprobs, reply.tokens, strict=True):
            tokens = tokenizer(joined(context, choice))["input_ids"]
            assert count == len(tokens) - start
            assert total == pytest.approx(log_probabilities(tiny_llava.model, tokens)[start - 1 :].sum(), abs=1e-4)


def test_texts_equal_plain_forward_passes(tiny_llava: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    for at_once in (2048, 13, 1):
        monkeypatch.setattr(likelihood, "LOGITS_AT_ONCE", at_once)
        for item, reply in zip(TEXTS, asked(tiny_llava.model, tiny_llava.processor, TEXTS), strict=True):
            logs = log_probabilities(tiny_llava.model, tiny_llava.processor.tokenizer(item.text)["input_ids"])
            assert reply.tokens == (len(logs),)
            assert reply.logprobs[0] == pytest.approx(logs.sum(), abs=1e-3)


def test_a_text_longer_than_the_context_is_cut_into_pieces(tiny_llava: Loaded) -> None:
    tokenizer = tiny_llava.processor.tokenizer
    tokens = tokenizer(TEXTS[1].text)["input_ids"]
    tiny_llava.model.config.get_text_config().max_position_embeddings = 10
    logs = [log_probabilities(tiny_llava.model, tokens[begin : begin + 10]) for begin in range(0, len(tokens), 10)]
    done: list[int] = []
    reply = asked(tiny_llava.model, tiny_llava.processor, [TEXTS[1]], batch_size=2, advance=done.append)[0]
    assert reply.tokens == (sum(map(len, logs)),)
    assert reply.logprobs[0] == pytest.approx(sum(piece.sum() for piece in logs), abs=1e-3)
    assert sum(done) == 1


def test_generated_answers_equal_a_plain_greedy_loop(tiny_llava: Loaded, pack_dir: Path) -> None:
    items = read_pack(pack_dir, limit=6).items
    model, processor = tiny_llava.model, tiny_llava.processor
    collator = Collator(processor, 512, train=False)
    replies = asked(model, processor, items, max_new_tokens=6)
    assert len({reply.text for reply in replies}) > 1
    for item, reply in zip(items, replies, strict=True):
        inputs = collator.encode_prompts([chat_sample(item)])
        inputs.pop("attention_mask")
        tokens = greedy(model, inputs, end_ids(model, processor), 6)
        assert reply.text == processor.tokenizer.decode(tokens, skip_special_tokens=True)


def test_words_equal_a_plain_greedy_loop(tiny_llava: Loaded) -> None:
    items = [word("a", "The quick brown"), word("b", "Is the sky"), word("c", "squares and")]
    model, processor = tiny_llava.model, tiny_llava.processor
    for item, reply in zip(items, asked(model, processor, items), strict=True):
        ids = processor.tokenizer(item.context, return_tensors="pt")["input_ids"]
        whole = processor.tokenizer.decode(greedy(model, {"input_ids": ids}, end_ids(model, processor), 12))
        assert reply.text
        assert whole.startswith(reply.text)
        assert reply.text == whole or WORD_AND_SPACE.match(reply.text)


@pytest.mark.parametrize(("says", "text", "passes"), [(" the", " the the", 2), ("x", "x" * 12, 12)])
def test_a_word_ends_at_the_first_space_or_after_12_tokens(
    tiny_llava: Loaded, says: str, text: str, passes: int
) -> None:
    (token,) = tiny_llava.processor.tokenizer(says)["input_ids"]
    shapes = _always_say(tiny_llava.model, token)
    items = [word("a", "The quick"), word("b", "The lazy old")]
    with batches.asking_mode(tiny_llava.model):
        replies = word_replies(tiny_llava.model, tiny_llava.processor, items, AskState())
    assert [reply.text for reply in replies] == [text, text]
    assert len(shapes) == passes


def _always_say(model: Any, token: int) -> list[tuple[int, ...]]:
    """Make `token` the likeliest everywhere; the list collects the shape of all logits that are computed."""
    shapes: list[tuple[int, ...]] = []

    def force(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(logits.shape))
        logits = logits.clone()
        logits[..., token] = 1e4
        return logits

    model.lm_head.register_forward_hook(force)
    return shapes


def test_generation_stops_when_all_rows_have_ended_and_prefills_one_logit_a_row(
    tiny_llava: Loaded, pack_dir: Path
) -> None:
    items = read_pack(pack_dir).items[:16:4]
    shapes = _always_say(tiny_llava.model, tiny_llava.processor.tokenizer.convert_tokens_to_ids("<|im_end|>"))
    replies = asked(tiny_llava.model, tiny_llava.processor, items, max_new_tokens=30)
    assert [reply.text for reply in replies] == [""] * 4
    assert all(shape[1] == 1 for shape in shapes)
    assert sum(shape[0] for shape in shapes) == 4


def test_the_turn_ends_where_the_template_says_so(tiny_llava: Loaded) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    ids = {text: processor.tokenizer.convert_tokens_to_ids(text) for text in ("<|im_end|>", "<|endoftext|>")}
    assert end_ids(model, processor) == [ids["<|im_end|>"]]
    processor.tokenizer.eos_token = "<|endoftext|>"
    model.generation_config.eos_token_id = [ids["<|endoftext|>"]]
    assert end_ids(model, processor) == sorted(ids.values())


def test_choices_compute_only_the_logits_of_the_choices(tiny_llava: Loaded) -> None:
    shapes: list[int] = []
    tiny_llava.model.lm_head.register_forward_hook(lambda module, inputs, logits: shapes.append(logits.shape[1]))
    with batches.asking_mode(tiny_llava.model):
        items = [choose("b", 12, "yes", "no")]
        likelihood.choice_replies(tiny_llava.model, tiny_llava.processor.tokenizer, items, AskState())
    assert shapes[0] == 1
    assert sum(shapes) <= 4


@pytest.fixture
def mixed(pack_dir: Path) -> list[Item]:
    pictured = read_pack(pack_dir, limit=10).items
    plain = [question("q1", "Is ice cold?"), question("q2", "Which word is longest: fox, jumps or over?")]
    return [*CHOICES, *pictured, *TEXTS, *plain, word("w1", "The quick brown fox"), word("w2", "Is the")]


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_replies_do_not_depend_on_batch_size_or_order(tiny_llava: Loaded, mixed: list[Item], batch_size: int) -> None:
    model, processor = tiny_llava.model, tiny_llava.processor
    done: list[int] = []
    expected = asked(model, processor, mixed, max_new_tokens=8, batch_size=5, advance=done.append)
    assert sum(done) == len(mixed)
    order = np.random.default_rng(batch_size).permutation(len(mixed))
    found = asked(model, processor, [mixed[index] for index in order], max_new_tokens=8, batch_size=batch_size)
    for place, index in enumerate(order):
        assert found[place].text == expected[index].text
        assert found[place].tokens == expected[index].tokens
        assert found[place].logprobs == pytest.approx(expected[index].logprobs, abs=1e-3)


def test_sampling_settings_of_a_checkpoint_are_set_aside_and_put_back(tiny_llava: Loaded, pack_dir: Path) -> None:
    items = read_pack(pack_dir, limit=4).items
    plain = asked(tiny_llava.model, tiny_llava.processor, items, max_new_tokens=8)
    own = tiny_llava.model.generation_config
    own.do_sample, own.temperature, own.repetition_penalty, own.no_repeat_ngram_size = True, 5.0, 3.0, 1
    assert asked(tiny_llava.model, tiny_llava.processor, items, max_new_tokens=8) == plain
    assert tiny_llava.model.generation_config is own
    assert own.temperature == 5.0


def test_training_mode_comes_back_also_after_an_error(tiny_llava: Loaded, tmp_path: Path) -> None:
    model = tiny_llava.model
    model.train()
    model.model.vision_tower.eval()
    before = [module.training for module in model.modules()]
    asked(model, tiny_llava.processor, [TEXTS[0]])
    assert [module.training for module in model.modules()] == before
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="can't read picture"):
        asked(model, tiny_llava.processor, [question("q", "What?", tmp_path / "x.png")])
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("metric", ["exact", "choice_logprob", "last_word", "perplexity"])
@pytest.mark.parametrize("shared", [True, False])
def test_a_model_of_nan_has_no_answers(
    tiny_llava: Loaded, mixed: list[Item], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, metric: str, shared: bool
) -> None:
    if not shared:
        monkeypatch.setattr("striate.tasks.inference.prefix_sharing.SharedPrefixes.prefill", lambda *_: None)
    journal = Journal(tmp_path / "replies.jsonl", "key")
    with torch.no_grad():
        tiny_llava.model.get_output_embeddings().weight[0] = torch.nan
    items = [item for item in mixed if item.metric == metric]
    assert items
    with pytest.raises(ModelError, match="the model computes NaN or infinity in place of logits: it has no answers"):
        ask(tiny_llava.model, tiny_llava.processor, items, max_new_tokens=3, journal=journal)
    assert (tmp_path / "replies.jsonl").read_text().count("\n") == 1
    assert not tiny_llava.model._forward_hooks


def test_an_adapter_answers_through_its_wrapper(tiny_llava: Loaded, mixed: list[Item]) -> None:
    from peft import LoraConfig, get_peft_model

    plain = asked(tiny_llava.model, tiny_llava.processor, mixed, max_new_tokens=4)
    wrapped = get_peft_model(tiny_llava.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    adapted = asked(wrapped, tiny_llava.processor, mixed, max_new_tokens=4)
    merged = asked(wrapped.merge_and_unload(), tiny_llava.processor, mixed, max_new_tokens=4)
    assert adapted[0].logprobs != pytest.approx(plain[0].logprobs, abs=1e-3)
    for left, right in zip(adapted, merged, strict=True):
        assert left.text == right.text
        assert left.logprobs == pytest.approx(right.logprobs, abs=1e-3)


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (choose("long", 12, "yes", "no " * 800), "item 'long' needs"),
        (word("long", "word " * 300), "item 'long' needs"),
        (read("tiny", "a"), "item 'tiny': its text is too short"),
        (question("long", "what " * 300), "sample 'long' does not fit"),
    ],
)
def test_items_that_do_not_fit_are_named(tiny_llava: Loaded, item: Item, text: str) -> None:
    with pytest.raises(DataError) as caught:
        asked(tiny_llava.model, tiny_llava.processor, [item])
    assert text in str(caught.value)


def test_a_model_that_looks_ahead_has_no_likelihoods(tiny_llava: Loaded, pack_dir: Path) -> None:
    def look_ahead(module: Any, inputs: Any, logits: torch.Tensor) -> torch.Tensor:
        return logits + logits.mean(1, keepdim=True)

    tiny_llava.model.lm_head.register_forward_hook(look_ahead)
    for item in (CHOICES[0], TEXTS[0], word("w", "The quick")):
        with pytest.raises(ModelError) as caught:
            asked(tiny_llava.model, tiny_llava.processor, [item])
        assert "LlavaForConditionalGeneration looks ahead in plain text" in str(caught.value)
        assert "leave out the packs with choice_logprob, last_word and perplexity rows" in str(caught.value)
    assert asked(tiny_llava.model, tiny_llava.processor, read_pack(pack_dir, limit=1).items, max_new_tokens=2)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    with pytest.raises(ModelError, match="can't tell which characters a token covers"):
        encode(object(), "text", 0)


def test_the_first_token_is_scored_only_after_a_start_token(tiny_llava: Loaded) -> None:
    tokenizer = tiny_llava.processor.tokenizer

    class WithStart:
        is_fast = True

        def __call__(self, text: str, **options: Any) -> dict[str, Any]:
            encoded = tokenizer(text, **options)
            ids, spans = encoded["input_ids"], encoded["offset_mapping"]
            return {"input_ids": [1, *ids, 3], "offset_mapping": [(0, 0), *spans, (0, 0)]}

    plain = encode(tokenizer, "A red square.", 0)
    started = encode(WithStart(), "A red square.", 0)
    assert plain.start == started.start == 1
    assert started.tokens == (1, *plain.tokens)
    assert started.scored == len(plain.tokens)
    assert encode(tokenizer, "A red square.", 5).start == len(tokenizer("A red")["input_ids"])


def test_batches_sort_by_length_respect_rows_and_keep_order() -> None:
    seen: list[list[str]] = []

    def run(batch: list[str]) -> list[str]:
        seen.append(batch)
        return [text.upper() for text in batch]

    entries = ["a", "bbb", "cc", "dddd"]
    told: list[list[int]] = []
    found = run_in_batches(
        entries,
        run,
        length=len,
        rows=len,
        budget=Budget(rows=4, tokens=99),
        finished=lambda places, results: told.append(places),
    )
    assert found == ["A", "BBB", "CC", "DDDD"]
    assert seen == [["dddd"], ["bbb"], ["cc", "a"]]
    assert told == [[3], [1], [2, 0]]


def test_batches_keep_to_their_tokens_padding_included() -> None:
    sizes: list[int] = []

    def run(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        return batch

    options: dict[str, Any] = {"length": lambda n: n, "rows": lambda n: 1, "finished": lambda places, found: None}
    assert run_in_batches([9, 5, 5, 2, 2, 2], run, budget=Budget(rows=99, tokens=10), **options) == [9, 5, 5, 2, 2, 2]
    assert sizes == [1, 2, 3]


def test_a_batch_closes_when_a_quarter_of_it_would_be_padding() -> None:
    entries = [(40, 1, 40)] * 6 + [(20, 1, 20)] * 6
    assert Budget(rows=8, tokens=10**6).fitting(entries) == 8
    assert Budget(rows=16, tokens=10**6).fitting([(40, 1, 40)] * 4 + [(10, 1, 10)] * 12) == 6
    assert Budget(rows=64, tokens=10**6).fitting([(40, 1, 40)] * 4 + [(10, 1, 10)] * 12) == 16


def test_a_batch_that_does_not_fit_is_halved_and_the_size_that_fits_is_kept() -> None:
    sizes: list[int] = []

    def run(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("too large")
        return batch

    options: dict[str, Any] = {
        "length": lambda entry: 10,
        "rows": lambda entry: 1,
        "finished": lambda places, found: None,
    }
    budget = Budget(rows=8, tokens=1000)
    assert run_in_batches(list(range(9)), run, budget=budget, **options) == list(range(9))
    assert sizes == [8, 4, 2, 2, 2, 2, 1]
    assert (budget.out_of_memory, budget.largest, budget.tokens) == (2, 2, 20)

    def never(batch: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("too large")

    with pytest.raises(ModelError, match="too little memory to ask even one item at a time"):
        run_in_batches([1, 2], never, budget=Budget(rows=2, tokens=99), **options)


def test_no_items_no_replies(tiny_llava: Loaded) -> None:
    assert asked(tiny_llava.model, tiny_llava.processor, []) == []


def test_padding_on_either_side() -> None:
    ids, mask = batches.padded([[1, 2], [3]], 0, "left", torch.device("cpu"))
    assert (ids.tolist(), mask.tolist()) == ([[1, 2], [0, 3]], [[1, 1], [0, 1]])
    ids, mask = batches.padded([[1, 2], []], 9, "right", torch.device("cpu"))
    assert (ids.tolist(), mask.tolist()) == ([[1, 2], [9, 9]], [[1, 1], [0, 0]])
    assert Reply() == Reply(text="", logprobs=(), tokens=())
