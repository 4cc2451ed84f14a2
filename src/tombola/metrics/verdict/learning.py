"""Has the dense network learnt anything? Without that no ticket is judged.

*Learnt*, in every seed: dense is better than a trivial answer by at least half of what lies between
that and the best value seen. *Settled*: over the last fifth of the training dense moves by less
than the margin. Trivial answers: the mean training image, or the network before it was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tombola.metrics.verdict.losses import Losses, number_or_none

LEAST_SHARE = 0.5
"""Of the way from the trivial answer to the best seen."""


@dataclass(frozen=True)
class Learning:
    """What is known of the dense networks of one search in one metric."""

    trivial: float | None
    """The trivial answer's value; None where none is known, and nothing is asked."""
    best: float
    shares: Mapping[int, float]
    """Seed -> how far of the way from trivial to best its dense network has come."""
    moved: float | None
    """Largest change over the last fifth, as a share of the value; None where it is unknown."""

    @property
    def learnt(self) -> bool:
        """Whether every seed has come half of the way."""
        return not self.stuck

    @property
    def stuck(self) -> list[int]:
        """The seeds whose dense network has not learnt."""
        return [seed for seed, share in self.shares.items() if not share >= LEAST_SHARE]

    def as_dict(self, settled: bool | None) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "learnt": self.learnt if self.trivial is not None else None,
            "trivial": self.trivial,
            "best": number_or_none(self.best),
            "shares": {str(seed): number_or_none(s) for seed, s in self.shares.items()},
            "settled": settled,
            "moved": self.moved,
        }


def look_at_dense(
    losses: Losses, trivial: float | None, moved: Mapping[Any, float] | None
) -> Learning:
    """What the dense networks have learnt; ``moved``: seed -> change over the last fifth."""
    sign = 1.0 if losses.rule.better == "lower" else -1.0
    dense = {seed: sign * losses.value_of(x) for seed, x in sorted(losses.dense.items())}
    seen = [*dense.values()]
    for levels in losses.arms.values():
        for draws in levels.values():
            xs = (x for found in draws.values() for x in found.values())
            seen += [sign * losses.value_of(x) for x in xs if math.isfinite(x)]
    best = min(seen, default=math.nan)
    known = [abs(float(share)) for share in (moved or {}).values() if math.isfinite(share)]
    shares = {}
    if trivial is not None and math.isfinite(trivial):
        start = sign * trivial
        whole = start - best
        shares = {s: (start - v) / whole if whole > 0 else -math.inf for s, v in dense.items()}
    return Learning(trivial, sign * best, shares, max(known, default=None))


def has_settled(losses: Losses, moved: float | None) -> bool | None:
    """Whether dense moved by less than the margin at the end; None where it is unknown."""
    if moved is None:
        return None
    rule = losses.rule
    share = rule.margin if rule.share else rule.margin / max(abs(losses.dense_mean), 1e-300)
    return moved < share
