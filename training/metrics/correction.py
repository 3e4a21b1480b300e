"""P values corrected for their number: one comparison in twenty would seem decided by chance.

Holm, A simple sequentially rejective multiple test procedure, 1979.
"""

from collections.abc import Sequence


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for their number: times the number of those that are not smaller, in order, at most 1.

    None, for a comparison that was not tested, stays None and does not count.
    """
    corrected: list[float | None] = [None] * len(values)
    tested = sorted((value, place) for place, value in enumerate(values) if value is not None)
    largest = 0.0
    for rank, (value, place) in enumerate(tested):
        largest = max(largest, min(1.0, value * (len(tested) - rank)))
        corrected[place] = largest
    return corrected
