"""Sum tokens by kind and sample, and Gram matrices of a few tokens of each."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from striate.scorers.streaming.masks import TokenMasks

MOST_TOKENS = 64
FEWEST_TOKENS = 4


class TokenGroups:
    """What all layers of one forward pass share: masks as weights, counts, and which tokens stand for a sample.

    Made once a batch; only weights and indices go to a device, once for each device.
    """

    def __init__(self, masks: TokenMasks) -> None:
        """Keep the masks; they are best on the CPU."""
        self.masks = masks
        self._weights: dict[tuple[torch.device, tuple[str, ...]], Tensor] = {}
        self._moved: dict[tuple[torch.device, str], Tensor] = {}
        self._counts: dict[str, Tensor] = {}

    def on(self, name: str, device: torch.device) -> Tensor:
        """Return the tensor `name` of the masks or of these groups on `device`."""
        if (device, name) not in self._moved:
            held = self.masks if hasattr(self.masks, name) else self
            self._moved[device, name] = getattr(held, name).to(device, non_blocking=True)
        return self._moved[device, name]

    def counts(self, kind: str) -> Tensor:
        """Return how many tokens of `kind` each sample has, shape (N,)."""
        if kind not in self._counts:
            self._counts[kind] = (self.masks.members & self.masks.of(kind)).sum((1, 2))
        return self._counts[kind]

    def totals(self, values_KBT: Tensor, kinds: Sequence[str]) -> Tensor:
        """Return the sum of `values_KBT` over the tokens of each kind and sample, shape (P, K, N)."""
        clean_KBT = values_KBT.masked_fill(~self.on("attended", values_KBT.device), 0.0)
        weighted_PKBT = self._weights_of(tuple(kinds), values_KBT)[:, None] * clean_KBT
        if self.masks.sample is None:
            return weighted_PKBT.sum(-1)
        members_NS = self.on("members", values_KBT.device).flatten(1).to(values_KBT.dtype)
        return weighted_PKBT.flatten(2) @ members_NS.T

    def gram(self, hidden_BTD: Tensor) -> Tensor:
        """Return the inner products of centred hidden states between chosen tokens, shape (2N, M, M).

        The first N groups are the image tokens of each sample, the others its text tokens: up to 64 of each, evenly
        spaced. Each group is centred on its own mean; rows and columns past a group's size are zero.
        """
        device = hidden_BTD.device
        wide = torch.float32 if device.type == "mps" else torch.float64
        chosen_GM1 = self.on("chosen", device)[:, :, None]
        # Padding may hold anything, even NaN.
        states_GMD = hidden_BTD.flatten(0, 1)[self.on("index", device)].to(wide).masked_fill_(~chosen_GM1, 0.0)
        mean_G1D = states_GMD.sum(1, keepdim=True) / self.on("divisors", device)
        states_GMD = (states_GMD - mean_G1D).masked_fill_(~chosen_GM1, 0.0)
        return states_GMD @ states_GMD.mT

    def by_kind(self, values_KG: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return `values_KG` of image and of text groups, and 1 for each group with enough tokens, else 0."""
        enough_KG = values_KG.masked_fill(~self.on("enough", values_KG.device), 0.0)
        return enough_KG.chunk(2, dim=-1), self.enough.long().chunk(2)

    @cached_property
    def sizes(self) -> Tensor:
        """The number of chosen tokens of each group, shape (2N,)."""
        return self.chosen.sum(1)

    @cached_property
    def enough(self) -> Tensor:
        """Which groups have tokens enough for an unbiased estimate, shape (2N,)."""
        return self.sizes >= FEWEST_TOKENS

    @cached_property
    def pairs(self) -> Tensor:
        """1 for each pair of two chosen tokens of a group, else 0, shape (2N, M, M)."""
        pairs_GMM = self.chosen[:, :, None] & self.chosen[:, None, :]
        return (pairs_GMM & ~torch.eye(self.chosen.shape[1], dtype=torch.bool)).to(torch.float32)

    @cached_property
    def divisors(self) -> Tensor:
        """The groups' sizes, 3 at least, shape (2N, 1, 1)."""
        return self.sizes[:, None, None].clamp_min(3).to(torch.float32)

    @cached_property
    def index(self) -> Tensor:
        """The chosen positions of each group in the flattened batch, shape (2N, M)."""
        return self._choice[0]

    @cached_property
    def chosen(self) -> Tensor:
        """Which entries of `index` count, shape (2N, M)."""
        return self._choice[1]

    @cached_property
    def last_index(self) -> Tensor:
        """The last position of each sample in the flattened batch, shape (N,); samples without tokens have 0."""
        members_NS = (self.masks.members & self.masks.last).flatten(1)
        return members_NS.int().argmax(1)

    @cached_property
    def _choice(self) -> tuple[Tensor, Tensor]:
        members_NBT = self.masks.members
        places = [(members_NBT & self.masks.of(kind)).flatten(1) for kind in ("image", "text")]
        spread = [_spread(row_S.nonzero()[:, 0]) for row_S in torch.cat(places)]
        width = max(1, *(len(positions) for positions in spread))
        index_GM = torch.zeros(len(spread), width, dtype=torch.long)
        chosen_GM = torch.zeros(len(spread), width, dtype=torch.bool)
        for group, positions in enumerate(spread):
            index_GM[group, : len(positions)] = positions
            chosen_GM[group, : len(positions)] = True
        return index_GM, chosen_GM

    def _weights_of(self, kinds: tuple[str, ...], like: Tensor) -> Tensor:
        """Return the masks of `kinds` as numbers, shape (P, B, T), on the device of `like`."""
        key = (like.device, kinds)
        if key not in self._weights:
            stacked_PBT = torch.stack([self.masks.of(kind) for kind in kinds])
            self._weights[key] = stacked_PBT.to(like.device, like.dtype, non_blocking=True)
        return self._weights[key]


def _spread(places_S: Tensor) -> Tensor:
    """Return up to 64 of the places, evenly spaced from the first on."""
    if len(places_S) <= MOST_TOKENS:
        return places_S
    return places_S[torch.arange(MOST_TOKENS) * len(places_S) // MOST_TOKENS]
