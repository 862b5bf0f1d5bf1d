"""GGUF files for llama.cpp: the language model, and the vision encoder with its projector (`mmproj`)."""

from striate.models.convert.gguf.language_model import export_language_model, write_language_model
from striate.models.convert.gguf.vision_model import write_vision_model

__all__ = ["export_language_model", "write_language_model", "write_vision_model"]
