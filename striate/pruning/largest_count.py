"""Bisection over how many layers go: the largest number that is borne, none asked twice."""

from __future__ import annotations

from collections.abc import Callable


def largest_count(most: int, borne: Callable[[int], bool]) -> int:
    """Return the largest number from 0 to `most` that is borne; 0 is taken to be, and is not asked.

    Whatever is borne is assumed to be borne with fewer layers gone, too. Where that holds, no larger number is borne;
    where it does not, the number that is returned was still asked, and the next one was asked and is not borne. Asked
    are at most `ceil(log2(most + 1))` numbers, each once.

    Args:
        most: the largest number to try.
        borne: whether so many layers may go.
    """
    least_refused, largest = most + 1, 0
    while least_refused - largest > 1:
        middle = (largest + least_refused) // 2
        if borne(middle):
            largest = middle
        else:
            least_refused = middle
    return largest
