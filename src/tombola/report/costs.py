"""What did it cost? Training and search of every arm, as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tombola.report.curves import DENSE, Drawn, arm_order, key_of, label_of, level_of
from tombola.report.tables import NONE, Table, mean_of, number
from tombola.store.tables import CostRow

_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def costs_of(costs: Sequence[CostRow], searches: Sequence[Drawn], focus: int) -> Table | None:
    """What an arm costs at one level, a mean over seeds: its training, and the search for it."""
    groups: dict[tuple[str, str], dict[int, CostRow]] = {}
    place: dict[tuple[str, str], tuple[object, ...]] = {}
    precisions = {search.precision for search in searches}
    for row in costs:
        dense, search = row.arm == DENSE, key_of(row)
        if row.round == level_of(row, focus):
            several = row.precision if len(precisions) > 1 else ""
            key = (row.arm, several if dense else label_of(search, searches))
            groups.setdefault(key, {}).setdefault(row.seed, row)  # a shared dense run counts once
            index = searches.index(search) if search in searches else len(searches)
            place.setdefault(key, (not dense, index, arm_order(row.arm)))
    unit, scale = unit_of([row.train_flops or 0 for row in costs]
                        + [row.search_flops or 0 for row in costs])  # fmt: skip
    lines = []
    for arm, label in sorted(groups, key=lambda key: place[key]):
        group = groups[arm, label].values()
        mean = {name: mean_of(getattr(row, name) for row in group) for name in _COSTS}
        total = [mean[f"train_{kind}"] + (mean[f"search_{kind}"] if arm != DENSE else 0.0)
                 for kind in ("flops", "seconds")]  # fmt: skip
        cells = [mean["train_flops"] / scale, mean["search_flops"] / scale, total[0] / scale,
                 mean["train_seconds"], mean["search_seconds"], total[1]]  # fmt: skip
        lines.append((
            ", ".join(filter(None, (arm, label))),
            *(number(cell, 3) for cell in cells),
            count(mean["nonzero_parameters"]), _bytes(mean["ticket_bytes"]),
        ))  # fmt: skip
    flops = f"{unit}FLOP"
    columns = ("arm", f"training, {flops}", f"search, {flops}", f"total, {flops}", "training, s",
               "search, s", "total, s", "weights left", "ticket file")  # fmt: skip
    return Table("Cost by arm", columns, tuple(lines), _NOTE) if lines else None


_NOTE = (
    "FLOPs are counted. Seconds are of the clock, with whatever else the machine did meanwhile: "
    "they are rough."
)


_COSTS = ("train_flops", "search_flops", "train_seconds", "search_seconds", "nonzero_parameters",
          "ticket_bytes")  # fmt: skip


def unit_of(values: Sequence[float]) -> tuple[str, float]:
    """One SI prefix for a whole column, from its largest value."""
    largest = max(values, default=0)
    power = min(int(math.log10(largest)) // 3, len(_PREFIXES) - 1) if largest >= 1 else 0
    return _PREFIXES[power], 1000.0**power


def count(value: float) -> str:
    """A whole number with commas, a dash for nan."""
    return NONE if math.isnan(value) else f"{value:,.0f}"


def _bytes(value: float) -> str:
    if math.isnan(value):
        return NONE
    return f"{value / 1e6:.2f}\u00a0MB" if value >= 1e6 else f"{value / 1e3:.1f}\u00a0kB"
