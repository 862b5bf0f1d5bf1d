"""Names for what is computed once: of the weights, settings and files that it comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from striate.data.samples import Sample
from striate.models.structure.anatomy import find_anatomy, unwrap


def fingerprint_of_vision(model: nn.Module, processor: Any, samples: Sequence[Sample], half: torch.dtype | None) -> str:
    """Return a name for vision features: of the encoder's weights, the processor's settings and the pictures' files."""
    core = unwrap(model)
    anatomy = find_anatomy(core)
    digest = hashlib.sha256(f"{anatomy.model_type} {half} {core.dtype}".encode())
    for name in anatomy.vision_names:
        _add_tensors(digest, core.get_submodule(name).state_dict())
    vision = {key: value for key, value in core.config.to_dict().items() if "vision" in key}
    digest.update(json.dumps([vision, _picture_settings(processor)], sort_keys=True, default=str).encode())
    _add_files(digest, samples)
    return digest.hexdigest()[:16]


def fingerprint_of_tokens(processor: Any, samples: Sequence[Sample], max_length: int) -> str:
    """Return a name for the samples as tokens: of their texts and pictures, and of all that the processor does."""
    digest = hashlib.sha256(f"tokens {max_length} {transformers.__version__} {type(processor).__name__}".encode())
    tokenizer = getattr(processor.tokenizer, "backend_tokenizer", None)
    words = tokenizer.to_str() if tokenizer else sorted(processor.tokenizer.get_vocab().items())
    templates = [getattr(owner, "chat_template", None) for owner in (processor, processor.tokenizer)]
    simple = {key: value for key, value in vars(processor).items() if isinstance(value, (str, int, float, bool))}
    settings = [simple, _picture_settings(processor), words, templates]
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for sample in samples:
        digest.update(repr((sample.id, sample.messages, [path.name for path in sample.images])).encode())
    _add_files(digest, samples)
    return digest.hexdigest()[:16]


def _picture_settings(processor: Any) -> dict[str, Any]:
    """Return how the processor makes pixels of pictures."""
    pictures = getattr(processor, "image_processor", None)
    return pictures.to_dict() if pictures is not None else {}


def _add_tensors(digest: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add names, shapes and values."""
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def _add_files(digest: Any, samples: Iterable[Sample]) -> None:
    """Add names, sizes and times of the pictures' files."""
    for path in sorted({path for sample in samples for path in sample.images}):
        status = path.stat()
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
