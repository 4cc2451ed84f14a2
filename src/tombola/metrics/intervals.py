"""How sure is a number over training seeds? t intervals, one-sided tests, Holm.

NumPy and scipy.special only: the report asks without torch, and scipy.stats is slow to import.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

ALPHA_BOUND = 0.05
"""Each bound of the loss against dense is one-sided at this level (95%)."""


class Interval(NamedTuple):
    """A mean and its bounds; nan where there are too few values."""

    mean: float
    low: float
    high: float


def interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean and two-sided t interval of a few values: what the plots draw.

    Values that are not finite (a diverged run) are left out; no value gives nan, one value a mean
    with nan bounds. mean +- t(1 - (1 - confidence)/2, n - 1) s / sqrt(n).
    """
    return _t_interval(values, (1 - confidence) / 2)


def bounds(values: Sequence[float]) -> Interval:
    """Mean and the two one-sided 95% t bounds, each read by itself: lower, upper.

    Bounds equal the mean when all values are equal; non-finite values are left out as above.
    """
    return _t_interval(values, ALPHA_BOUND)


def _t_interval(values: Sequence[float], tail: float) -> Interval:
    finite = np.asarray([v for v in values if math.isfinite(v)], dtype=np.float64)
    n = len(finite)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(finite.mean())
    if n == 1:
        return Interval(mean, math.nan, math.nan)
    if np.ptp(finite) == 0:  # the mean of equal floats may be off by an ulp: keep the value itself
        value = float(finite[0])
        return Interval(value, value, value)
    half = float(special.stdtrit(n - 1, 1 - tail)) * deviation(finite) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def deviation(values: Sequence[float] | np.ndarray) -> float:
    """Sample standard deviation (n - 1); nan for fewer than two values, 0 if all are equal."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return math.nan
    return 0.0 if np.ptp(array) == 0 else float(array.std(ddof=1))


def p_positive(differences: Sequence[float]) -> float:
    """One-sided p of the paired t test of "mean difference > 0" over seeds.

    ``+inf`` stands for a pair whose second run diverged, which is worse than any number. Such pairs
    enter as large as the largest difference of the finite pairs, so that a divergence never speaks
    for the control; with one finite pair the test is taken in its limit, t = sqrt(k (n-1) / (n-k))
    for k of n diverged; with none p is 0. All differences equal: 0 if positive, else 1. Fewer than
    two pairs: nan.
    """
    array = np.asarray(differences, dtype=np.float64)
    n, unbounded = len(array), np.isposinf(array)
    k = int(unbounded.sum())
    if n < 2:
        return math.nan
    if k == n:
        return 0.0
    if k and n - k == 1:
        return float(special.stdtr(n - 1, -math.sqrt(k * (n - 1) / (n - k))))
    if k:
        array = np.where(unbounded, np.abs(array[~unbounded]).max(), array)
    if np.ptp(array) == 0:
        return 0.0 if array[0] > 0 else 1.0
    t = float(array.mean()) / (deviation(array) / math.sqrt(n))
    return float(special.stdtr(n - 1, -t))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values of a family of tests, in the given order; nan stays nan and counts not.

    The i-th smallest of m (from 0) times m - i, made non-decreasing, at most 1. Source: Holm 1979,
    "A simple sequentially rejective multiple test procedure", Scand. J. Stat. 6, 65-70.
    """
    order = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        highest = max(highest, min(1.0, (len(order) - rank) * p))
        adjusted[index] = highest
    return adjusted
