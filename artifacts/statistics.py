"""How sure a score is."""

from __future__ import annotations

import math

Z_95 = 1.959964  # quantile of the normal distribution for a 95 % interval


def wilson(hits: int, n: int) -> tuple[float, float]:
    """The 95 % interval of a share, in percent (Wilson 1927): honest near 0 and 100, where the normal one is not."""
    if n == 0:
        return 0.0, 100.0
    share = hits / n
    spread = Z_95 * Z_95 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return round(100 * max(0.0, centre - half), 4), round(100 * min(1.0, centre + half), 4)


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean of independent values and its 95 % interval (normal); a single value has none, so it comes three times."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, mean, mean
    half = Z_95 * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return mean, mean - half, mean + half
