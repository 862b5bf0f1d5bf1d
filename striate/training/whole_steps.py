"""Steps in which all layers compute image tokens, where these skip some otherwise (`train.image_whole_every`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from striate.models.visual_token_skipping.rule import skipping_of

COMPUTED = "image_tokens"
"""The key under which `train_log.jsonl` says where a step computed image tokens: `all` layers, or those of the rule."""


class WholeSteps:
    """Lets every n-th step of a training compute image tokens in all layers, without the constant steps."""

    def __init__(self, model: nn.Module, every: int) -> None:
        """Take a model on which visual token skipping is on, and n."""
        self._model, self._every = model, every

    def is_whole(self, step: int) -> bool:
        """Return whether all layers compute image tokens in `step`, counted from 1; that follows from it alone."""
        return step % self._every == 0

    def enter(self, step: int) -> bool:
        """Let the model compute as `step` does, and return whether it did otherwise before."""
        return self._set(self.is_whole(step))

    def leave(self) -> bool:
        """Let the model follow its rule, and return whether it did otherwise before."""
        return self._set(False)

    def noted(self, step: int) -> dict[str, str]:
        """Return what the log tells of a step."""
        return {COMPUTED: "all" if self.is_whole(step) else "region"}

    def _set(self, whole: bool) -> bool:
        rule = skipping_of(self._model)
        assert rule is not None
        before, rule.whole = rule.whole, whole
        return before != whole


def computing_whole(model: nn.Module) -> AbstractContextManager[None]:
    """Return a context in which all layers compute image tokens, whether the model has a rule or not."""
    rule = skipping_of(model)
    return rule.suspended() if rule is not None else nullcontext()


def whole_steps(rows: Sequence[Mapping[str, Any]]) -> int:
    """Return in how many steps all layers computed image tokens, of a training whose log lines are `rows`."""
    return sum(row.get(COMPUTED) == "all" for row in rows)
