"""What does each technique give, and what does it cost? The numbers of the paper's table 2.

Totals are of the training and of the search for the ticket together. Of a method that prunes
weights in rounds one ticket counts: the sparsest that wins, else that matches, else the last.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tombola.metrics.intervals import interval
from tombola.metrics.verdict.losses import OWN_ARMS
from tombola.metrics.verdict.sentences import percent
from tombola.report.costs import count, unit_of
from tombola.report.curves import DENSE, TICKET, Curve, Drawn, Point, arm_order, key_of
from tombola.report.tables import NONE, Table, mean_of, metric_label, number, spread_text
from tombola.store.tables import CostRow


@dataclass(frozen=True, kw_only=True)
class Technique:
    """One network that a user could train instead of the dense one, over its training seeds."""

    search: Drawn
    arm: str
    why: str
    """Why this level of several: wins, matches, last level; empty where there is no choice."""
    point: Point
    """The primary metric."""
    flops: tuple[float, ...]
    """Training and search together, one a seed; empty = not recorded. 1 MAC = 2 FLOPs."""
    seconds: tuple[float, ...]
    """Training and search together, one a seed."""
    parameters: float
    """Weights that the network has, masked ones too; nan = not recorded."""
    nonzero: float


def techniques_of(
    curves: Iterable[Curve],
    costs: Iterable[CostRow],
    verdicts: Mapping[Drawn, Mapping[str, Any]],
) -> list[Technique]:
    """The dense networks, tickets of weights, and every arm whose channels are cut or fewer.

    ``curves``: those of the primary metric, not merged. ``verdicts``: on that metric, by search.
    """
    paid: dict[tuple[Any, ...], dict[int, CostRow]] = {}
    for row in costs:
        paid.setdefault(_place(key_of(row), row.arm, row.round), {})[row.seed] = row
    found: dict[tuple[Any, ...], Technique] = {}
    for curve in curves:
        of_channels = curve.search.compress is not None
        if curve.arm != DENSE and not of_channels and curve.arm not in OWN_ARMS:
            continue
        several = curve.arm != DENSE and not of_channels
        point, why = (_chosen(curve, verdicts.get(curve.search, {})) if several
                      else (curve.points[0], ""))  # fmt: skip
        place = _place(curve.search, curve.arm, point.round)
        if point.values and place not in found:
            rows = list(paid.get(place, {}).values())
            found[place] = _technique(curve, point, why, rows)
    return sorted(found.values(), key=_order)


def _place(search: Drawn, arm: str, number: int) -> tuple[Any, ...]:
    """What a network is known by in both tables; the dense one is of all searches."""
    return (search.precision,) if arm == DENSE else (search, arm, number)


def _chosen(curve: Curve, verdict: Mapping[str, Any]) -> tuple[Point, str]:
    """The level that stands for a search in rounds, and why it does."""
    for name, why in (("sparsity", "wins"), ("matches_up_to", "matches")):
        for point in curve.points:
            if verdict.get(name) is not None and point.sparsity == verdict[name]:
                return point, why
    whole = [point for point in curve.points if point.values]
    last = (whole or curve.points)[-1]
    return last, "last level" if len(curve.points) > 1 else ""


def _technique(curve: Curve, point: Point, why: str, rows: Sequence[CostRow]) -> Technique:
    def total(kind: str) -> tuple[float, ...]:
        pairs = [(getattr(row, f"train_{kind}"), getattr(row, f"search_{kind}")) for row in rows]
        return tuple(float(own + (search or 0)) for own, search in pairs if own is not None)

    return Technique(
        search=curve.search,
        arm=curve.arm,
        why=why,
        point=point,
        flops=total("flops"),
        seconds=total("seconds"),
        parameters=mean_of(row.parameters for row in rows),
        nonzero=mean_of(row.nonzero_parameters for row in rows),
    )


def _order(technique: Technique) -> tuple[Any, ...]:
    """Dense first, then masked tickets, networks cut smaller, and their opponents."""
    rank = {DENSE: 0, TICKET: 1}.get(technique.arm, 2)
    search = technique.search
    return rank, arm_order(technique.arm), search.compress or 0.0


def name_of(technique: Technique, searches: Sequence[Drawn]) -> str:
    """A technique in words: arm or method, then what tells it from the others."""
    search, arm = technique.search, technique.arm
    several = {name: len({getattr(s, name) for s in searches} - {None}) > 1
               for name in ("networks", "rewind_steps", "precision")}  # fmt: skip
    if arm == DENSE:
        words = ["unpruned"]
    elif search.compress is not None:
        words = ["early-bird" if arm == "compact" else arm, f"compress {search.compress:g}"]
    else:
        words = [search.method, f"{percent(technique.point.sparsity)} sparsity", technique.why]
    if arm != DENSE:
        words.append(f"pruned: {search.networks}" if several["networks"] else "")
        rewound = several["rewind_steps"] and search.rewind_steps is not None
        words.append(f"rewound to {search.rewind_steps}" if rewound else "")
    words.append(search.precision if several["precision"] else "")
    return ", ".join(filter(None, words))


def techniques_table(
    techniques: Sequence[Technique], searches: Sequence[Drawn], metric: str
) -> Table | None:
    """One row a technique: quality, weights, FLOPs and seconds, and both as shares of unpruned."""
    if not techniques:
        return None
    unit, scale = unit_of([value for each in techniques for value in each.flops])
    whole = [each for each in techniques if each.arm == DENSE][:1]
    of_flops = mean_of(value for each in whole for value in each.flops)
    of_seconds = mean_of(value for each in whole for value in each.seconds)
    rows = []
    for each in techniques:
        flops, seconds = mean_of(each.flops), mean_of(each.seconds)
        rows.append((
            name_of(each, searches), spread_text(each.point),
            count(each.parameters), count(each.nonzero),
            number(flops / scale, 3), _share(flops, of_flops),
            _with_interval(each.seconds, 3), _share(seconds, of_seconds),
        ))  # fmt: skip
    columns = ("technique", metric_label(metric), "weights", "not zero", f"{unit}FLOP",
               "of unpruned", "seconds", "of unpruned")  # fmt: skip
    note = (
        "Means over training seeds; of the metric and of the seconds also half of the 95% t "
        "interval. FLOPs and seconds are of the training and of the search for it together; the "
        "shares are of the first row. Masked tickets keep all their weights, most of them zero."
    )
    return Table("What each technique costs", columns, tuple(rows), note)


def _with_interval(values: Sequence[float], digits: int = 4) -> str:
    if not values:
        return NONE
    mean, low, high = interval(values)
    half = f"\u00a0\u00b1\u00a0{number((high - low) / 2, 2)}" if math.isfinite(high) else ""
    return f"{number(mean, digits)}{half}"


def _share(value: float, whole: float) -> str:
    """Percent; a dash where one of them is not known."""
    text = number(100 * value / whole, 3) if whole else NONE
    return text if text == NONE else f"{text}%"


def techniques_csv(techniques: Iterable[Technique], measures: Sequence[str], metric: str) -> str:
    """The data of one plot as CSV: a line a technique and measure, with mean and 95% bounds.

    ``measures``: of ``metric``, ``flops`` and ``seconds`` those that the plot shows.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow((*Drawn._fields, "arm", "round", "sparsity", "measure", "seeds", "mean",
                     "low95", "high95", "values"))  # fmt: skip
    names = {"metric": metric, "flops": "total_flops", "seconds": "total_seconds"}
    for each in techniques:
        for measure in measures:
            values = values_of(each, measure)
            numbers = interval(values) if values else (math.nan,) * 3
            where = (*each.search, each.arm, each.point.round, each.point.sparsity)
            bounds = ("" if math.isnan(number) else number for number in numbers)
            writer.writerow((*where, names[measure], len(values), *bounds,
                             " ".join(map(repr, values))))  # fmt: skip
    return text.getvalue()


def values_of(technique: Technique, measure: str) -> tuple[float, ...]:
    """One value a seed of a measure: metric, flops or seconds."""
    if measure == "metric":
        return technique.point.values
    return technique.flops if measure == "flops" else technique.seconds
