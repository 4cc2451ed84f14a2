"""Where each level of a search stands: against the dense run, and against its controls."""

# ruff: noqa: D102 (the columns of Measurement are described where they are written)

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from tombola.metrics.intervals import ALPHA_CONTROL, LEAST_SEEDS, bounds, holm, p_positive
from tombola.metrics.rules import rule_of

DEFAULT_CONTROLS = ("reinit", "shuffle")
CHANNEL_CONTROLS = ("random-channels", "thin-flops", "thin-parameters")
"""What a smaller network must beat to win: its own widths at random, and thin dense networks."""
OWN_ARMS = ("ticket", "compact")
"""The arms that a search is about: tickets of single weights, and networks cut smaller."""


class Measurement(Protocol):
    """The columns of results.csv that a verdict reads; ``runs.results.Row`` has them."""

    @property
    def method(self) -> str: ...
    @property
    def arm(self) -> str: ...
    @property
    def networks(self) -> str: ...
    @property
    def rewind_steps(self) -> int | None: ...
    @property
    def precision(self) -> str: ...
    @property
    def compress(self) -> float | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def round(self) -> int: ...
    @property
    def sparsity(self) -> float: ...
    @property
    def sparsity_all(self) -> float: ...
    @property
    def metric(self) -> str: ...
    @property
    def value(self) -> float: ...
    @property
    def step(self) -> int | None: ...


class SearchKey(NamedTuple):
    """What tells one search of a results.csv from another; None or "" = does not apply."""

    method: str
    networks: str
    rewind_steps: int | None
    precision: str
    compress: float | None


def search_key(row: Measurement) -> SearchKey:
    """The search that a row belongs to."""
    return SearchKey(row.method, row.networks, row.rewind_steps, row.precision, row.compress)


def own_arm(key: SearchKey) -> str:
    """The arm that a search is about."""
    return "compact" if key.method == "early-bird" else "ticket"


def needed_of(arm: str) -> tuple[str, ...]:
    """The default controls of an arm, each of which it must beat to win."""
    return CHANNEL_CONTROLS if arm == "compact" else DEFAULT_CONTROLS


@dataclass
class Losses:
    """One metric of one search as losses (lower = better): arm -> round -> seed; inf = diverged."""

    dense: dict[int, float] = field(default_factory=dict)
    dense_diverged: set[int] = field(default_factory=set)
    arms: dict[str, dict[int, dict[int, float]]] = field(default_factory=dict)
    sparsity: dict[int, tuple[float, float]] = field(default_factory=dict)

    def at(self, arm: str, number: int) -> dict[int, float]:
        """Seed -> loss of an arm at a round, for the seeds whose dense run is sound."""
        return {s: v for s, v in self.arms.get(arm, {}).get(number, {}).items() if s in self.dense}

    def above_dense(self, arm: str, number: int) -> list[float]:
        """Loss of quality against the dense run of the same seed, one a seed."""
        return [v - self.dense[s] for s, v in sorted(self.at(arm, number).items())]


def gather(rows: Iterable[Measurement], metric: str, key: SearchKey) -> Losses:
    """The losses of one search; arms other than the ticket may leave columns of the key empty.

    The sparsity of a level is the first seed's: smaller networks differ a little from seed to seed.
    """
    arm = own_arm(key)
    rule = rule_of(metric)
    assert rule is not None
    sign = 1.0 if rule.better == "lower" else -1.0
    found, losses = Losses(), dict[tuple[str, int, int], tuple[int, float]]()
    diverged, not_run = set[tuple[str, int, int]](), set[tuple[str, int, int]]()
    for row in rows:
        # Of several draws of a control the first stands for its seed.
        if not belongs(row, key) or (getattr(row, "draw", None) or 1) > 1:
            continue
        run = (row.arm, 0 if row.arm == "dense" else row.round, row.seed)
        if row.arm == arm:
            found.sparsity.setdefault(row.round, (row.sparsity, row.sparsity_all))
        if row.metric == "diverged":
            diverged.add(run)
        elif row.metric == "not-run":
            not_run.add(run)
        elif row.metric == metric:
            loss = sign * row.value if math.isfinite(row.value) else math.inf
            # The judged value is the one at the last step.
            losses[run] = max(losses.get(run, (-1, 0.0)), (row.step or 0, loss))
    for name, number, seed in not_run:
        if any((name, earlier, seed) in diverged for earlier in range(number)):
            diverged.add((name, number, seed))
    for run in [*losses, *diverged]:
        name, number, seed = run
        loss = math.inf if run in diverged else losses[run][1]
        if name != "dense":
            found.arms.setdefault(name, {}).setdefault(number, {})[seed] = loss
        elif math.isinf(loss):
            found.dense_diverged.add(seed)
        else:
            found.dense[seed] = loss
    return found


