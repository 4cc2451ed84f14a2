"""Up to which level does the ticket match dense? Moderated variances and a fixed sequence.

    s2_l = (d0 p + (n - 1) v_l) / (d0 + n - 1)
    d0 + n - 1 <= (n - 1) L / (1 + (L - 1) r^2)

v_l is the variance of d at level l over n seeds, p the mean of v over L levels, d0 = 2 at most:
what all levels say of the noise is worth two degrees of freedom, or as many as they have beyond one
level's own where their losses go together, as the intraclass correlation r tells. Sources: Smyth
2004, Stat. Appl. Genet. Mol. Biol. 3, 3 (moderated t); Shrout & Fleiss 1979, Psychol. Bull. 86, 420
(intraclass correlation); Maurer, Hothorn & Lehmacher 1995 (fixed sequences keep the error rate).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from scipy import special

ALPHA_MATCH = 0.05
"""Each bound of the loss against dense is one-sided at this level."""
PRIOR_DEGREES = 2.0
"""d0: what the levels together are worth, in degrees of freedom."""
LEAST_SEEDS = 3
"""With fewer training seeds there is no verdict."""

Sample = Mapping[int, float]
"""Seed -> a number; infinite where its training diverged."""


@dataclass(frozen=True)
class Spread:
    """What several levels together say of the noise over seeds."""

    pooled: float
    """p, the mean over levels of the variance over seeds; nan where no level has two seeds."""
    levels: int
    """L, how many levels that is."""
    correlation: float
    """r, in [0, 1]: 1 where a seed's number is the same at every level."""

    def degrees(self, n: int) -> float:
        """Degrees of freedom of a moderated variance over n seeds."""
        own = n - 1
        most = own * self.levels / (1 + (self.levels - 1) * self.correlation**2)
        return max(float(own), min(own + PRIOR_DEGREES, most))

    def variance(self, own: float, n: int) -> float:
        """The moderated variance of a level whose own variance over n seeds is given."""
        degrees = self.degrees(n)
        return ((degrees - (n - 1)) * self.pooled + (n - 1) * own) / degrees


@dataclass(frozen=True)
class Bounds:
    """The mean of d at a level and its one-sided 95% bounds; nan where they are not to be had."""

    mean: float
    lower: float
    upper: float
    seeds: int
    diverged: int
    variance: float
    """The moderated variance."""

    def matches(self, width: float) -> bool:
        """Whether the loss is shown to be smaller than the margin."""
        return self.seeds >= LEAST_SEEDS and not self.diverged and self.upper < width

    def is_worse(self, width: float) -> bool:
        """Whether the loss is shown to be larger; a diverged training is worse than any margin."""
        return bool(self.diverged) or (self.seeds >= LEAST_SEEDS and self.lower > width)


def variance_of(values: Sequence[float]) -> float:
    """Sample variance (n - 1); nan of fewer than two values, exactly 0 if all are equal."""
    n = len(values)
    if n < 2:
        return math.nan
    if min(values) == max(values):
        return 0.0
    mean = math.fsum(values) / n
    return math.fsum((v - mean) ** 2 for v in values) / (n - 1)


def spread_over(samples: Sequence[Sample]) -> Spread:
    """The spread of some levels; those where a training diverged tell nothing of the noise."""
    whole = [s for s in samples if len(s) > 1 and all(map(math.isfinite, s.values()))]
    if not whole:
        return Spread(math.nan, 0, 1.0)
    pooled = math.fsum(variance_of(list(s.values())) for s in whole) / len(whole)
    return Spread(pooled, len(whole), correlation_of(whole))


def correlation_of(samples: Sequence[Sample]) -> float:
    """Intraclass correlation over levels of the seeds that all have, clipped to [0, 1].

    r = (S - E) / (S + (L - 1) E), S the mean square between seeds, E the residual one once the
    means of seeds and levels are taken off. 1 with fewer than two common seeds: nothing is gained.
    """
    seeds = sorted(set.intersection(*(set(s) for s in samples)))
    n, count = len(seeds), len(samples)
    if n < 2 or count < 2:
        return 1.0
    table = [[s[seed] for seed in seeds] for s in samples]
    columns = [math.fsum(row) / n for row in table]
    centred = [[v - m for v in row] for row, m in zip(table, columns, strict=True)]
    by_seed = [math.fsum(row[i] for row in centred) / count for i in range(n)]
    between = count * math.fsum(m * m for m in by_seed) / (n - 1)
    whole = math.fsum(v * v for row in centred for v in row)
    residual = max(0.0, whole - between * (n - 1)) / ((n - 1) * (count - 1))
    below = between + (count - 1) * residual
    return min(1.0, max(0.0, (between - residual) / below)) if below > 0 else 1.0


def bounds_of(sample: Sample, spread: Spread) -> Bounds:
    """The bounds of one level, its variance moderated by what all levels say."""
    values = list(sample.values())
    n, diverged = len(values), sum(not math.isfinite(v) for v in values)
    if diverged or n == 0:
        return Bounds(math.nan, math.nan, math.nan, n, diverged, math.nan)
    mean = values[0] if min(values) == max(values) else math.fsum(values) / n
    if n == 1:
        return Bounds(mean, math.nan, math.nan, 1, 0, math.nan)
    variance = spread.variance(variance_of(values), n)
    half = t_quantile(1 - ALPHA_MATCH, spread.degrees(n)) * math.sqrt(variance / n)
    return Bounds(mean, mean - half, mean + half, n, 0, variance)


@lru_cache(maxsize=4096)
def t_quantile(probability: float, degrees: float) -> float:
    """The quantile of Student's t."""
    return float(special.stdtrit(degrees, probability))


def frontier_of(bounds: Sequence[Bounds], width: float) -> int | None:
    """The place of the last level of the leading run of matches; None if the first does not."""
    last = None
    for place, level in enumerate(bounds):
        if not level.matches(width):
            break
        last = place
    return last
