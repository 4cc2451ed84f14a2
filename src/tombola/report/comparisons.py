"""What do the tests say? Bounds of every level, and comparisons of arms with their intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tombola.metrics.verdict.sentences import percent
from tombola.report.families import shown_name
from tombola.report.tables import NONE, Table, align_cells, metric_label, number, printable


def comparisons_of(found: Any, metric: str | None) -> Table | None:
    """Every pair of arms that differ in one thing, in the metric that decides, best first.

    ``found``: the comparisons of summary.json. A ratio below 1 says that the first has less loss.
    """
    pairs = [each for each in found or () if isinstance(each, Mapping)]
    own = [each for each in pairs if each.get("metric") == metric]
    own.sort(key=lambda each: (each.get("ratio") or 0.0, each.get("difference") or 0.0))
    rows = []
    for each in own:
        low, high = [*(each.get("interval") or ()), None, None][:2]
        middle = each.get("ratio") if each.get("ratio") is not None else each.get("difference")
        rows.append((
            f"{shown_name(str(each.get('a')))} against {shown_name(str(each.get('b')))}",
            str(each.get("differs")).replace("_", " "),
            number(middle, 3), f"{number(low, 3)} to {number(high, 3)}",
            number(each.get("p"), 2), number(each.get("levels")), number(each.get("seeds")),
            _where(each.get("by_level")),
        ))  # fmt: skip
    if not rows or metric is None:
        return None
    columns = ("first against second", "differ in", "loss of first / second", "95% interval", "p",
               "levels", "seeds", "levels where p < 0.05")  # fmt: skip
    note = ("Paired by seed over equal levels, two-sided. Below 1 the first is better; differences "
            "where the metric may be negative. By level: p after Holm.")  # fmt: skip
    caption = f"Comparisons of {metric_label(metric)}"
    return Table(caption, columns, tuple(rows), note)


def _where(levels: Any) -> str:
    """The levels at which the two are told apart, and which is better there."""
    told = []
    for level in levels or ():
        p, ratio = level.get("p_holm"), level.get("ratio")
        if p is None or p >= 0.05:
            continue
        gap = level.get("difference") if ratio is None else ratio - 1
        word = "first" if (gap or 0.0) < 0 else "second"
        told.append(f"{percent(level['sparsity'])}\u00a0{word}")
    return ", ".join(told) or NONE


def bounds_table(summary: Mapping[str, Any]) -> str:
    """Every level of every verdict in the metric that decides, as aligned plain text."""
    metric = summary.get("primary")
    blocks = []
    for name, verdicts in (summary.get("arms") or {}).items():
        found = verdicts.get(metric)
        if found is None:
            continue
        rows = tuple(_bounds(level) for level in found["levels"])
        columns = ("sparsity", f"{found['judged_by']} to dense", "90% interval", "seeds", "so it")
        label = ": ".join(filter(None, (name.strip("/"), metric_label(str(metric)))))
        lines = align_cells(Table(label, columns, rows), tuple(range(len(columns))))
        blocks.append("\n".join([label, *lines]))
    return "\n\n".join("\n".join(map(printable, block.split("\n"))) for block in blocks)


def _bounds(level: Mapping[str, Any]) -> tuple[str, ...]:
    middle = level["difference"] if level["ratio"] is None else level["ratio"]
    between = f"{number(level['lower'])} to {number(level['upper'])}"
    word = {"matches": "matches", "worse": "is worse"}.get(level["state"], "is undecided")
    return percent(level["sparsity"]), number(middle), between, number(level["seeds"]), word
