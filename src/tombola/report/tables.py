"""What do the numbers say? Verdicts, levels, costs and events as tables of plain strings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tombola.metrics.intervals import interval
from tombola.metrics.rules import metric_kind, metric_words
from tombola.metrics.verdict.sentences import margin_text, percent
from tombola.report.curves import (
    DENSE,
    TICKET,
    Curve,
    Drawn,
    Point,
    arm_order,
    bracket_of,
    dense_of,
    key_of,
    label_of,
    level_of,
)
from tombola.report.families import forced_text, shown_name
from tombola.store.tables import DIVERGED, NOT_RUN, Row
from tombola.store.unfinished import so_far

NONE = "-"


@dataclass(frozen=True)
class Table:
    """A table to be shown: the first column heads its row, the others may be numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def metric_label(metric: str) -> str:
    """A metric's name in words: ``fcd-mnist-1a2b3c4d`` keeps its judge in brackets."""
    kind, name = metric_kind(metric), metric_words(metric)
    return name if kind == metric else f"{name} ({metric.removeprefix(kind + '-')})"


def number(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits, in full between 1e-6 and 1e15; a dash for none."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}g}"
    if "e" not in text or not 1e-6 <= abs(value) < 1e15:
        return text
    if abs(value) >= 1:
        return f"{value:,.0f}"
    return f"{value:.{digits - 1 - math.floor(math.log10(abs(value)))}f}".rstrip("0")


def verdict_table(summary: Mapping[str, Any]) -> str:
    """The verdicts of summary.json as aligned plain text that ends in the same sentence.

    ASCII, no trailing newline; control characters that came with a name are dropped.
    """
    primary = summary.get("primary")
    arms = {
        shown_name(name): with_forced(found, summary, name)
        for name, found in (summary.get("arms") or {"": summary.get("verdicts") or {}}).items()
    }
    several = len(arms) > 1
    table = (
        searches_verdict(arms, primary)
        if several
        else verdicts_of(next(iter(arms.values())), primary)
    )
    floor = (summary.get("floor") or {}).get(primary)
    least = [f"Floor of {primary}: training images instead of samples get {number(floor)}."]
    star = ["* decides; the other lines are told beside it and decide nothing."]
    starred = primary is not None and any({*found} - {primary} for found in arms.values())
    lines = [*align_cells(table), *(star if starred and not several else [])]
    lines += [*(least if floor is not None else []), "", headline(summary)]
    return "\n".join(map(printable, lines))


def headline(summary: Mapping[str, Any]) -> str:
    """The verdict in a sentence, so far: that of the primary metric of the first search."""
    verdicts = summary.get("verdicts") or {}
    metric = summary.get("primary")
    metric = metric if metric in verdicts else next(iter(verdicts), None)
    found = verdicts.get(metric) or {}
    text = str(found.get("sentence") or "No verdict: no metric of these runs has a direction.")
    return so_far(summary, text)


def with_forced(
    verdicts: Mapping[str, Mapping[str, Any]], summary: Mapping[str, Any], name: str
) -> dict[str, Mapping[str, Any]]:
    """Verdicts of one search as a table has them, with what is said of cuts that were forced."""
    forced = forced_text(summary, name)
    return {metric: {**found, "forced": forced} for metric, found in verdicts.items()}


def verdicts_of(verdicts: Mapping[str, Mapping[str, Any]], primary: str | None) -> Table:
    """The verdicts of one search, the primary metric first."""
    order = sorted(verdicts, key=lambda name: (name != primary, name))
    rows = [
        (metric_label(metric) + (" *" if metric == primary else ""), *_cells(verdicts[metric]))
        for metric in order
    ]
    return Table("Verdict by metric", ("metric", *_VERDICT), tuple(rows), f"* decides. {_NOTE}")


def searches_verdict(
    searches: Mapping[str, Mapping[str, Mapping[str, Any]]], primary: str | None
) -> Table:
    """The verdicts of several searches by name, in the primary metric."""
    rows = [
        (name, *_cells(verdicts[primary]))
        for name, verdicts in searches.items()
        if primary is not None and primary in verdicts
    ]
    note = f"Decided by {metric_label(primary)}. {_NOTE}" if primary else ""
    return Table("Verdict by search", ("search", *_VERDICT), tuple(rows), note)


_VERDICT = (
    "verdict", "matches up to", "first worse", "controls", "margin", "seeds", "would match"
)  # fmt: skip


def _cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    """One verdict as cells, in the order of the columns."""
    low, high = bracket_of(found)
    up_to = NONE if low is None else percent(low)
    controls = found.get("controls") or {}
    return (
        "; ".join(filter(None, (str(found.get("state", NONE)), found.get("forced")))),
        f"at least\u00a0{up_to}" if found.get("at_least") else up_to,
        NONE if high is None else percent(high),
        ", ".join(f"{name}\u00a0{_state(value)}" for name, value in controls.items()) or NONE,
        _margin(found),
        number(found.get("seeds")),
        _planned(found.get("planning")),
    )


def _planned(planning: Any) -> str:
    """``5 / 12``: the seeds that would show a match if there is no loss, and at the loss seen."""
    if not isinstance(planning, Mapping) or planning.get("seeds_if_no_loss") is None:
        return NONE
    seen = planning.get("seeds_at_loss_seen")
    return f"{number(planning['seeds_if_no_loss'])} / {'none' if seen is None else number(seen)}"


def _state(control: Any) -> str:
    return str(control.get("state", NONE)) if isinstance(control, Mapping) else str(control)


def _margin(found: Mapping[str, Any]) -> str:
    """The margin in the metric's unit, and as a share where it was given as one."""
    if found.get("margin") is None:
        return NONE
    share = found.get("margin_share")
    text = number(found["margin"], 3)
    text = text if share is None else f"{text}\u00a0({number(100 * share, 3)}%)"
    noise = found.get("sampling_sd")
    return text if noise is None else f"{text}, judge\u00a0\u00b1\u00a0{number(noise, 2)}"


_NOTE = (
    "Would match: how many seeds would show a match if there is no loss / at the loss seen. Judge: "
    "how much one network varies when it is judged anew on other samples."
)
_SHORT = (0, 1, 2, 3, 5, 6, 7)
"""Columns of the verdict table that fit a terminal."""


def align_cells(table: Table, shown: Sequence[int] = _SHORT) -> list[str]:
    """A table's cells as lines of plain text; ``shown``: which columns."""
    cells = [tuple(row[index] for index in shown) for row in (table.columns, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
             for row in cells]  # fmt: skip
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def printable(line: str) -> str:
    """A line without what could steer a terminal."""
    line = line.replace("\u00a0", " ")
    return "".join(char for char in line if char.isprintable())


def levels_of(
    curves: Sequence[Curve],
    search: Drawn,
    verdict: Mapping[str, Any] | None,
    names: Mapping[int, str] | None = None,
) -> Table:
    """Every level of one search in one metric: mean and half the 95% interval of each arm.

    ``names``: what a level is called besides its sparsity, by round.
    """
    mine = [curve for curve in curves if curve.search == search and curve.arm != DENSE]
    arms = sorted({curve.arm for curve in mine}, key=arm_order)
    at = {(curve.arm, point.round): point for curve in mine for point in curve.points}
    states = {level["round"]: level for level in (verdict or {}).get("levels") or ()}
    dense = dense_of(curves, search)
    rows = []
    if dense is not None:
        rows.append(
            ("0%", "0", spread_text(dense), *[""] * (len(arms) - 1), *([""] if states else []))
        )
    for level in sorted({level for _, level in at}):
        some = next(at[arm, level] for arm in arms if (arm, level) in at)
        cells = [spread_text(at[arm, level]) if (arm, level) in at else NONE for arm in arms]
        state = states.get(level, {})
        word = "wins" if state.get("wins") else str(state.get("state", NONE))
        own = at.get((TICKET, level))
        if own is not None and not own.values and own.not_run and word == "undecided":
            word = "not run"  # a chain that stopped before; one that diverged is worse
        called = ", ".join(filter(None, (percent(some.sparsity), (names or {}).get(level))))
        rows.append((called, percent(some.sparsity_all), *cells,
                     *([word] if states else [])))  # fmt: skip
    if dense is not None:
        rows[0] = ("dense", "0%", *rows[0][2:])
    columns = (
        "sparsity",
        "of all parameters",
        *arms,
        *(["ticket against dense"] if states else []),
    )
    label = metric_label(mine[0].metric) if mine else ""
    return Table(f"{label[:1].upper()}{label[1:]} by level", columns, tuple(rows),
                 "Mean over training seeds and half of its 95% t interval.")  # fmt: skip


def spread_text(point: Point) -> str:
    """Mean and half of its 95% interval, and how many seeds are missing from it."""
    low, high = point.bounds
    lost = f"{point.diverged} diverged" if point.diverged else ""
    lost = lost or (f"{point.not_run} not run" if point.not_run else "")
    if not point.values:
        return lost or NONE
    half = f"\u00a0\u00b1\u00a0{number((high - low) / 2, 2)}" if math.isfinite(high) else ""
    return f"{number(point.mean)}{half}{f' ({lost})' if lost else ''}"


def spread_of(curves: Mapping[str, Sequence[Curve]], summary: Mapping[str, Any]) -> Table | None:
    """How much the dense network varies, over training seeds and sampling seeds, and the floor."""
    rows = []
    sampling_sd, floor, above, judged = (
        summary.get(key) or {} for key in ("sampling_sd", "floor", "above_floor", "judged")
    )
    for metric, found in curves.items():
        dense = next((curve.points[0] for curve in found if curve.arm == DENSE), None)
        if dense is None:
            continue
        sampled = sampling_sd.get(metric)
        values = dense.values
        mean = interval(values).mean
        squares = math.fsum((value - mean) ** 2 for value in values)
        sd = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan
        trained = f"{number(sd, 2)}\u00a0({len(values)}\u00a0seeds)"
        images = f"{dense.n:,}" if dense.n else NONE
        least = (number(floor.get(metric)), number(above.get(metric)))
        rows.append(
            (metric_label(metric), number(mean), trained, number(sampled, 2), *least, images)
        )
    if not rows:
        return None
    columns = ("metric", "dense mean", "SD over training seeds", "SD over sampling seeds",
               "training images instead", "above the floor", "images")  # fmt: skip
    note = ("Training seeds: dense networks trained anew. Sampling seeds: one dense network judged "
            "anew on other latents; a dash where nothing is drawn. Training images instead of "
            "samples: the floor of so small a sample, which no generator beats but by chance; "
            "above the floor: the dense mean less it.")  # fmt: skip
    if judged.get("reals"):
        note += f" Judged by {judged['reals']:,} real images."
    if 0 < judged.get("floor", 0) < judged.get("fakes", 0):
        note += (f" The floor is of all {judged['floor']:,} training images, fewer than the "
                 f"{judged['fakes']:,} samples, and so the higher for it.")  # fmt: skip
    return Table("Two kinds of spread, kept apart", columns, tuple(rows), note)


def classes_of(rows: Iterable[Row], searches: Sequence[Drawn], focus: int) -> Table | None:
    """Which classes samples are of: the share of each, dense and at one level, over the seeds."""
    shares: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in rows:
        number_of = row.metric.removeprefix("class-")
        if row.round == level_of(row, focus) and number_of != row.metric and number_of.isdecimal():
            label = "" if row.arm == DENSE else label_of(key_of(row), searches)
            shares.setdefault((row.arm, label), {}).setdefault(row.metric, []).append(row.value)
    if not shares:
        return None
    classes = sorted({metric for found in shares.values() for metric in found})
    order = sorted(shares, key=lambda key: (arm_order(key[0]), key[1]))
    lines = [
        (", ".join(filter(None, key)), *(number(100 * mean_of(shares[key].get(name, ())), 3)
                                         for name in classes))
        for key in order
    ]  # fmt: skip
    columns = ("arm", *(str(int(name.removeprefix("class-"))) for name in classes))
    note = "Percent of the samples, by their most probable class; mean over training seeds."
    return Table("Classes of the samples", columns, tuple(lines), note)


def stability_of(found: Any, metric: str | None) -> Table | None:
    """How much tickets vary over seeds against each other arm, by search."""
    rows = []
    for search, arms in found.items() if isinstance(found, Mapping) else ():
        for arm, ratio in arms.items():
            span = f"{number(ratio.get('low'), 3)} to {number(ratio.get('high'), 3)}"
            cells = (number(ratio.get("ratio"), 3), span, str(ratio.get("state", NONE)))
            own = "compact" if str(search).startswith("early-bird/") else TICKET
            rows.append(
                (f"{shown_name(search)}: {own} / {arm}", *cells, number(ratio.get("seeds")))
            )
    if not rows or metric is None:
        return None
    columns = ("standard deviations", "ratio", "95% interval", "the ticket is", "seeds")
    note = ("Over training seeds, pooled over the levels; the interval by a bootstrap over seeds. "
            "Undecided below ten seeds.")  # fmt: skip
    return Table(f"Spread of the {metric_label(metric)}", columns, tuple(rows), note)


def convergence_of(changes: Any, metric: str | None) -> Table | None:
    """How much the metric still changed over the last fifth of the training, by network."""
    if not isinstance(changes, Mapping) or not changes or metric is None:
        return None
    rows = [(str(name), f"{100 * float(share):+.2f}%") for name, share in changes.items()]
    note = "Mean over training seeds of (value at the end - value at 4/5) / value at 4/5."
    columns = ("network", "change over the last fifth")
    return Table(f"Change of the {metric_label(metric)}", columns, tuple(rows), note)


def events_of(rows: Iterable[Row]) -> Table | None:
    """Runs that diverged, with their step, and how many trainings were not run for it."""
    rows = list(rows)
    searches = list(dict.fromkeys(key_of(row) for row in rows if row.arm != DENSE))
    precisions = {search.precision for search in searches}
    lines = {}
    for row in (each for each in rows if each.metric == DIVERGED):
        search, dense = key_of(row), row.arm == DENSE
        # A dense training stands in every search of its precision, and all of them build on it.
        several = search.precision if len(precisions) > 1 else ""
        label = several if dense else label_of(search, searches)
        lost = sum(
            each.metric == NOT_RUN and each.seed == row.seed
            and (each.precision == row.precision if dense
                 else key_of(each) == search and each.arm == row.arm)
            for each in rows
        )  # fmt: skip
        name = " ".join(filter(None, (row.arm, label)))
        lines[name, row.seed, row.round] = (
            name, str(row.seed), str(row.round), percent(row.sparsity),
            NONE if row.step is None else f"{row.step:,}", str(lost),
        )  # fmt: skip
    columns = ("arm", "seed", "round", "sparsity", "at step", "trainings not run for it")
    return Table("Runs that diverged", columns, tuple(lines.values())) if lines else None


def collapsed_of(collapsed: Any, sparsity_at: Mapping[int, float]) -> Table | None:
    """Layers that keep no weight, from ``{"<search>/round<RR>": [names]}``."""
    rows = []
    for name, layers in collapsed.items() if isinstance(collapsed, Mapping) else ():
        search, _, level = str(name).rpartition("/")
        digits = level.removeprefix("round")
        sparsity = sparsity_at.get(int(digits)) if digits.isdecimal() else None
        if layers:
            at = level if sparsity is None else percent(sparsity)
            rows.append((search or str(name), at, ", ".join(map(str, layers))))
    columns = ("search", "sparsity", "layers without a weight")
    return Table("Collapsed layers", columns, tuple(rows)) if rows else None


def mean_of(values: Iterable[float | None]) -> float:
    """The mean of what is known; nan where nothing is."""
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan


def margin_sentence(verdict: Mapping[str, Any]) -> str:
    """What the dashed line of a plot is."""
    if verdict.get("margin") is None:
        return ""
    return f"The dashed line is the margin: {margin_text(verdict)} worse than dense."
