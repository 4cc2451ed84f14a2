"""What do the numbers say? Verdicts, levels, costs and events as tables of plain strings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tombola.metrics.sentences import margin_text, percent
from tombola.metrics.statistics import SearchKey, interval, metric_kind, search_key
from tombola.report.curves import DENSE, TICKET, Curve, Point, arm_order, dense_of, label_of
from tombola.runs.results import DIVERGED, NOT_RUN, CostRow, Row

NONE = "-"
_LABELS = {
    "reconstruction_error": "reconstruction error",
    "elbo": "ELBO",
    "fid": "FID",
    "kid": "KID",
    "is": "inception score",
    "fcd": "Frechet classifier distance",
    "kcd": "kernel classifier distance",
    "cs": "classifier score",
    "kl": "KL divergence",
}
_PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


@dataclass(frozen=True)
class Table:
    """A table to be shown: the first column heads its row, the others may be numbers."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def metric_label(metric: str) -> str:
    """A metric's name in words: ``fcd-mnist-1a2b3c4d`` keeps its judge in brackets."""
    kind = metric_kind(metric)
    name = _LABELS.get(kind, kind.replace("_", " "))
    return name if kind == metric else f"{name} ({metric.removeprefix(kind + '-')})"


def number(value: Any, digits: int = 4) -> str:
    """A number with so many significant digits; a dash for null and nan."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        return NONE
    text = f"{value:.{digits}g}"
    return text if "e" not in text or abs(value) >= 1e15 or abs(value) < 1e-4 else f"{value:,.0f}"


def verdict_table(summary: Mapping[str, Any]) -> str:
    """The verdicts of summary.json as aligned plain text that ends in the same sentence.

    ASCII, no trailing newline; control characters that came with a name are dropped.
    """
    arms = _arms(summary)
    lines = []
    for name, verdicts in arms.items():
        table = verdicts_of(verdicts, summary.get("primary"))
        if len(arms) > 1:
            lines += [name]
        lines += [*_aligned(table), ""]
    return "\n".join(_printable(line) for line in [*lines, headline(summary)])


def headline(summary: Mapping[str, Any]) -> str:
    """The verdict in a sentence: that of the primary metric of the first search."""
    verdicts = summary.get("verdicts") or {}
    found = verdicts.get(summary.get("primary")) or next(iter(verdicts.values()), {})
    return str(found.get("sentence") or "No verdict: no metric of these runs has a direction.")


def verdicts_of(verdicts: Mapping[str, Mapping[str, Any]], primary: str | None) -> Table:
    """The verdicts of one search, the primary metric first."""
    rows = []
    for metric in sorted(verdicts, key=lambda name: (name != primary, name)):
        found = verdicts[metric]
        low, high = (list(found.get("bracket") or ()) + [None, None])[:2]
        up_to = NONE if low is None else percent(low)
        if found.get("at_least"):
            up_to = f"at least {up_to}"
        controls = found.get("controls") or {}
        rows.append((
            metric_label(metric) + (" *" if metric == primary else ""),
            str(found.get("state", NONE)),
            up_to,
            NONE if high is None else percent(high),
            ", ".join(f"{name} {_state(value)}" for name, value in controls.items()) or NONE,
            _margin(found),
            number(found.get("decidable_margin"), 3),
            number(found.get("seeds")),
        ))  # fmt: skip
    columns = ("metric", "verdict", "wins up to", "first worse", "controls", "margin",
               "decidable", "seeds")  # fmt: skip
    return Table("Verdict by metric", columns, tuple(rows), "* decides the verdict")


def _state(control: Any) -> str:
    return str(control.get("state", NONE)) if isinstance(control, Mapping) else str(control)


def _margin(found: Mapping[str, Any]) -> str:
    """The margin in the metric's unit, and as a share where it was given as one."""
    if found.get("margin") is None:
        return NONE
    share = found.get("margin_share")
    text = number(found["margin"], 3)
    return text if share is None else f"{text} ({number(100 * share, 3)}%)"


def _arms(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return dict(summary.get("arms") or {"": summary.get("verdicts") or {}})


def _aligned(table: Table) -> list[str]:
    cells = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
             for row in cells]  # fmt: skip
    return [lines[0], "  ".join("-" * width for width in widths), *lines[1:]]


def _printable(line: str) -> str:
    return "".join(char for char in line if char.isprintable())


