"""Forecast of adapters: which linear layers of a layer have one, of which rank, and what DoRA adds to them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from striate.models.forecast.layer_shapes import LayerShape, ModelShape
from striate.models.forecast.settings import Settings
from striate.models.trainable.lora_modules import is_chosen, value_of


@dataclass(frozen=True)
class Adapters:
    """The adapters of one layer.

    Attributes:
        linears: (in, out) of each linear layer that has one.
        ranks: theirs.
        dora: whether each has the norms of its outputs' weights too.
    """

    linears: tuple[tuple[int, int], ...]
    ranks: tuple[int, ...]
    dora: bool

    @property
    def parameters(self) -> int:
        """Parameters of all pairs, r x (in + out), and of DoRA's norms, one an output."""
        return self.pairs + self.dora * self.outputs

    @property
    def pairs(self) -> int:
        """Parameters of all pairs: what a token is multiplied by."""
        return sum(r * (inside + outside) for r, (inside, outside) in zip(self.ranks, self.linears, strict=True))

    @property
    def inputs(self) -> int:
        """Values of all inputs."""
        return sum(inside for inside, _ in self.linears)

    @property
    def outputs(self) -> int:
        """Values of all outputs."""
        return sum(outside for _, outside in self.linears)

    @property
    def weights(self) -> int:
        """Weights of the matrices under the adapters."""
        return sum(inside * outside for inside, outside in self.linears)


def adapters_of(layer: LayerShape, settings: Settings) -> Adapters:
    """Return the adapters that a trained layer gets; none with full weights."""
    if not settings.adapted:
        return Adapters((), (), False)
    return _adapters(layer, settings.modules, settings.r, settings.rank_pattern, settings.use_dora)


def projector_adapters(shape: ModelShape, settings: Settings) -> Adapters:
    """Return the adapters on the projector; none where it trains in full or is frozen."""
    if settings.projector != "lora":
        return Adapters((), (), False)
    ranks = tuple(value_of(dict(settings.rank_pattern), name, settings.r) for name in shape.projector_names)
    return Adapters(shape.projector, ranks, settings.use_dora)


def projector_trained(shape: ModelShape, settings: Settings) -> int:
    """Return how many parameters of the projector train."""
    return (
        shape.projector_parameters if settings.projector == "full" else projector_adapters(shape, settings).parameters
    )


@lru_cache(maxsize=1024)
def _adapters(
    layer: LayerShape, modules: str, r: int, rank_pattern: tuple[tuple[str, int], ...], dora: bool
) -> Adapters:
    named = zip(layer.names, layer.linears, strict=True)
    chosen = [(f"{layer.place}.{name}", size) for name, size in named if is_chosen(name, modules)]
    ranks = tuple(value_of(dict(rank_pattern), name, r) for name, _ in chosen)
    return Adapters(tuple(size for _, size in chosen), ranks, dora)
