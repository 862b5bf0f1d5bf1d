"""Every scorer of hidden states and attention as a plain float64 formula over one sample at a time, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Measure = Callable[[Array, Array], Any]
MOST_TOKENS = 64


@dataclass
class SampleStates:
    """One unpadded sample: inputs and outputs of each layer (L, T, D), and booleans (T,) of image and answer tokens.

    `attention` holds the maps (L, H, T, T) where they are wanted.
    """

    x: Array
    y: Array
    image: NDArray[np.bool_]
    answer: NDArray[np.bool_]
    attention: Array | None = None

    def kinds(self) -> dict[str, NDArray[np.bool_]]:
        text = ~self.image
        last = np.arange(len(text)) == len(text) - 1
        return {
            "all": np.ones_like(text),
            "image": self.image,
            "text": text,
            "prompt": text & ~self.answer,
            "answer": text & self.answer,
            "last": last,
        }


def scores(samples: list[SampleStates]) -> dict[str, dict[str, Array]]:
    """Return each scorer's parts (L,) and, under `score`, the score."""
    found = {
        "block-influence": _tokens(samples, _distance, ("all",), ("image", "prompt", "answer")),
        "modality-block-influence": _tokens(samples, _distance, ("image", "text"), ("prompt", "answer")),
        "angular-distance": _tokens(samples, _angle, ("last",)),
        "relative-magnitude": _tokens(samples, _ratio, ("all",), ("image", "text", "prompt", "answer")),
        "linear-cka": _per_sample(samples, _cka),
        "matrix-entropy": _per_sample(samples, _entropy),
    }
    if samples[0].attention is not None:
        found["image-attention"] = _attention(samples)
    return found


def _tokens(
    samples: list[SampleStates], measure: Measure, counted: tuple[str, ...], shown: tuple[str, ...] = ()
) -> dict[str, Array]:
    parts = {}
    for kind in (*counted, *shown):
        values = [measure(one.x, one.y)[:, one.kinds()[kind]] for one in samples]
        joined = np.concatenate(values, axis=1)
        if joined.shape[1]:
            parts[kind] = joined.mean(1)
    return {**parts, "score": np.mean([parts[kind] for kind in counted], axis=0)}


def _cosine(x: Array, y: Array) -> Array:
    a, b = np.sqrt((x * x).sum(-1)), np.sqrt((y * y).sum(-1))
    return (x * y).sum(-1) / np.where(a * b > 0, a * b, 1)


def _distance(x: Array, y: Array) -> Array:
    return np.where((x == y).all(-1), 0, 1 - _cosine(x, y))


def _angle(x: Array, y: Array) -> Array:
    return np.where((x == y).all(-1), 0, np.arccos(np.clip(_cosine(x, y), -1, 1)) / np.pi)


def _ratio(x: Array, y: Array) -> Array:
    length = np.sqrt((x * x).sum(-1))
    apart = np.sqrt(((y - x) ** 2).sum(-1))
    return np.where(length > 0, apart / np.where(length > 0, length, 1), (apart > 0).astype(float))


def _chosen(mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    places = np.flatnonzero(mask)
    if len(places) <= MOST_TOKENS:
        return places
    return places[[index * len(places) // MOST_TOKENS for index in range(MOST_TOKENS)]]


def _per_sample(samples: list[SampleStates], measure: Measure) -> dict[str, Array]:
    parts = {}
    for kind in ("image", "text"):
        rows = []
        for one in samples:
            places = _chosen(one.kinds()[kind])
            if len(places) >= 4:
                rows.append([measure(x[places], y[places]) for x, y in zip(one.x, one.y, strict=True)])
        parts[kind] = np.mean(rows, axis=0)
    return {**parts, "score": (parts["image"] + parts["text"]) / 2}


def hsic(k: Array, m: Array) -> float:
    """Return the unbiased HSIC of Song et al. 2012, equation 5, from two Gram matrices."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    trace = np.trace(k @ m)
    whole = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    mixed = 2 * (one @ k @ m @ one) / (n - 2)
    return float(trace + whole - mixed) / (n * (n - 3))


def _cka(x: Array, y: Array) -> float:
    if (x == y).all():
        return 0.0
    k, m = x @ x.T, y @ y.T
    return 1 - hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


def _entropy(x: Array, y: Array) -> float:
    def of(states: Array) -> float:
        eigenvalues = np.linalg.svd(states - states.mean(0), compute_uv=False) ** 2
        share = eigenvalues / eigenvalues.sum()
        return -float(np.log((share**2).sum()))

    return abs(of(y) - of(x))


def _attention(samples: list[SampleStates]) -> dict[str, Array]:
    parts: dict[str, Array] = {}
    for kind in ("text", "prompt", "answer"):
        masses = []
        for one in samples:
            assert one.attention is not None
            mass = one.attention.mean(1)[:, :, one.image].sum(-1)
            after = np.cumsum(one.image) > 0
            masses.append(mass[:, one.kinds()[kind] & ~one.image & after])
        joined = np.concatenate(masses, axis=1)
        if joined.shape[1]:
            parts[kind] = joined.mean(1)
    return {**parts, "score": parts["text"]}


_MEASURES: dict[str, Measure] = {
    "block-influence": _distance,
    "modality-block-influence": _distance,
    "angular-distance": _angle,
    "relative-magnitude": _ratio,
}


def sample_sum(scorer: str, part: str, sample: SampleStates) -> tuple[float, int]:
    """Return the sum behind one scorer's part in one sample's first layer, and its count."""
    chosen = sample.kinds()[part]
    if scorer in _MEASURES:
        return float(_MEASURES[scorer](sample.x, sample.y)[0, chosen].sum()), int(chosen.sum())
    places = _chosen(chosen)
    if len(places) < 4:
        return 0.0, 0
    return (_cka if scorer == "linear-cka" else _entropy)(sample.x[0, places], sample.y[0, places]), 1
