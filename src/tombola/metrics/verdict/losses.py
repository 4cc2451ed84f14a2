"""Which numbers is a verdict about? Rows of a table, gathered into losses on one scale."""

# ruff: noqa: D102 (the columns of Measurement are described where they are written)

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tombola.metrics.rules import Rule, metric_kind

DEFAULT_CONTROLS = ("reinit", "shuffle")
CHANNEL_CONTROLS = ("random-channels", "thin-flops", "thin-parameters")
"""What a smaller network must beat to win: its own widths at random, and thin dense networks."""
OWN_ARMS = ("ticket", "compact")
"""The arms that a search is about: tickets of single weights, and networks cut smaller."""
SIGNED = ("elbo", "kid", "kcd")
"""Kinds of metrics that may be negative: judged by their differences, whatever the margin is."""


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


class Level(NamedTuple):
    """One level of sparsity of a search: a round, or a share of channels that was cut."""

    round: int
    """1 for all that have a ``compress``."""
    compress: float | None


def search_key(row: Measurement) -> SearchKey:
    """The search that a row belongs to."""
    return SearchKey(row.method, row.networks, row.rewind_steps, row.precision)


def searches_in(rows: Iterable[Measurement]) -> list[SearchKey]:
    """The searches whose tickets are among the rows, in order of appearance."""
    return list(dict.fromkeys(search_key(row) for row in rows if row.arm in OWN_ARMS))


def search_name(key: SearchKey) -> str:
    """``method/networks/r<rewind>/<precision>``; of a foreign table only what it tells apart."""
    if not key.networks and key.rewind_steps is None:
        return "/".join(filter(None, (key.method, key.precision))) or "all"
    return f"{key.method}/{key.networks}/r{key.rewind_steps or 0}/{key.precision}"


def own_arm(key: SearchKey) -> str:
    """The arm that a search is about."""
    return "compact" if key.method == "early-bird" else "ticket"


def default_controls(arm: str) -> tuple[str, ...]:
    """The default controls of an arm, each of which it must beat to win."""
    return CHANNEL_CONTROLS if arm == "compact" else DEFAULT_CONTROLS


def belongs(row: Measurement, key: SearchKey) -> bool:
    """Whether a row is of this search: its tickets, its controls or the dense runs behind it."""
    if row.arm in OWN_ARMS:
        return row.arm == own_arm(key) and search_key(row) == key
    if row.arm == "dense":  # trained once for all searches of its precision
        return row.precision in ("", key.precision)
    return all(
        own in (None, "") or own == asked for own, asked in zip(search_key(row), key, strict=True)
    )


Draws = dict[int, dict[int, float]]
"""Seed -> draw (1 where there is but one) -> x; infinite where the training diverged."""


@dataclass
class Losses:
    """One metric of one search on the scale it is judged on: lower is better throughout."""

    rule: Rule
    log: bool
    """Whether x is the logarithm of the value."""
    dense: dict[int, float] = field(default_factory=dict)
    dense_diverged: set[int] = field(default_factory=set)
    arms: dict[str, dict[Level, Draws]] = field(default_factory=dict)
    sparsity: dict[Level, tuple[float, float]] = field(default_factory=dict)

    @property
    def levels(self) -> list[Level]:
        """The levels of the search, upwards in sparsity."""
        return sorted(self.sparsity, key=lambda level: (self.sparsity[level], level.round))

    @property
    def dense_mean(self) -> float:
        """The mean of the dense values in the metric's own unit; nan without any."""
        values = [self.value_of(x) for x in self.dense.values()]
        return math.fsum(values) / len(values) if values else math.nan

    @property
    def width(self) -> float:
        """The margin on the scale of x."""
        if self.log:
            return math.log1p(self.rule.margin)
        return self.rule.margin * abs(self.dense_mean) if self.rule.share else self.rule.margin

    def value_of(self, x: float) -> float:
        """A loss back in the metric's own unit."""
        x = x if self.rule.better == "lower" else -x
        return math.exp(x) if self.log else x

    def at(self, arm: str, level: Level) -> Draws:
        """What an arm has at a level, for the seeds whose dense run is sound."""
        found = self.arms.get(arm, {}).get(level, {})
        return {seed: draws for seed, draws in found.items() if seed in self.dense}

    def first_at(self, arm: str, level: Level) -> dict[int, float]:
        """Seed -> x of an arm that is drawn once; of several draws the first."""
        return {seed: draws[min(draws)] for seed, draws in self.at(arm, level).items()}

    def above_dense(self, arm: str, level: Level) -> dict[int, float]:
        """Seed -> d, the loss against the dense run of that seed; the mean of several draws."""
        return {
            seed: math.fsum(draws.values()) / len(draws) - self.dense[seed]
            for seed, draws in sorted(self.at(arm, level).items())
        }


