"""Prefix sharing: prompts with the same image prefix share one prefill, or at least the picture's features."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from striate.data.collate import Collator
from striate.models.interventions.image_feature_cache import ImageFeatureCache
from striate.models.interventions.prefix_cache import why_not_continued, why_not_selected
from striate.tasks.inference.greedy_decode import Rows, prefill_shared, prefill_whole, shared_equals_whole
from striate.tasks.inference.prompt_windows import Prefix, Prompt
from striate.tasks.inference.run_state import AskCounts

SHARED = "prompts that begin with the same picture share that start"
KEPT = "features of pictures are kept; starts of prompts are not shared: {}"


class SharedPrefixes:
    """Prefills prompts with shared prefixes where a model allows it, proved on its own first batch."""

    def __init__(
        self, model: Any, collator: Collator, counts: AskCounts, feature_cache: ImageFeatureCache | None
    ) -> None:
        """Keep what a prefill needs; nothing is decided before the first batch."""
        self._feature_cache = feature_cache
        self._model = model
        self._collator = collator
        self._counts = counts
        self._why_not: str | None = None
        self._proved = False

    @property
    def shared(self) -> bool:
        """Whether prefixes are shared, as far as is known."""
        return not self._why_not

    def prefill(self, prompts: Sequence[Prompt]) -> Rows | None:
        """Return the rows of `prompts` after their prefill, or None where the model has to generate by itself.

        The first batch with two prompts of one prefix is read both ways, and both must agree.
        """
        if self._why_not is None:
            self._why_not = why_not_continued(self._model, prompts[0].encoded.tokens)
        if self._why_not:
            self._note(self._why_not)
            return None
        prefixes = {prompt.prefix for prompt in prompts}
        shares = len(prefixes) < len(prompts) and all(0 < prompt.prefix_length < len(prompt.ids) for prompt in prompts)
        if shares and not self._proved:
            self._prove(prompts)
            if self._why_not:
                self._note(self._why_not)
                return None
        rows = (prefill_shared if shares else prefill_whole)(self._model, self._collator, prompts)
        problem = why_not_selected(rows.cache)
        if problem:
            self._why_not = problem
            self._note(problem)
            return None
        self._count(prompts, list(prefixes) if shares else [prompt.prefix for prompt in prompts])
        if shares:
            self._counts.shared_tokens += sum(prompt.prefix_length for prompt in prompts)
            self._counts.shared_tokens -= sum(len(ids) for _, ids in prefixes)
        return rows

    @contextmanager
    def features_of(self, prompts: Sequence[Prompt]) -> Iterator[None]:
        """Let the model take the features of the prompts' pictures from memory while it generates by itself."""
        pictures = [path for prompt in prompts for path in prompt.prefix[0]]
        before = (self._feature_cache.encoded, self._feature_cache.reused) if self._feature_cache else (0, 0)
        if self._feature_cache:
            self._feature_cache.expect(pictures)
        yield
        if not pictures:
            return
        if self._feature_cache:
            self._feature_cache.settle()
        if self._feature_cache is None or self._feature_cache.why_not:
            why = self._feature_cache.why_not if self._feature_cache else "it has no get_image_features"
            self._counts.reuse = f"every picture is encoded for every question: {self._why_not}; {why}"
            self._counts.pictures_encoded += len(pictures)
            return
        self._counts.reuse = KEPT.format(self._why_not)
        self._counts.pictures_encoded += self._feature_cache.encoded - before[0]
        self._counts.pictures_reused += self._feature_cache.reused - before[1]

    def _note(self, reason: str) -> None:
        self._counts.reuse = f"starts of prompts are not shared: {reason}"

    def _prove(self, prompts: Sequence[Prompt]) -> None:
        """Compare both ways of reading on two prompts of one prefix and one of another, and note what came of it."""
        groups: dict[Any, list[Prompt]] = {}
        for prompt in prompts:
            groups.setdefault(prompt.prefix, []).append(prompt)
        pair = next(group for group in groups.values() if len(group) > 1)[:2]
        other = [group[0] for group in groups.values() if group[0] not in pair][:1]
        problem = why_not_selected(prefill_whole(self._model, self._collator, pair[:1]).cache)
        if not problem and not shared_equals_whole(self._model, self._collator, [*pair, *other]):
            problem = "a prompt that is read in two parts continues otherwise"
        self._why_not, self._proved = problem, True
        if not problem:
            self._counts.reuse = SHARED

    def _count(self, prompts: Sequence[Prompt], read: Sequence[Prefix]) -> None:
        encoded = sum(len(pictures) for pictures, _ in read)
        self._counts.pictures_encoded += encoded
        self._counts.pictures_reused += sum(len(prompt.prefix[0]) for prompt in prompts) - encoded
