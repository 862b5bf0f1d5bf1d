"""Converts an original checkpoint of LLaVA-1.5 or Bunny to an ordinary LLaVA checkpoint of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig

from striate.errors import ModelError
from striate.models.convert.add_image_token import Vocabulary, add_image_token
from striate.models.convert.legacy.configs import llava_config, on_meta, text_config
from striate.models.convert.legacy.layouts import Layout, layout_of, read_original
from striate.models.convert.legacy.legacy_sources import Tensors, folder_of, load_shard, shard_files
from striate.models.convert.legacy.lora import Adapter, read_adapter
from striate.models.convert.legacy.names import EMBEDDINGS, HEAD, TOWER, llava_name
from striate.models.convert.legacy.processors import build_processor, generation_config, read_tokenizer
from striate.models.convert.legacy.tower import Tower, find_tower
from striate.models.convert.legacy.write_checkpoint import ShardWriter
from striate.models.io.adapter_folder import base_of, is_adapter
from striate.models.io.quiet import quietly
from striate.models.io.weights.safetensors_shards import AGAIN, read_file
from striate.storage.atomic import new_folder

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True)
class Imported:
    """What was imported: the layout's title, parameters in all, and image tokens of one picture."""

    title: str
    parameters: int
    image_tokens: int


@dataclass(frozen=True)
class _Source:
    folder: Path
    weights: Path
    config: dict[str, Any]
    layout: Layout
    adapter: Adapter | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the result: the one that the config names, else float16, in which both authors load theirs."""
        named = str(self.config.get("torch_dtype") or self.config.get("dtype") or "float16").removeprefix("torch.")
        if named not in _DTYPES:
            raise ModelError(f"{self.folder} names the unknown dtype {named!r}", ", ".join(_DTYPES), AGAIN)
        return _DTYPES[named]


def import_checkpoint(
    source: str | Path, out: str | Path, *, vision: str | Path | None = None, base: str | Path | None = None
) -> Imported:
    """Return what was imported, after writing the original checkpoint `source` to `out` in transformers' LLaVA form.

    One shard is in memory at a time. The result has an `<image>` token, a processor that treats pictures as the
    original does, and the original's conversation as its chat template.

    Args:
        source: folder or hub id of LLaVA-1.5 or Bunny: a whole checkpoint, or LoRA with non_lora_trainables.bin.
        out: a new or empty folder.
        vision: folder or hub id of the vision tower, where it is not inside; by default the one that the config names.
        base: the language model under a LoRA checkpoint; by default the one that its adapter_config.json names.

    Raises:
        ModelError: no original checkpoint, an unknown layout or tower, or weights that are not whole.
        ArtifactError: `out` holds files already or can't be written.
    """
    with quietly(True):
        original = _read(source, base)
        files = shard_files(original.weights)
        names = {name for file in files for name in _stored_names(file)}
        if original.adapter:
            _check_adapter(original.adapter, names)
            names |= original.adapter.full.keys()
        inside = {named for name in names if (named := llava_name(name)) and named.startswith(TOWER)}
        tower = find_tower(original.config, inside, vision)
        tokenizer = read_tokenizer(text_config(original.config, original.layout), original.folder, original.weights)
        vocabulary = add_image_token(tokenizer, int(original.config["vocab_size"]), str(original.folder))
        processor = build_processor(tokenizer, tower, original.config, original.layout, str(original.folder))
        config = _config(original, tower, vocabulary)
        model = on_meta(config)
        with new_folder(Path(out)) as folder:
            writer = ShardWriter(folder, model, original.folder, original.dtype)
            for part in _parts(original, files, tower, vocabulary):
                writer.write(part())
            writer.finish()
            config.save_pretrained(folder)
            generation_config(original.folder, tokenizer, original.layout).save_pretrained(folder)
            processor.save_pretrained(folder)
    parameters = sum(tensor.numel() for tensor in model.parameters())
    return Imported(original.layout.title, parameters, tower.features.tokens(tower.config))


def _read(source: str | Path, base: str | Path | None) -> _Source:
    folder = folder_of(source, "original checkpoint")
    config = read_original(folder)
    layout = layout_of(config, folder)
    if not isinstance(config.get("vocab_size"), int):
        raise ModelError(f"{folder / 'config.json'} names no vocab_size", "the whole original config", AGAIN)
    if not is_adapter(folder):
        if base is not None:
            given = f"{folder} is a whole checkpoint: --base {base} has no effect"
            raise ModelError(given, "--base with LoRA checkpoints only", "leave --base out")
        return _Source(folder, folder, config, layout, None)
    adapter = read_adapter(folder)
    return _Source(folder, folder_of(base or base_of(folder), "base language model"), config, layout, adapter)


def _config(original: _Source, tower: Tower, vocabulary: Vocabulary) -> LlavaConfig:
    config = llava_config(original.config, original.layout, tower.config, tower.features)
    config.image_token_index, config.text_config.vocab_size = vocabulary.image_token_id, vocabulary.rows
    config.dtype, config.architectures = original.dtype, ["LlavaForConditionalGeneration"]
    return config


def _stored_names(file: Path) -> list[str]:
    """Return the names of the tensors in one weight file; of safetensors, only the header is read."""
    return list(read_file(file) if file.suffix == ".safetensors" else load_shard(file))


def _check_adapter(adapter: Adapter, names: set[str]) -> None:
    unmatched = sorted(set(adapter.pairs) - names)
    if unmatched:
        reason = f"{len(unmatched)} of its {len(adapter.pairs)} matrices are not in the base"
        raise adapter.other_model(f"{reason} (for example {unmatched[0]})")


def _parts(
    original: _Source, files: list[Path], tower: Tower, vocabulary: Vocabulary
) -> Iterator[Callable[[], Tensors]]:
    """Yield what makes each shard of the result: one a source shard, then what lies apart."""
    for file in files:
        # Nothing keeps a shard but its caller: the next is read after this one has gone.
        yield lambda file=file: _converted(original, load_shard(file), vocabulary)  # type: ignore[misc]
    adapter = original.adapter
    if adapter:
        yield lambda: _converted(original, adapter.full, vocabulary)
    if tower.tensors:
        yield lambda: tower.tensors


def _converted(original: _Source, shard: Mapping[str, torch.Tensor], vocabulary: Vocabulary) -> Tensors:
    """Return one shard's tensors in LLaVA's form: renamed, adapter merged in, rows added for the image token."""
    converted: Tensors = {}
    for name, tensor in shard.items():
        named = llava_name(name)
        if named is None:
            raise ModelError(
                f"{original.folder} holds {name}, which no layout of {original.layout.title} has",
                "language model, mm_projector of two linear layers, and vision tower",
                "use another checkpoint",
            )
        if not named or (original.adapter and shard is not original.adapter.full and name in original.adapter.full):
            continue
        merged = original.adapter.merged(name, tensor) if original.adapter else tensor
        if named in (EMBEDDINGS, HEAD):
            _check_rows(original, name, merged, vocabulary)
            merged = vocabulary.extended(merged)
        converted[named] = merged
    return converted


def _check_rows(original: _Source, name: str, matrix: torch.Tensor, vocabulary: Vocabulary) -> None:
    if matrix.shape[0] != vocabulary.rows_before:
        rows, expected = matrix.shape[0], vocabulary.rows_before
        given = f"{name} has {rows} rows, and the config of {original.folder} a vocab_size of {expected}"
        raise ModelError(given, "a config and weights of one model", AGAIN)
