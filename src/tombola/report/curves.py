"""Which points does each plot show? Rows of a search gathered into curves over the seeds."""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from tombola.metrics.intervals import interval
from tombola.metrics.verdict.losses import OWN_ARMS, SearchKey, belongs, search_name
from tombola.store.tables import DIVERGED, NOT_RUN, KeyColumns, Row, columns

DENSE, TICKET = "dense", "ticket"
ARMS = (
    DENSE,
    TICKET,
    "reinit",
    "shuffle",
    "erk",
    "reinit-chain",
    "compact",
    "random-channels",
    "thin-flops",
    "thin-parameters",
    "dense-long",
    "transferred",
    "transferred-shuffle",
    "transferred-reinit",
)
"""Known arms in the order in which they are shown; others follow by name."""


MOST_NAME_BYTES = 240
"""A file's name takes 255 bytes; some are for its kind."""
PART = re.compile(r".+-error|class-[0-9]+")
"""Metrics that are part of another number."""


class Drawn(NamedTuple):
    """A search as it is drawn: each share of channels that early-bird cut is one of its own."""

    method: str
    networks: str
    rewind_steps: int | None
    precision: str
    compress: float | None

    @property
    def name(self) -> str:
        """The search's name in summary.json, the same for all its shares."""
        return search_name(SearchKey(*self[:4]))

    def has(self, row: KeyColumns) -> bool:
        """Whether a row is of this search, and of this share."""
        alike = row.arm == DENSE or row.compress in (None, self.compress)
        if row.arm in OWN_ARMS:
            alike = row.compress == self.compress
        return alike and belongs(row, SearchKey(*self[:4]))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Point:
    """One arm at one level, over its training seeds."""

    round: int
    sparsity: float
    sparsity_all: float
    values: tuple[float, ...]
    """One finite value per seed that was trained to its end, by seed."""
    n: int
    """Images behind each value; 0 = unknown."""
    diverged: int
    """Seeds that diverged here."""
    not_run: int
    """Seeds that were not run, their chain having diverged before."""

    @property
    def mean(self) -> float:
        """Mean over the seeds; nan where none was trained to its end."""
        return interval(self.values).mean

    @property
    def bounds(self) -> tuple[float, float]:
        """Two-sided 95% t interval of the mean; (nan, nan) with fewer than two seeds."""
        _, low, high = interval(self.values)
        return low, high


@dataclass(frozen=True)
class Curve:
    """One arm of one search in one metric, its points by level."""

    search: Drawn
    arm: str
    metric: str
    points: tuple[Point, ...]


def arm_order(arm: str) -> tuple[int, str]:
    """Sort key: dense, ticket, the controls, then whatever else there is."""
    return (ARMS.index(arm) if arm in ARMS else len(ARMS), arm)


def key_of(row: KeyColumns) -> Drawn:
    """The search that a row of either table belongs to."""
    return Drawn(row.method, row.networks, row.rewind_steps, row.precision, row.compress)


def level_of(row: KeyColumns, focus: int) -> int:
    """The round at which a row's arm is told of: the focus; networks cut smaller have one level."""
    if row.arm == DENSE:
        return 0
    return focus if row.compress is None else 1