def levels_of(
    curves: Sequence[Curve], search: SearchKey, verdict: Mapping[str, Any] | None
) -> Table:
    """Every level of one search in one metric: mean and half the 95% interval of each arm."""
    mine = [curve for curve in curves if curve.search == search and curve.arm != DENSE]
    arms = sorted({curve.arm for curve in mine}, key=arm_order)
    at = {(curve.arm, point.round): point for curve in mine for point in curve.points}
    states = {level["round"]: level for level in (verdict or {}).get("levels") or ()}
    dense = dense_of(curves, search)
    rows = []
    if dense is not None:
        rows.append(("0%", "0", _spread(dense), *[""] * (len(arms) - 1), *([""] if states else [])))
    for level in sorted({level for _, level in at}):
        some = next(at[arm, level] for arm in arms if (arm, level) in at)
        cells = [_spread(at[arm, level]) if (arm, level) in at else NONE for arm in arms]
        state = states.get(level, {})
        word = "wins" if state.get("wins") else str(state.get("state", NONE))
        rows.append((percent(some.sparsity), percent(some.sparsity_all), *cells,
                     *([word] if states else [])))  # fmt: skip
    if dense is not None:
        rows[0] = ("dense", "0%", *rows[0][2:])
    columns = ("sparsity", "of all parameters", *arms, *(["ticket against dense"] if states else []))
    label = metric_label(mine[0].metric) if mine else ""
    return Table(f"{label[:1].upper()}{label[1:]} by level", columns, tuple(rows),
                 "Mean over training seeds and half of its 95% t interval.")  # fmt: skip


def _spread(point: Point) -> str:
    low, high = point.bounds
    lost = f"{point.diverged} diverged" if point.diverged else ""
    lost = lost or (f"{point.not_run} not run" if point.not_run else "")
    if not point.values:
        return lost or NONE
    half = f" \u00b1 {number((high - low) / 2, 2)}" if math.isfinite(high) else ""
    return f"{number(point.mean)}{half}{f' ({lost})' if lost else ''}"


def spread_of(
    curves: Mapping[str, Sequence[Curve]], sampling_sd: Mapping[str, Any] | None
) -> Table | None:
    """How much the dense network varies: over training seeds, and over sampling seeds of one."""
    rows = []
    for metric, found in curves.items():
        dense = next((curve.points[0] for curve in found if curve.arm == DENSE), None)
        if dense is None:
            continue
        sampled = (sampling_sd or {}).get(metric)
        values = dense.values
        mean = interval(values).mean
        squares = math.fsum((value - mean) ** 2 for value in values)
        sd = math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan
        rows.append((metric_label(metric), number(mean), f"{number(sd, 2)} ({len(values)} seeds)",
                     number(sampled, 2), str(dense.n or NONE)))  # fmt: skip
    if not rows:
        return None
    columns = ("metric", "dense mean", "SD over training seeds", "SD over sampling seeds", "images")
    note = ("Training seeds: dense networks trained anew. Sampling seeds: one dense network judged "
            "anew on other latents; a dash where nothing is drawn.")  # fmt: skip
    return Table("Two kinds of spread, kept apart", columns, tuple(rows), note)


def convergence_of(
    rows: Sequence[Row], metric: str | None, search: SearchKey, focus: int
) -> Table | None:
    """How much the metric still changed between the last two steps at which it was judged."""
    lines = []
    last = max((row.round for row in rows), default=0)
    for arm, level in dict.fromkeys([(DENSE, 0), (TICKET, focus), (TICKET, last)]):
        seeds: dict[int, dict[int, float]] = {}
        for row in rows:
            own = arm == DENSE or search_key(row) == search
            if (row.arm, row.round, row.metric) == (arm, level, metric) and own:
                seeds.setdefault(row.seed, {})[row.step or 0] = row.value
        pairs = [sorted(steps.items())[-2:] for steps in seeds.values() if len(steps) > 1]
        changes = [(b - a) / abs(a) for (_, a), (_, b) in pairs if a]
        if changes:
            (first, _), (end, _) = pairs[0]
            sparsity = next(r.sparsity for r in rows if (r.arm, r.round) == (arm, level))
            lines.append((arm if arm == DENSE else f"{arm} at {percent(sparsity)}",
                          f"{first:,} to {end:,}", f"{100 * interval(changes).mean:+.2f}%",
                          f"{100 * max(changes, key=abs):+.2f}%"))  # fmt: skip
    if not lines or metric is None:
        return None
    label = metric_label(metric)
    columns = ("network", "steps", "mean change", "largest of a seed")
    return Table(f"Converged? Change of the {label}", columns, tuple(lines))


