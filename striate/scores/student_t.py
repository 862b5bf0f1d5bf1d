"""Student's t, and percentiles of a bootstrap that allow for small samples."""

import math
from statistics import NormalDist

CONFIDENCE = 0.95
FEWEST = 10


def student_quantile(free: float, share: float = (1 + CONFIDENCE) / 2) -> float:
    """Return the quantile of Student's t with `free` degrees of freedom, three or more.

    By the Cornish-Fisher expansion (Abramowitz and Stegun 1964, 26.7.5), within 1%.
    """
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return float(z + sum(term / free**power for power, term in enumerate(terms, start=1)))


def expanded_tail(samples: int) -> float:
    """Return the share of draws that a 95% interval leaves out on each side: the expanded percentile.

    Percentiles of a bootstrap are too narrow by `sqrt((n - 1) / n)` and know no Student's t; the tail is moved out by
    both (Hesterberg 2015, The American Statistician 69, 371-386, section 3.3).
    """
    return NormalDist().cdf(-math.sqrt(samples / (samples - 1)) * student_quantile(samples - 1))
