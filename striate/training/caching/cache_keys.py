"""Names of what is cached: digests of the pictures, texts, weights and settings that it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import transformers
from torch import nn

from striate.data.pictures import read_picture
from striate.data.samples import Sample
from striate.data.sources.stored_pictures import Picture, StoredPicture
from striate.models.structure.anatomy import find_anatomy, unwrap

# Of a folder's layout: another number gives other names.
_LAYOUT = 3


def picture_keys(samples: Sequence[Sample]) -> dict[Sample, str]:
    """Return for each sample, once, a name for its pictures: of what their files hold; empty if it has none.

    Raises:
        DataError: a picture's file can't be read.
    """
    owners = {path: sample.id for sample in samples for path in sample.images}
    with ThreadPoolExecutor() as pool:
        digests = dict(zip(owners, pool.map(_content_digest, owners, owners.values()), strict=True))
    return {sample: _name([digests[path] for path in sample.images]) if sample.images else "" for sample in samples}


def features_key(model: nn.Module, processor: Any, keys: Mapping[Sample, str], half: torch.dtype | None) -> str:
    """Return a name for vision features: of the encoder's weights, the image processor's settings and the pictures."""
    core = unwrap(model)
    anatomy = find_anatomy(core)
    config = {key: value for key, value in core.config.to_dict().items() if "vision" in key}
    weights = hashlib.sha256()
    for name in anatomy.vision_names:
        for key, tensor in sorted(core.get_submodule(name).state_dict().items()):
            weights.update(f"{key} {tuple(tensor.shape)}".encode())
            weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    formats = [str(half), str(core.dtype)]
    pictures = sorted(set(keys.values()))
    return _name(anatomy.model_type, formats, config, weights.hexdigest(), _image_settings(processor), pictures)


def tokens_key(processor: Any, keys: Mapping[Sample, str], max_length: int) -> str:
    """Return a name for the samples as tokens: of their texts and pictures, and of all that the processor does."""
    tokenizer = getattr(processor.tokenizer, "backend_tokenizer", None)
    vocabulary = tokenizer.to_str() if tokenizer else sorted(processor.tokenizer.get_vocab().items())
    templates = [getattr(owner, "chat_template", None) for owner in (processor, processor.tokenizer)]
    settings = {key: value for key, value in vars(processor).items() if isinstance(value, str | int | float | bool)}
    made_by = [transformers.__version__, type(processor).__name__, max_length]
    texts = [repr((sample.id, sample.messages, key)) for sample, key in keys.items()]
    return _name(made_by, settings, _image_settings(processor), vocabulary, templates, texts)


def _name(*values: Any) -> str:
    return hashlib.sha256(json.dumps([_LAYOUT, *values], sort_keys=True, default=str).encode()).hexdigest()[:32]


def _content_digest(path: Picture, owner: str) -> str:
    if isinstance(path, StoredPicture):
        return path.digest
    return hashlib.sha256(read_picture(path, owner)).hexdigest()


def _image_settings(processor: Any) -> dict[str, Any]:
    image_processor = getattr(processor, "image_processor", None)
    return image_processor.to_dict() if image_processor is not None else {}