def belongs(row: Measurement, key: SearchKey) -> bool:
    """Whether a row is of this search: its tickets, its controls or the dense runs behind it."""
    if row.arm in OWN_ARMS:
        return row.arm == own_arm(key) and search_key(row) == key
    if row.arm == "dense":  # trained once for all searches of its precision
        return row.precision in ("", key.precision)
    return all(
        own in (None, "") or own == asked for own, asked in zip(search_key(row), key, strict=True)
    )


def _bounded(losses: Sequence[float], margin: float) -> dict[str, Any]:
    """One level of one arm: seeds, diverged, mean and bounds of d, and the state."""
    diverged = sum(math.isinf(d) for d in losses)
    mean, lower, upper = bounds(losses)
    if diverged:
        mean = lower = upper = math.nan  # unbounded: no number stands for it
    enough = len(losses) >= LEAST_SEEDS
    if diverged or (enough and lower > margin):
        state = "worse"
    else:
        state = "matches" if enough and upper < margin else "undecided"
    return {
        "seeds": len(losses),
        "diverged": diverged,
        "d_mean": number_or_none(mean),
        "lower": number_or_none(lower),
        "upper": number_or_none(upper),
        "state": state,
    }


def _against_control(losses: Losses, arm: str, control: str, number: int) -> dict[str, Any]:
    """Control minus ticket at one level, paired by seed: how many pairs, the mean, p."""
    ticket, other = losses.at(arm, number), losses.at(control, number)
    pairs = [other[s] - ticket[s] for s in sorted(other) if math.isfinite(ticket.get(s, math.inf))]
    p = p_positive(pairs) if len(pairs) >= LEAST_SEEDS else math.nan
    mean = sum(pairs) / len(pairs) if pairs else math.nan
    return {"pairs": len(pairs), "gap_mean": number_or_none(mean), "p": p}


def read_levels(
    losses: Losses, arm: str, controls: Sequence[str], margin: float
) -> list[dict[str, Any]]:
    """Every level upwards in sparsity, with its state, its controls and whether it wins."""
    rounds = sorted(losses.sparsity, key=lambda number: (losses.sparsity[number], number))
    levels = [
        {
            "round": number,
            "sparsity": losses.sparsity[number][0],
            "sparsity_all": losses.sparsity[number][1],
            **_bounded(losses.above_dense(arm, number), margin),
            "controls": {},
        }
        for number in rounds
    ]
    for control in controls:
        tests = [_against_control(losses, arm, control, number) for number in rounds]
        for level, test, p in zip(levels, tests, holm([t["p"] for t in tests]), strict=True):
            own = _bounded(losses.above_dense(control, level["round"]), margin)
            worse = p < ALPHA_CONTROL  # False for nan: not tested
            matches = own["state"] == "matches"
            level["controls"][control] = {
                "state": "worse" if worse else "not worse" if matches else "undecided",
                "worse": worse,
                "matches_dense": matches,
                **test,
                "p": number_or_none(test["p"]),
                "p_holm": number_or_none(p),
                "d_mean": own["d_mean"],
                "diverged": own["diverged"],
            }
    for level in levels:
        beaten = {name for name, found in level["controls"].items() if found["worse"]}
        level["wins"] = level["state"] == "matches" and beaten.issuperset(needed_of(arm))
    return levels


def number_or_none(value: float) -> float | None:
    """A number that JSON has: None for nan and the infinities."""
    return value if math.isfinite(value) else None
