"""Is one way of searching better than another? Arms that differ in one thing, paired by seed.

    g = x_A - x_B at equal levels

Over levels: the seed means of g, a two-sided t test with n - 1 degrees of freedom. By level: the
moderated t of ``sequence``, two-sided, with Holm over the levels of the pair (Holm 1979). That one
thing is better than another is said from these alone, never by looking at two intervals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy import special

from tombola.metrics.intervals import holm
from tombola.metrics.verdict.losses import (
    Losses,
    SearchKey,
    number_or_none,
    own_arm,
    search_name,
)
from tombola.metrics.verdict.sequence import (
    LEAST_SEEDS,
    Spread,
    bounds_of,
    spread_over,
    t_quantile,
)

EQUAL_SPARSITY = 1e-6
"""Levels of arms that prune the same weights are equal when their sparsities differ by less."""
EQUAL_SPARSITY_ALL = 0.02
"""And of arms that prune other weights, when their shares of all parameters do."""
THIN_ARMS = ("thin-flops", "thin-parameters")
NEVER_REWOUND = ("early-bird", "snip", "grasp", "synflow", "random")
"""Methods without a rewind point: what stands in that column tells them from no other method."""

Curve = dict[float, dict[int, float]]
"""Sparsity -> seed -> x, for the seeds whose training did not diverge."""


def compare_searches(metric: str, losses: Mapping[SearchKey, Losses]) -> list[dict[str, Any]]:
    """Every pair of searches that differ in one thing, their tickets against each other."""
    found: list[dict[str, Any]] = []
    for a, b in itertools.combinations(losses, 2):
        differs = [name for name in SearchKey._fields if getattr(a, name) != getattr(b, name)]
        if "method" in differs and {a.method, b.method} & {*NEVER_REWOUND}:
            differs = [name for name in differs if name != "rewind_steps"]
        if differs == ["method"] or (len(differs) == 1 and own_arm(a) == own_arm(b)):
            names = (search_name(a), search_name(b))
            pairs = _levels_of(losses[a], a, losses[b], b)
            log = losses[a].log and losses[b].log
            found += _compared(metric, names, differs[0], pairs, log=log)
    return found


def compare_with_thin(metric: str, key: SearchKey, losses: Losses) -> list[dict[str, Any]]:
    """Networks whose channels were cut against thin dense networks of the same cost or size."""
    found: list[dict[str, Any]] = []
    for thin in THIN_ARMS if own_arm(key) == "compact" else ():
        pairs = [
            (losses.sparsity[level], _finite(losses.first_at("compact", level)),
             _finite(losses.first_at(thin, level)), False)
            for level in losses.levels if losses.at(thin, level)
        ]  # fmt: skip
        names = (f"{search_name(key)}: compact", f"{search_name(key)}: {thin}")
        found += _compared(metric, names, "channels against thin", pairs, log=losses.log)
    return found


Pair = tuple[tuple[float, float], dict[int, float], dict[int, float], bool]
"""((sparsity, sparsity_all), x of A by seed, x of B by seed, whether B's is interpolated)."""


def _finite(values: Mapping[int, float]) -> dict[int, float]:
    return {seed: x for seed, x in values.items() if math.isfinite(x)}


def _levels_of(a: Losses, key_a: SearchKey, b: Losses, key_b: SearchKey) -> list[Pair]:
    """The levels that two searches have in common, upwards in sparsity."""
    arm_a, arm_b = own_arm(key_a), own_arm(key_b)
    same = key_a.networks == key_b.networks and arm_a == arm_b
    curve = {b.sparsity[lv][1]: _finite(b.first_at(arm_b, lv)) for lv in b.levels}
    pairs: list[Pair] = []
    for level in a.levels:
        own, place = _finite(a.first_at(arm_a, level)), a.sparsity[level]
        index, width = (0, EQUAL_SPARSITY) if same else (1, EQUAL_SPARSITY_ALL)
        near = min(b.levels, key=lambda lv: abs(b.sparsity[lv][index] - place[index]), default=None)
        if same and level.compress is not None:  # of equal shares, whatever is left
            if level in b.levels:
                pairs.append((place, own, _finite(b.first_at(arm_b, level)), False))
        elif near is not None and abs(b.sparsity[near][index] - place[index]) < width:
            pairs.append((place, own, _finite(b.first_at(arm_b, near)), False))
        elif key_a.networks != key_b.networks:
            between = _interpolated(curve, place[1])
            if between:
                pairs.append((place, own, between, True))
    return pairs


def _interpolated(curve: Curve, at: float) -> dict[int, float]:
    """X of every seed at a sparsity between two levels, linear in it; empty outside of them."""
    below = max((s for s in curve if s <= at), default=None)
    above = min((s for s in curve if s >= at), default=None)
    if below is None or above is None or below == above:
        return {}
    weight = (at - below) / (above - below)
    low, high = curve[below], curve[above]
    return {s: (1 - weight) * low[s] + weight * high[s] for s in low if s in high}


def _compared(
    metric: str, names: tuple[str, str], differs: str, pairs: Sequence[Pair], *, log: bool
) -> Iterator[dict[str, Any]]:
    """One comparison, JSON-ready, if three seeds or more have a level in common."""
    gaps = [{s: a[s] - b[s] for s in a if s in b} for _, a, b, _ in pairs]
    kept = [(pair, gap) for pair, gap in zip(pairs, gaps, strict=True) if len(gap) >= LEAST_SEEDS]
    if not kept:
        return
    by_seed: dict[int, list[float]] = {}
    for _, gap in kept:
        for seed, g in gap.items():
            by_seed.setdefault(seed, []).append(g)
    whole = {s: math.fsum(g) / len(g) for s, g in by_seed.items() if len(g) == len(kept)}
    spread = spread_over([gap for _, gap in kept])
    tests = [_tested(gap, spread, log=log) for _, gap in kept]
    adjusted = holm([test["p"] if test["p"] is not None else math.nan for test in tests])
    over = _tested(whole, Spread(math.nan, 1, 0.0), log=log)
    yield {
        "metric": metric,
        "a": names[0],
        "b": names[1],
        "differs": differs,
        "levels": len(kept),
        "seeds": len(whole),
        **over,
        "by_level": [
            {
                "sparsity": pair[0][0],
                "sparsity_all": pair[0][1],
                "interpolated": pair[3],
                **test,
                "p_holm": number_or_none(p),
            }
            for (pair, _), test, p in zip(kept, tests, adjusted, strict=True)
        ],
    }


def _tested(gaps: Mapping[int, float], spread: Spread, *, log: bool) -> dict[str, Any]:
    """Mean of g, its 95% interval, two-sided p; as ratios (above 1: A is worse) or differences."""
    n = len(gaps)
    own = spread_over([gaps]) if spread.levels == 1 else spread
    bounds = bounds_of(gaps, own)
    if n < LEAST_SEEDS:
        return {"ratio": None, "difference": None, "interval": [None, None], "p": None}
    error = math.sqrt(bounds.variance / n)
    degrees = own.degrees(n)
    half = t_quantile(0.975, degrees) * error
    if error > 0:
        p = 2 * float(special.stdtr(degrees, -abs(bounds.mean) / error))
    else:
        p = 1.0 if bounds.mean == 0 else 0.0
    back = math.exp if log else float
    low, high = (number_or_none(back(bounds.mean + sign * half)) for sign in (-1, 1))
    middle = number_or_none(back(bounds.mean))
    return {
        "ratio": middle if log else None,
        "difference": None if log else middle,
        "interval": [low, high],
        "p": p,
    }
