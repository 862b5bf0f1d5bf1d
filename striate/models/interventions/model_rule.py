"""A rule that changes what a model computes: installed on it, saved with it, and renumbered when it loses layers.

What saves, prunes or trains a model handles its rule by these functions, without knowing which rule it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from striate.models.structure.decoder_stack import unwrap

# Where a model keeps its rule.
_RULE = "_striate_rule"


class ModelRule(ABC):
    """A rule on one model: on when made, off after `remove`."""

    @abstractmethod
    def remove(self) -> None:
        """Take the rule off: the model computes as it was made to."""

    @abstractmethod
    def reinstall(self, old_to_new: Mapping[int, int] | None = None) -> None:
        """Put the rule on again after `remove`; with `old_to_new` in the numbers of a model that lost layers."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the rule to a checkpoint's folder, where loading finds it."""

    @abstractmethod
    def reading(
        self, ids_BT: Tensor, device: torch.device, lengths: Sequence[int] | None
    ) -> AbstractContextManager[None]:
        """Return a context in which the rule need not look at the batch on the device (see `reading_batch`)."""


def rule_of(model: nn.Module) -> ModelRule | None:
    """Return the rule that is on `model`, if there is one."""
    rule: ModelRule | None = vars(unwrap(model)).get(_RULE)
    return rule


def set_rule(model: nn.Module, rule: ModelRule | None) -> None:
    """Note that `rule` is on `model`, or that none is."""
    core = unwrap(model)
    vars(core).pop(_RULE, None)
    if rule is not None:
        vars(core)[_RULE] = rule


def save_rule(model: nn.Module, folder: Path) -> None:
    """Write the rule of `model` to `folder`; nothing where it has none."""
    if (rule := rule_of(model)) is not None:
        rule.save(folder)


@contextmanager
def renumbered_rule(model: nn.Module, old_to_new: Mapping[int, int]) -> Iterator[None]:
    """Take the rule off while layers are removed, and put it on again in the new layer numbers."""
    rule = rule_of(model)
    if rule is None:
        yield
        return
    rule.remove()
    try:
        yield
    except BaseException:
        rule.reinstall()
        raise
    rule.reinstall(old_to_new)


def reading_batch(
    model: nn.Module, ids_BT: Tensor, device: torch.device, lengths: Sequence[int] | None = None
) -> AbstractContextManager[None]:
    """Return a context, over forward and backward pass, in which the model's rule knows the batch: nothing waits.

    Args:
        model: with or without a rule.
        ids_BT: the batch's token ids, on the CPU.
        device: where the model runs.
        lengths: tokens of each sample of a packed row (1, T); None where every row is a sample.
    """
    rule = rule_of(model)
    return rule.reading(ids_BT, device, lengths) if rule is not None else nullcontext()
