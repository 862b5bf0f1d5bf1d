"""The rule of region-only visual compute as a checkpoint tells it, and through the removal of layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from striate.artifacts import Region, read_document
from striate.models.io.save import renumbered
from striate.models.structure.decoder_stack import decoder_config
from striate.models.visual_token_skipping.rule import ImageSkip, rule_of
from striate.models.visual_token_skipping.shift import carried, read_shift


def follow_region(model: nn.Module, file: Path) -> None:
    """Install the rule on `model` if the region in `file` asks for it; without such a file nothing happens.

    Raises:
        ArtifactError: the file is not a region.
        ModelError: the rule can't hold for this model, or the steps of its image tokens can't be read.
    """
    region = read_document(file, Region) if file.is_file() else None
    if region is not None and region.image_tokens == "region":
        width = decoder_config(model).hidden_size
        ImageSkip(model, region, read_shift(file.parent, region, width) if region.image_shift else None)


@contextmanager
def moved_rule(model: nn.Module, old_to_new: Mapping[int, int]) -> Iterator[None]:
    """Take a rule off while layers are removed, and put it on again in the new numbers of the layers."""
    rule = rule_of(model)
    if rule is None:
        yield
        return
    rule.remove()
    try:
        yield
    except BaseException:
        ImageSkip(model, rule.region, rule.shift)
        raise
    left = tuple(layer for layer in rule.region.layers if layer in old_to_new)
    moved = renumbered(rule.region.model_copy(update={"layers": left}), old_to_new)
    ImageSkip(model, moved, carried(rule.shift, old_to_new))
