"""Peak layer and centre of mass of a score, with bootstrap intervals."""

import numpy as np
from numpy.typing import NDArray

from striate.artifacts import Peak

Floats = NDArray[np.float64]


def peak_of(values_L: Floats, draws_RL: Floats, tail: float = 0.025) -> Peak:
    """Return the highest layer and the centre of mass of `values_L`, with their spread over the resamples `draws_RL`.

    The centre of mass is `sum(l * w_l) / sum(w_l)` with `w_l = values_l - min(values)`, so that a constant added to
    all layers does not move it; scores that are all equal have theirs in the middle of the stack. Of equal highest
    layers the one nearer to the input counts. Resamples with NaN are left out; without any, intervals have no width.
    """
    whole_RL = draws_RL[np.isfinite(draws_RL).all(axis=1)]
    usable_RL = whole_RL if len(whole_RL) else values_L[None]
    tops_R, centres_R = usable_RL.argmax(axis=1), _centres(usable_RL)
    layer = int(values_L.argmax())
    low, high = np.quantile(tops_R, [tail, 1 - tail], method="nearest")
    centre_low, centre_high = np.quantile(centres_R, [tail, 1 - tail])
    return Peak(
        layer=layer,
        low=int(low),
        high=int(high),
        share=float(np.mean(tops_R == layer)),
        centre=float(_centres(values_L[None])[0]),
        centre_low=float(centre_low),
        centre_high=float(centre_high),
    )


def _centres(rows_RL: Floats) -> Floats:
    weights_RL = rows_RL - rows_RL.min(axis=1, keepdims=True)
    totals_R = weights_RL.sum(axis=1)
    layers_L = np.arange(rows_RL.shape[1], dtype=np.float64)
    middle = (rows_RL.shape[1] - 1) / 2
    return np.where(totals_R > 0, weights_RL @ layers_L / np.where(totals_R > 0, totals_R, 1.0), middle)