Run = tuple[str, Level, int, int]
"""(arm, level, seed, draw)."""
_DENSE = Level(0, None)


def gather(
    rows: Iterable[Measurement], metric: str, key: SearchKey, rule: Rule, *, raw: bool = False
) -> Losses:
    """The losses of one search in one metric; arms but the ticket may leave columns of key empty.

    The judged value is that of the last step. The sparsity of a level is the first seed's: smaller
    networks differ a little from seed to seed. ``raw``: differences also where a ratio would do.
    """
    arm = own_arm(key)
    found: dict[Run, tuple[int, float]] = {}
    sparsity: dict[Level, tuple[float, float]] = {}
    diverged, not_run = set[Run](), set[Run]()
    for row in rows:
        if not belongs(row, key):
            continue
        level = _DENSE if row.arm == "dense" else Level(row.round, row.compress)
        run = (row.arm, level, row.seed, getattr(row, "draw", None) or 1)
        if row.arm == arm:
            sparsity.setdefault(level, (row.sparsity, row.sparsity_all))
        if row.metric == "diverged":
            diverged.add(run)
        elif row.metric == "not-run":
            not_run.add(run)
        elif row.metric == metric:
            value = row.value if math.isfinite(row.value) else math.nan
            found[run] = max(found.get(run, (-1, 0.0)), (row.step or 0, value))
    diverged |= _lost(not_run, diverged) | {run for run, (_, v) in found.items() if math.isnan(v)}
    values = {run: value for run, (_, value) in found.items() if run not in diverged}
    log = not raw and rule.share and metric_kind(metric) not in SIGNED
    log = log and all(value > 0 for value in values.values())
    sign = 1.0 if rule.better == "lower" else -1.0
    losses = Losses(rule, log, sparsity=sparsity)
    for run in sorted([*values, *diverged], key=_order):
        name, level, seed, draw = run
        value = values.get(run, math.inf)
        x = math.inf if run in diverged else sign * (math.log(value) if log else value)
        if name != "dense":
            losses.arms.setdefault(name, {}).setdefault(level, {}).setdefault(seed, {})[draw] = x
        elif run in diverged:
            losses.dense_diverged.add(seed)
        else:
            losses.dense[seed] = x
    for seed in losses.dense_diverged:
        losses.dense.pop(seed, None)
    return losses


def _order(run: Run) -> tuple[str, int, float, int, int]:
    name, level, seed, draw = run
    return name, level.round, level.compress or 0.0, seed, draw


def _lost(not_run: Iterable[Run], diverged: Iterable[Run]) -> set[Run]:
    """The runs that were not run since an earlier round of their chain diverged."""
    fell: dict[tuple[str, int, int], int] = {}
    for name, level, seed, draw in diverged:
        place = (name, seed, draw)
        fell[place] = min(level.round, fell.get(place, level.round))
    return {run for run in not_run if fell.get((run[0], run[2], run[3]), math.inf) < run[1].round}


def number_or_none(value: float) -> float | None:
    """A number that JSON has: None for nan and the infinities."""
    return value if math.isfinite(value) else None
