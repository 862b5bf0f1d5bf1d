"""How many may be otherwise where all that were seen are alike: 0 of n, and n of n."""

from striate.scores.student_t import CONFIDENCE


def alike_share(seen: int) -> float:
    """Return the low end of the 95% interval of a share of which all of the `seen` independent ones were; it ends at 1.

    The exact interval (Clopper and Pearson 1934, Biometrika 26, 404-413): a spread that is estimated from what was
    seen, by a formula or by drawing it again, is 0 there.
    """
    return float(((1 - CONFIDENCE) / 2) ** (1 / seen))