def bracket_of(verdict: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """(highest winning, first worse) sparsity of a verdict, None where there is none."""
    low, high = [*(verdict.get("bracket") or ()), None, None][:2]
    return low, high


def searches_of(rows: Sequence[Row]) -> list[Drawn]:
    """The searches to show: those that have tickets, else whatever the rows are of."""
    others = dict.fromkeys(key_of(row) for row in rows if row.arm != DENSE)
    own = dict.fromkeys(key_of(row) for row in rows if row.arm in OWN_ARMS)
    return list(own) or list(others) or [key_of(row) for row in rows[:1]]


def folder_of(search: Drawn, several_precisions: bool = False) -> str:
    """The folder of a search under samples/ and tickets/ where there are several (design 3.4)."""
    end = f"-{search.precision}" if several_precisions else ""
    networks = search.networks.replace(",", "+")
    where = f"r{search.rewind_steps or 0}" if search.compress is None else f"c{search.compress:g}"
    return file_name(f"{search.method}-{networks}-{where}{end}")


def file_name(text: str) -> str:
    """A name for one file or folder, whatever words it is made of: nowhere else, and not too long.

    What a search writes comes back as it is.
    """
    name = re.sub(r"[/\\\0]", "-", text)
    return name if len(os.fsencode(name)) <= MOST_NAME_BYTES else name[:40]


def label_of(search: Drawn, searches: Sequence[Drawn]) -> str:
    """What tells a search from the others, in words; empty where it is the only one.

    What does not apply to a search (nothing is rewound, no channels are cut) is not said.
    """
    words = {
        "method": search.method,
        "networks": f"pruned: {' + '.join(re.split('[+,]', search.networks))}",
        "rewind_steps": f"rewound to {search.rewind_steps}",
        "compress": f"compress {search.compress:g}" if search.compress is not None else "",
        "precision": search.precision,
    }
    values = {name: {getattr(other, name) for other in searches} - {None} for name in words}
    own = (name for name in words if len(values[name]) > 1 and getattr(search, name) is not None)
    return ", ".join(words[name] for name in own)


def curves_of(rows: Sequence[Row]) -> dict[str, list[Curve]]:
    """Metric -> its curves, search by search, the dense point first; the last step counts.

    Parts of another number (an error, the share of each class) have no curve of their own. Of a
    control that is drawn several times a seed's value is the mean of its draws.
    """
    measured = {row.metric for row in rows} - {DIVERGED, NOT_RUN}
    metrics = sorted(metric for metric in measured if not PART.fullmatch(metric))
    curves: dict[str, list[Curve]] = {metric: [] for metric in metrics}
    rows = over_draws(rows)
    for search in searches_of(rows):
        runs: dict[tuple[str, int], dict[str, dict[int, Row]]] = {}
        for row in rows:
            if search.has(row):
                found = runs.setdefault((row.arm, row.round), {}).setdefault(row.metric, {})
                earlier = found.get(row.seed)
                if earlier is None or (row.step or 0) >= (earlier.step or 0):
                    found[row.seed] = row
        arms = sorted({arm for arm, _ in runs}, key=arm_order)
        for metric in metrics:
            for arm in arms:
                levels = sorted(level for name, level in runs if name == arm)
                points = (_point(metric, runs[arm, level]) for level in levels)
                shown = tuple(point for point in points if point is not None)
                if any(point.values for point in shown):
                    curves[metric].append(Curve(search, arm, metric, shown))
    return {metric: found for metric, found in curves.items() if found}


def over_draws(rows: Sequence[Row]) -> list[Row]:
    """The rows with all draws of a control in one seed and metric as one, their finite mean."""
    found = [row for row in rows if row.draw is None]
    drawn: dict[tuple[Any, ...], list[Row]] = {}
    for row in (each for each in rows if each.draw is not None):
        place = (row.metric, row.step, *(getattr(row, name) for name in columns(KeyColumns)))
        drawn.setdefault(place, []).append(row)
    for group in drawn.values():
        value = interval([row.value for row in group]).mean
        found.append(replace(group[0], value=value, draw=None))
    return found


def _point(metric: str, found: dict[str, dict[int, Row]]) -> Point | None:
    seeds, events = found.get(metric, {}), (found.get(DIVERGED, {}), found.get(NOT_RUN, {}))
    some = next((row for group in (seeds, *events) for row in group.values()), None)
    if some is None:
        return None
    values = [seeds[seed].value for seed in sorted(seeds)]
    return Point(
        round=some.round,
        sparsity=some.sparsity,
        sparsity_all=some.sparsity_all,
        values=tuple(float(value) for value in values if math.isfinite(value)),
        n=some.n or 0 if seeds else 0,
        diverged=len(events[0]) + sum(not math.isfinite(value) for value in values),
        not_run=len(events[1]),
    )


def dense_of(curves: Iterable[Curve], search: Drawn) -> Point | None:
    """The dense network that a search is held against."""
    return next((c.points[0] for c in curves if c.search == search and c.arm == DENSE), None)


def curves_csv(curves: Iterable[Curve]) -> str:
    """The data of one plot as CSV, one line per point: mean, 95% bounds and the seeds' values."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = (*Drawn._fields, "arm", "metric", "round", "sparsity", "sparsity_all")
    writer.writerow((*keys, "seeds", "mean", "low95", "high95", "diverged", "not_run", "values"))
    for curve in curves:
        for point in curve.points:
            numbers = (point.mean, *point.bounds)
            bounds = ("" if math.isnan(number) else number for number in numbers)
            where = (*curve.search, curve.arm, curve.metric, point.round, point.sparsity)
            counts = (point.diverged, point.not_run, " ".join(map(repr, point.values)))
            writer.writerow((*where, point.sparsity_all, len(point.values), *bounds, *counts))
    return text.getvalue()
