"""What two sessions of one training must share, so that the second may go on from the first one's checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from striate.artifacts import Region
from striate.config import TrainSection
from striate.data.mixing import SampleSources
from striate.data.pictures import picture_digest
from striate.data.samples import Sample
from striate.data.sources.stored_pictures import Picture
from striate.data.store.sample_columns import pictures_shown
from striate.data.store.sample_rows import SampleRows
from striate.data.store.stored_samples import StoredSamples
from striate.errors import ArtifactError
from striate.training.batching.order import SeededOrder
from striate.training.distributed.sharding import sharding
from striate.training.image_layers import layers_beside, visual_compute

# How often a checkpoint is written does not change what is learned.
_FREE_SETTINGS = {"save_steps"}
# What is compared by its own rule.
_MAX_LENGTH, _DATA, _WEIGHTS = "train.max_length", "data", "weights"


@dataclass(frozen=True)
class Progressed:
    """How far a training had come at one of its checkpoints.

    Attributes:
        step: how many steps are done.
        facts: `Identity.facts` of its training.
        samples: `Identity.samples` of it; None in checkpoints of earlier versions.
        longest: tokens of the longest sample that it learned from; None where that is not known.
        skipped: names of broken samples that were left out.
    """

    step: int
    facts: Mapping[str, Any]
    samples: Sequence[str] | None
    longest: int | None
    skipped: frozenset[str]


@dataclass(frozen=True)
class Identity:
    """What a training follows from.

    Attributes:
        facts: settings, region, seed and model, by name.
        samples: a digest of each sample, what its pictures' files hold included.
        order: the samples, as steps learn from them.
        measured: whether what steps compute was measured on samples from everywhere before the first one.
        sources: where the samples come from, if several share ids.
    """

    facts: dict[str, Any]
    samples: list[str]
    order: SeededOrder
    measured: bool = False
    sources: SampleSources | None = None

    def differences(self, done: Progressed) -> list[str]:
        """Return in words what keeps this training from going on where another one had come to.

        It may, if all that was learned would be learned again in the same way: a sample that comes later may differ,
        and so may a limit on length that no sample has reached.
        """
        facts = json.loads(json.dumps(self.facts))
        own_rule = {_MAX_LENGTH, _DATA, "samples"} | ({_WEIGHTS} if _WEIGHTS not in done.facts else set())
        # Settings of today's that stand at their defaults are left out of the facts.
        keys = [*facts, *(key for key in done.facts if key.startswith(("train.", "data.")) and key not in facts)]
        changed = [key for key in keys if key not in own_rule and done.facts.get(key) != facts.get(key)]
        if not self._same_length(done):
            changed.append(_MAX_LENGTH)
        return [*changed, *self._changed_data(done)]

    def later_changes(self, done: Progressed) -> int:
        """Return how many samples changed that the other training had not come to."""
        return sum(one != other for one, other in zip(self.samples, done.samples or self.samples, strict=True))

    def _same_length(self, done: Progressed) -> bool:
        before, now = done.facts.get(_MAX_LENGTH), self.facts[_MAX_LENGTH]
        # A sample of all the tokens that are allowed may have been cut.
        return bool(before == now or (before and done.longest is not None and done.longest < min(before, now + 1)))

    def _changed_data(self, done: Progressed) -> Iterator[str]:
        if done.facts.get("samples") != len(self.samples):
            yield f"data (of {done.facts.get('samples')} samples, now {len(self.samples)})"
        elif done.samples is None:
            if done.facts.get(_DATA) != self.facts[_DATA]:
                yield _DATA
        else:
            learned = range(len(self.samples)) if self.measured else self.order.learned(done.step)
            for index in learned:
                sample = self.order.samples[index]
                name = self.sources.name_of(index, sample.id) if self.sources else sample.id
                skipped = name in done.skipped and not self.measured
                if done.samples[index] != self.samples[index] and not skipped:
                    yield f"data (sample {name!r}, which a step has learned from)"
                    return


def identity(
    region: Region,
    config: TrainSection,
    samples: Sequence[Sample],
    seed: int,
    base_path: str,
    base_weights: str = "",
    *,
    held_out: Sequence[Sample] = (),
    sources: SampleSources | None = None,
) -> Identity:
    """Return what two sessions of one training must share; `base_weights` is a fingerprint of model and processor."""
    settings = {f"train.{key}": value for key, value in config.noted().items() if key not in _FREE_SETTINGS}
    if held_out:
        settings["data.validate"] = hashlib.sha256("".join(_sample_digests(held_out)).encode()).hexdigest()
    facts = {
        **settings,
        "region": list(region.layers),
        **layers_beside(region, config),
        "num_layers": region.num_layers,
        "samples": len(samples),
        _DATA: _data_digest(samples),
        "seed": seed,
        "model": base_path,
        _WEIGHTS: base_weights,
        "sharding": sharding(),
    }
    measured = config.image_shift and visual_compute(region, config) is not None
    return Identity(facts, _sample_digests(samples), SeededOrder(samples, seed, config.batch_size), measured, sources)


def _data_digest(samples: Sequence[Sample]) -> str:
    """Return a digest of all samples, of pictures their names."""
    digest = hashlib.sha256()
    if isinstance(samples, SampleRows | StoredSamples):
        for index, images in enumerate(pictures_shown(samples)):
            digest.update(samples.digest(index) + repr([image.name for image in images]).encode())
        return digest.hexdigest()
    for sample in samples:
        digest.update(repr((sample.id, sample.messages, [path.name for path in sample.images])).encode())
    return digest.hexdigest()


def _sample_digests(samples: Sequence[Sample]) -> list[str]:
    """Return a digest of each sample: of its text and of what its pictures' files hold."""
    paths = list(dict.fromkeys(path for images in pictures_shown(samples) for path in images))
    with ThreadPoolExecutor() as pool:
        pictures = dict(zip(paths, pool.map(_content, paths), strict=True))
    if isinstance(samples, SampleRows | StoredSamples):
        shown = enumerate(pictures_shown(samples))
        made_of = (samples.digest(row) + "".join(pictures[one] for one in images).encode() for row, images in shown)
        return [hashlib.sha256(parts).hexdigest()[:16] for parts in made_of]
    texts = ((sample.id, sample.messages, [pictures[path] for path in sample.images]) for sample in samples)
    return [hashlib.sha256(repr(parts).encode(errors="surrogatepass")).hexdigest()[:16] for parts in texts]


def _content(picture: Picture) -> str:
    """Return a digest of a picture's file; one that can't be read has none, and is refused where it is learned from."""
    try:
        return picture_digest(picture)
    except ArtifactError:
        return ""
