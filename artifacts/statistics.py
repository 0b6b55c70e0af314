"""Confidence intervals and significance tests for scores."""

from __future__ import annotations

import math

Z_95 = 1.959964  # quantile of the normal distribution for a 95 % interval


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % interval of a share, in percent (Wilson 1927). Also right near 0 and 100, unlike the normal interval."""
    if n == 0:
        return 0.0, 100.0
    share = hits / n
    spread = Z_95 * Z_95 / n
    centre = (share + spread / 2) / (1 + spread)
    half = Z_95 / (1 + spread) * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return round(100 * max(0.0, centre - half), 4), round(100 * min(1.0, centre + half), 4)


def mean_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean of independent values, and the ends of its 95 % interval (normal). One value gives (value, value, value)."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2:
        return mean, mean, mean
    half = Z_95 * math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return mean, mean - half, mean + half


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947), which compares two models on the same questions.

    Args:
        only_first: questions that only the first model answered correctly.
        only_second: questions that only the second model answered correctly.

    Questions that both answered correctly, or both incorrectly, do not count. 1.0 if there is no difference.
    """
    n, k = only_first + only_second, min(only_first, only_second)
    if n == 0:
        return 1.0
    # log of the binomial terms: 2^-n underflows for a few thousand questions
    logs = [math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2) for i in range(k + 1)]
    return min(1.0, 2 * sum(map(math.exp, logs)))


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted for multiple tests (Holm 1979), in the given order."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def paired_difference(only_first: int, only_second: int, n: int) -> tuple[float, float, float]:
    """Difference of two scores on the same n questions (second minus first) and its 95 % interval, in points.

    The interval is Wald's for paired shares, with half a question added to each cell (Agresti and Min 2005).
    """
    b, c, total = only_first + 0.5, only_second + 0.5, n + 2.0
    difference = (c - b) / total
    half = Z_95 * math.sqrt(max(0.0, (b + c) - (c - b) ** 2 / total)) / total
    return 100 * (only_second - only_first) / n, 100 * (difference - half), 100 * (difference + half)


def ratio_interval(numerators: list[float], denominators: list[float]) -> tuple[float, float, float]:
    """Ratio of two sums over documents and its 95 % interval (linearised ratio estimator, Cochran 1977, 6.4).

    The sample is the documents, not their bytes, because the bytes of one document are not independent.
    """
    n, total = len(numerators), sum(denominators)
    ratio = sum(numerators) / total
    if n < 2:
        return ratio, float("-inf"), float("inf")
    squares = sum((a - ratio * b) ** 2 for a, b in zip(numerators, denominators, strict=True))
    half = Z_95 * math.sqrt(n / (n - 1) * squares) / total
    return ratio, ratio - half, ratio + half
