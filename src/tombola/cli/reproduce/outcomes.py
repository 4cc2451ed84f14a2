"""What can come of a rule, and of a claim that rests on several? Told without any numerics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

HOLDS, NOT, OPEN, NOT_RUN, BEGUN = "holds", "does not hold", "open", "not run", "begun"
Rule = Mapping[str, Any]
"""A rule as a file has it."""


@dataclass(frozen=True)
class Outcome:
    """What one rule says; number and interval are in the unit that ``unit`` names."""

    text: str
    state: str
    why: str = ""
    number: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    unit: str = ""

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def combine(outcomes: Sequence[Outcome]) -> str:
    """The state of a claim that rests on several rules: as its weakest one."""
    states = {outcome.state for outcome in outcomes}
    if NOT_RUN in states:
        return NOT_RUN if states == {NOT_RUN} else BEGUN
    return next((state for state in (NOT, OPEN) if state in states), HOLDS)


def words_of(rule: Rule) -> str:
    """What a rule asks, in words."""
    kind, metric = rule["rule"], rule.get("metric", "the primary metric")
    arm = rule.get("arm") or rule.get("route") or "the first search"
    if kind == "state_is":
        return f"{arm}: {rule['is']}, by {metric}"
    if kind == "frontier_at_least":
        return f"{arm}: matches dense up to {100 * rule['value']:g}% sparsity, by {metric}"
    if kind == "comparison_better":
        return f"{rule['a']} better than {rule['b']}, by {metric}"
    if kind == "cost_share_at_most":
        cut = f" at compress {rule['compress']:g}" if "compress" in rule else ""
        what = rule.get("of", "flops")
        return f"{arm}{cut}: at most {100 * rule['value']:g}% of the {what} of dense"
    return f"{arm}: {metric} below that of {rule['than']}"
