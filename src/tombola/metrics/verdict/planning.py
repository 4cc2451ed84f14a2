"""How many training seeds would decide? The power of "matches" at a true loss.

    power(n) = P( T'(f, (w - delta) sqrt(n) / s) > t(0.95, f) ),    f the degrees of freedom at n

with T' the noncentral t, w the margin, delta the true loss and s the deviation of d over seeds, all
on the scale of x. Source: Julious 2004, Stat. Med. 23, 1921.
"""

from __future__ import annotations

import math
from typing import Any

from scipy import special

from tombola.metrics.verdict.losses import number_or_none
from tombola.metrics.verdict.sequence import ALPHA_MATCH, LEAST_SEEDS, Spread, t_quantile

POWER = 0.8
MOST_SEEDS = 10_000
USUAL_DEVIATIONS = {"autoencoder": 0.015, "vae": 0.05, "gan": 0.05}
"""Deviation of d over seeds by family, of log values, where no run has told it yet."""


def match_power(seeds: int, width: float, loss: float, spread: Spread) -> float:
    """Probability that so many seeds show a match, at a true loss."""
    deviation = math.sqrt(spread.pooled)
    if deviation == 0:
        return float(loss < width)
    degrees = spread.degrees(seeds)
    noncentrality = (width - loss) * math.sqrt(seeds) / deviation
    critical = t_quantile(1 - ALPHA_MATCH, degrees)
    return 1 - float(special.nctdtr(degrees, noncentrality, critical))


def seeds_to_match(width: float, loss: float, spread: Spread) -> int | None:
    """The fewest seeds (3 or more) that show a match with 80% power.

    None where no number does: the true loss is at or beyond the margin, or nothing is known.
    """
    if not (math.isfinite(spread.pooled) and math.isfinite(loss)) or loss >= width:
        return None
    rough = 6.18 * spread.pooled / (width - loss) ** 2  # (1.645 + 0.842)^2, of the normal
    if rough > MOST_SEEDS:
        return None
    seeds = max(LEAST_SEEDS, math.floor(rough))
    while seeds > LEAST_SEEDS and match_power(seeds - 1, width, loss, spread) >= POWER:
        seeds -= 1
    while seeds < MOST_SEEDS and match_power(seeds, width, loss, spread) < POWER:
        seeds += 1
    return seeds


def plan_seeds(width: float, loss: float, spread: Spread) -> dict[str, Any]:
    """The two numbers of seeds that are printed, JSON-ready; ``loss``: the one seen, on x's scale.

    ``seeds_if_no_loss`` and ``seeds_at_loss_seen`` are None where no number would decide.
    """
    return {
        "deviation": number_or_none(math.sqrt(spread.pooled)),
        "loss_seen": number_or_none(loss),
        "margin": number_or_none(width),
        "seeds_if_no_loss": seeds_to_match(width, 0.0, spread),
        "seeds_at_loss_seen": seeds_to_match(width, loss, spread),
    }
