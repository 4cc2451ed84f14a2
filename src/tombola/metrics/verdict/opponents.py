"""Is each control worse than the ticket? Asked at the frontier alone, by one of two designs.

- **Controls at every level**: unpaired, as a control's weights or mask are drawn anew for each seed
  and level. Welch's t of x_control - x_ticket > 0 with the ticket's moderated variance and the
  control's variance pooled over its levels. A control's value is capped at the median of its level
  + 2.5 robust deviations, so that a dead control counts as bad and not as noise.
- **Draws at the frontier**: m fresh draws of a control for every seed. R = sum over seeds of 1 +
  the number of that seed's draws that are better than its ticket; p = the share of the equally
  likely rank vectors with a sum of at most R. Exact, whatever the distribution (a stratified rank
  test: van Elteren 1960).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special

from tombola.metrics.verdict.losses import Draws, Level, Losses
from tombola.metrics.verdict.sequence import (
    LEAST_SEEDS,
    bounds_of,
    spread_over,
    variance_of,
)

ALPHA_CONTROL = 0.025
"""A control is worse than the ticket if its one-sided p is at most this."""
CAP_DEVIATIONS = 2.5


@dataclass(frozen=True)
class Opponent:
    """One control at the frontier."""

    p: float
    """One-sided, of "no worse than the ticket"; nan where it could not be tested."""
    gap: float
    """Mean of x_control - x_ticket over the finite values, uncapped; nan without any."""
    matches_dense: bool
    """Whether the control itself matches dense there."""
    runs: int
    diverged: int

    @property
    def is_worse(self) -> bool:
        """Whether it is shown to be worse than the ticket."""
        return self.p <= ALPHA_CONTROL  # False for nan


def ask_control(losses: Losses, arm: str, control: str, frontier: Level) -> Opponent | None:
    """Hold a control against the ticket at the frontier; None where it was not trained there."""
    draws, ticket = losses.at(control, frontier), losses.first_at(arm, frontier)
    if not draws:
        return None
    several = any(len(found) > 1 for found in draws.values())
    p = rank_test(ticket, draws) if several else _welch(losses, arm, control, frontier)
    values = [x for found in draws.values() for x in found.values()]
    finite = [x for x in values if math.isfinite(x)]
    own = [x for x in ticket.values() if math.isfinite(x)]
    gap = statistics.fmean(finite) - statistics.fmean(own) if finite and own else math.nan
    return Opponent(
        p=p,
        gap=gap,
        matches_dense=_matches_dense(losses, control, frontier),
        runs=len(values),
        diverged=len(values) - len(finite),
    )


def _matches_dense(losses: Losses, control: str, frontier: Level) -> bool:
    """The control itself by the rule of the ticket, over the levels that it has."""
    levels = losses.arms.get(control, {})
    spread = spread_over([losses.above_dense(control, level) for level in levels])
    return bounds_of(losses.above_dense(control, frontier), spread).matches(losses.width)


def rank_test(ticket: Mapping[int, float], draws: Draws) -> float:
    """P of the exact stratified rank test; a draw that equals the ticket counts as better.

    Seeds without a ticket or a draw tell nothing and are left out; fewer than three left: nan.
    """
    counts, total = [], 0
    for seed, found in draws.items():
        own = ticket.get(seed, math.inf)
        if found and math.isfinite(own):
            counts.append(len(found))
            total += 1 + sum(x <= own for x in found.values())
    return rank_p(tuple(sorted(counts)), total) if len(counts) >= LEAST_SEEDS else math.nan


@lru_cache(maxsize=4096)
def rank_p(draws: tuple[int, ...], total: int) -> float:
    """Share of the rank vectors, each rank from 1 to draws + 1, whose sum is at most ``total``."""
    ways = np.ones(1)  # ways[k]: rank vectors whose sum is k above the least
    for count in draws:
        ways = np.convolve(ways, np.ones(count + 1))
    return float(ways[: max(0, total - len(draws) + 1)].sum() / ways.sum())


def _welch(losses: Losses, arm: str, control: str, frontier: Level) -> float:
    """One-sided p of the unpaired test at the frontier; nan with too few seeds."""
    tickets = [losses.first_at(arm, level) for level in losses.levels]
    ticket = list(losses.first_at(arm, frontier).values())
    levels = [losses.first_at(control, level) for level in losses.levels]
    levels = [found for found in levels if len(found) >= LEAST_SEEDS]
    other = losses.first_at(control, frontier)
    if len(ticket) < LEAST_SEEDS or len(other) < LEAST_SEEDS:
        return math.nan
    if not any(map(math.isfinite, other.values())):
        return 0.0  # every one diverged
    deviation = robust_deviation([list(found.values()) for found in levels])
    capped = [cap_values(found, deviation) for found in levels]
    against = list(cap_values(other, deviation).values())
    own, theirs = spread_over(tickets), spread_over(capped)
    n, m = len(ticket), len(against)
    own_share = own.variance(variance_of(ticket), n) / n
    their_share = theirs.pooled / m
    pooled_degrees = (m - 1) * theirs.levels / (1 + (theirs.levels - 1) * theirs.correlation**2)
    gap = statistics.fmean(against) - statistics.fmean(ticket)
    whole = own_share + their_share
    if whole <= 0:
        return 0.0 if gap > 0 else 1.0
    degrees = whole**2 / (own_share**2 / own.degrees(n) + their_share**2 / pooled_degrees)
    return float(special.stdtr(degrees, -gap / math.sqrt(whole)))


def cap_values(found: Mapping[int, float], deviation: float) -> dict[int, float]:
    """One level's values, none above median + 2.5 deviations; diverged ones are at that cap."""
    finite = [x for x in found.values() if math.isfinite(x)]
    if not finite:
        return dict(found)
    cap = statistics.median(finite) + CAP_DEVIATIONS * deviation
    return {seed: min(x, cap) for seed, x in found.items()}


def robust_deviation(levels: Sequence[Sequence[float]]) -> float:
    """Median over levels of the median absolute deviation of each, scaled for n and L.

    The scale makes it right on average for normal values. 0 where no level has two finite values.
    """
    parts, sizes = [], []
    for values in levels:
        finite = [x for x in values if math.isfinite(x)]
        if len(finite) > 1:
            middle = statistics.median(finite)
            parts.append(statistics.median(abs(x - middle) for x in finite))
            sizes.append(len(finite))
    if not parts:
        return 0.0
    return statistics.median(parts) / _expected_deviation(min(sizes), len(parts))


@lru_cache(maxsize=256)
def _expected_deviation(n: int, levels: int) -> float:
    """Mean of that statistic for ``levels`` samples of n standard normal values, simulated."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((4000, levels, n))
    apart = np.abs(values - np.median(values, axis=2, keepdims=True))
    return float(np.median(np.median(apart, axis=2), axis=1).mean())