def events_of(rows: Iterable[Row]) -> Table | None:
    """Runs that diverged, with their step, and how many later rounds were not run for it."""
    rows = list(rows)
    lost: dict[tuple[SearchKey, str, int], int] = {}
    for row in rows:
        if row.metric == NOT_RUN:
            key = (search_key(row), row.arm, row.seed)
            lost[key] = lost.get(key, 0) + 1
    searches = list(dict.fromkeys(search_key(row) for row in rows if row.arm != DENSE))
    lines = [
        (" ".join(filter(None, (row.arm, label_of(search_key(row), searches)))), str(row.seed),
         str(row.round), percent(row.sparsity), NONE if row.step is None else f"{row.step:,}",
         str(lost.get((search_key(row), row.arm, row.seed), 0)))
        for row in rows if row.metric == DIVERGED
    ]  # fmt: skip
    columns = ("arm", "seed", "round", "sparsity", "at step", "later rounds not run")
    return Table("Runs that diverged", columns, tuple(lines)) if lines else None


def collapsed_of(collapsed: Any, sparsity_at: Mapping[int, float]) -> Table | None:
    """Layers that keep no weight, by ``<arm>/<round>``."""
    rows = []
    for name, layers in (collapsed.items() if isinstance(collapsed, Mapping) else ()):
        arm, _, level = str(name).rpartition("/")
        sparsity = sparsity_at.get(int(level)) if level.isdigit() else None
        if layers:
            at = NONE if sparsity is None else percent(sparsity)
            rows.append((arm or str(name), level, at, ", ".join(map(str, layers))))
    columns = ("arm", "round", "sparsity", "layers without a weight")
    return Table("Collapsed layers", columns, tuple(rows)) if rows else None


def costs_of(costs: Sequence[CostRow], searches: Sequence[SearchKey], focus: int) -> Table | None:
    """What an arm costs at one level, a mean over seeds: its own training, and the search for it."""
    groups: dict[tuple[SearchKey, str], list[CostRow]] = {}
    for row in costs:
        if row.round == (0 if row.arm == DENSE else focus):
            groups.setdefault((search_key(row), row.arm), []).append(row)
    order = sorted(groups, key=lambda key: (key[1] != DENSE, _place(key[0], searches), arm_order(key[1])))
    unit, scale = _unit([row.train_flops or 0 for row in costs]
                        + [row.search_flops or 0 for row in costs])  # fmt: skip
    lines = []
    for search, arm in order:
        group = groups[search, arm]
        mean = {name: _mean(getattr(row, name) for row in group) for name in _COSTS}
        total = [mean[f"train_{kind}"] + (mean[f"search_{kind}"] if arm != DENSE else 0.0)
                 for kind in ("flops", "seconds")]  # fmt: skip
        cells = [mean["train_flops"] / scale, mean["search_flops"] / scale, total[0] / scale,
                 mean["train_seconds"], mean["search_seconds"], total[1]]  # fmt: skip
        label = label_of(search, searches) if arm != DENSE else search.precision
        several = len({s.precision for s in searches}) > 1 or arm != DENSE
        lines.append((
            ", ".join(filter(None, (arm, label if several else ""))),
            *(number(cell, 3) for cell in cells),
            _count(mean["nonzero_parameters"]), _bytes(mean["ticket_bytes"]),
        ))  # fmt: skip
    flops = f"{unit}FLOP"
    columns = ("arm", f"training, {flops}", f"search, {flops}", f"total, {flops}", "training, s",
               "search, s", "total, s", "weights left", "ticket file")  # fmt: skip
    return Table("Cost by arm", columns, tuple(lines)) if lines else None


_COSTS = ("train_flops", "search_flops", "train_seconds", "search_seconds", "nonzero_parameters",
          "ticket_bytes")  # fmt: skip


def _place(search: SearchKey, searches: Sequence[SearchKey]) -> int:
    return searches.index(search) if search in searches else len(searches)


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else math.nan


def _unit(values: Sequence[float]) -> tuple[str, float]:
    """One SI prefix for a whole column, from its largest value."""
    largest = max(values, default=0)
    power = min(int(math.log10(largest)) // 3, len(_PREFIXES) - 1) if largest >= 1 else 0
    return _PREFIXES[power], 1000.0**power


def _count(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:,.0f}"


def _bytes(value: float) -> str:
    if math.isnan(value):
        return NONE
    return f"{value / 1e6:.2f} MB" if value >= 1e6 else f"{value / 1e3:.1f} kB"


def margin_sentence(verdict: Mapping[str, Any]) -> str:
    """What the dashed line of a plot is."""
    if verdict.get("margin") is None:
        return ""
    return f"The dashed line is the margin: {margin_text(verdict)} worse than dense."
