"""Writes a tokenizer into a GGUF file."""

from __future__ import annotations

import json
import re
from typing import Any

import gguf

from striate.errors import ModelError

# How llama.cpp calls the ways of cutting text before byte pairs are merged.
PRETOKENIZERS = ("gpt-2", "smollm", "llama-bpe", "qwen2")


def write_vocabulary(writer: gguf.GGUFWriter, processor: Any, size: int) -> None:
    """Write the processor's tokenizer: tokens, merges or scores, special tokens.

    Two kinds are known: byte-level BPE, and the SentencePiece BPE of Llama 2 and Vicuna (characters with bytes to fall
    back on). Ids that the embeddings have and the tokenizer has not become unused tokens.

    Raises:
        ModelError: a tokenizer of another kind, or one with more tokens than the model has embeddings.
    """
    tokenizer = processor.tokenizer
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    tokens, kinds = _tokens(tokenizer, described, size)
    if described["model"]["type"] == "BPE" and described["model"].get("byte_fallback"):
        _write_sentencepiece(writer, tokens, kinds, described)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(_pretokenizer(described))
        merges = described["model"]["merges"]
        writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for name in ("bos", "eos", "pad", "unk"):
        token = getattr(tokenizer, f"{name}_token_id")
        if token is not None:
            getattr(writer, f"add_{name}_token_id")(token)
    first = tokenizer("a")["input_ids"][0]
    writer.add_add_bos_token(tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id)


def _write_sentencepiece(
    writer: gguf.GGUFWriter, tokens: list[str], kinds: list[gguf.TokenType], described: dict[str, Any]
) -> None:
    """Write what llama.cpp needs for SentencePiece BPE: it joins the pair whose token has the highest score.

    A token's score is minus the place of the merge that makes it, so pairs join in the tokenizer's own order.
    """
    places: dict[str, int] = {}
    for place, merge in enumerate(described["model"]["merges"]):
        first, second = merge.split(" ") if isinstance(merge, str) else merge
        places.setdefault(first + second, place)
    for index, token in enumerate(tokens):
        if kinds[index] == gguf.TokenType.NORMAL and re.fullmatch("<0x[0-9A-F]{2}>", token):
            kinds[index] = gguf.TokenType.BYTE
        elif token == described["model"].get("unk_token"):
            kinds[index] = gguf.TokenType.UNKNOWN
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([-float(places.get(token, len(places))) for token in tokens])
    steps = json.dumps([described.get("normalizer"), described.get("pre_tokenizer")])
    writer.add_add_space_prefix(
        '"Prepend"' in steps or ('"prepend_scheme": "never"' not in steps and "Metaspace" in steps)
    )


def _tokens(tokenizer: Any, described: dict[str, Any], size: int) -> tuple[list[str], list[gguf.TokenType]]:
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    if max(known) >= size:
        raise ModelError(
            f"the tokenizer has {max(known) + 1} tokens, the model {size} embeddings",
            "a tokenizer and weights of one model",
            "resize the embeddings, or use the model's own tokenizer",
        )
    added = {entry["id"]: entry["special"] for entry in described["added_tokens"]}
    tokens, kinds = [], []
    for index in range(size):
        tokens.append(known.get(index, f"[PAD{index}]"))
        if index not in known:
            kinds.append(gguf.TokenType.UNUSED)
        elif index in added:
            kinds.append(gguf.TokenType.CONTROL if added[index] else gguf.TokenType.USER_DEFINED)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    return tokens, kinds


def _pretokenizer(described: dict[str, Any]) -> str:
    """Return llama.cpp's name for how text is cut, from the steps that the tokenizer describes."""
    step = described.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", [step])
    kinds = [part.get("type") for part in steps]
    if described["model"]["type"] == "BPE" and kinds[-1:] == ["ByteLevel"]:
        by_words = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and by_words:
            return "gpt-2"
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and by_words:
            return "smollm"
        pattern = steps[0].get("pattern", {}).get("Regex", "") if kinds == ["Split", "ByteLevel"] else ""
        # Others that treat digits alike, such as Tekken, cut between small and capital letters or at accents.
        plain = not any(kind in pattern for kind in (r"\p{Lu}", r"\p{M}"))
        if plain and r"\p{N}{1,3}" in pattern:
            return "llama-bpe"
        if plain and r"|\p{N}|" in pattern:
            return "qwen2"
    raise ModelError(
        f"a tokenizer of the kind {described['model']['type']} with steps {kinds} is not written as GGUF",
        "SentencePiece BPE with bytes, or byte-level BPE cut like " + ", ".join(PRETOKENIZERS),
        "save the language part as a plain language model and use llama.cpp's own converter",
    )
