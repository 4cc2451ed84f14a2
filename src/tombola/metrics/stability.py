"""Do tickets vary less from seed to seed than what they are held against?

The paper's claim 4. The ratio of two arms' standard deviations over training seeds, pooled over
the levels that both have; its interval is a bootstrap over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tombola.metrics.rules import rule_of
from tombola.metrics.verdict.losses import Losses, Measurement, SearchKey, gather, own_arm

LEAST_SEEDS = 10
"""With fewer seeds a ratio of deviations is undecided, whatever its interval."""
DRAWS = 2000
Array = NDArray[np.float64]


def stability(
    rows: Iterable[Measurement], metric: str, key: SearchKey, arms: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Arm -> ``ratio`` of the ticket's deviation over its own, ``low`` and ``high``, ``state``.

    ``arms``: what the ticket is held against, ``dense`` or a control. The interval is the middle
    95% of 2,000 draws of seeds with replacement. States: *more stable*, *less stable*, *undecided*
    (also with fewer than ten seeds). Arms without three common seeds or a deviation are left out.
    """
    rule = rule_of(metric)
    if rule is None:
        return {}
    losses = gather(rows, metric, key, rule, raw=True)
    found = {}
    for arm in arms:
        tables = _common(losses, own_arm(key), arm)
        if tables is None:
            continue
        seeds = tables[0].shape[1]
        ratio = _ratio(*tables)
        rng = np.random.default_rng(0)
        draws = (rng.integers(seeds, size=seeds) for _ in range(DRAWS))
        drawn = [_ratio(tables[0][:, chosen], tables[1][:, chosen]) for chosen in draws]
        finite = [value for value in drawn if math.isfinite(value)]
        if not math.isfinite(ratio) or not finite:
            continue
        low, high = (float(value) for value in np.quantile(finite, (0.025, 0.975)))
        state = "more stable" if high < 1 else "less stable" if low > 1 else "undecided"
        found[arm] = {
            "ratio": ratio,
            "low": low,
            "high": high,
            "seeds": seeds,
            "state": state if seeds >= LEAST_SEEDS else "undecided",
        }
    return found


def _common(losses: Losses, own: str, arm: str) -> tuple[Array, Array] | None:
    """Values (levels, seeds) of the ticket and of an arm, on the seeds that are whole in both."""
    levels = [lv for lv in losses.levels if arm == "dense" or losses.at(arm, lv)]
    tables = [losses.first_at(own, level) for level in levels]
    against = [losses.dense if arm == "dense" else losses.first_at(arm, lv) for lv in levels]
    seeds = sorted(
        seed
        for seed in losses.dense
        if all(math.isfinite(table.get(seed, math.inf)) for table in (*tables, *against))
    )
    if not levels or len(seeds) < 3:
        return None
    return (
        np.array([[table[seed] for seed in seeds] for table in tables]),
        np.array(
            [[table[seed] for seed in seeds] for table in against[: 1 if arm == "dense" else None]]
        ),
    )


def _ratio(tickets: Array, others: Array) -> float:
    """Root of the ratio of the mean variances; nan where the second is zero."""
    below = float(others.var(axis=1, ddof=1).mean())
    return math.sqrt(float(tickets.var(axis=1, ddof=1).mean()) / below) if below else math.nan
