"""What does quality look like against sparsity? One metric as SVG, to be put inside the page.

Colours in the SVG are tokens that become CSS variables, so that one drawing serves light, dark and
paper; its text stays text. Every plot is drawn twice, for a wide and for a narrow screen.
"""

from __future__ import annotations

import html
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from tombola.metrics.statistics import SearchKey
from tombola.report.curves import ARMS, DENSE, TICKET, Curve, Point, label_of

INK, FAINT, PAPER = "#010203", "#010204", "#010205"
SERIES = tuple(f"#0103{index:02d}" for index in range(7))
_CSS = {INK: "currentColor", FAINT: "var(--rule)", PAPER: "var(--paper)"} | {
    token: f"var(--series-{index})" for index, token in enumerate(SERIES)
}
_MARKERS = "osD^vPX"
_TICKS = (0, 20, 40, 60, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99)
_LOG_RATIO = 8.0
_STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
}


@dataclass(frozen=True, kw_only=True)
class Plot:
    """What one plot shows besides its curves."""

    metric: str
    label: str
    """The axis label."""
    verdicts: Mapping[SearchKey, Mapping[str, Any]]
    """Search -> verdict on this metric, as in summary.json; missing = curve only."""
    by_all: bool
    """Whether x is the sparsity of all parameters, not of the prunable ones."""


def x_of(sparsity: float) -> float:
    """Where a sparsity stands on the axis: -log10 of the density, so that levels are even."""
    return -math.log10(max(1 - sparsity, 1e-6))


def draw(curves: Sequence[Curve], plot: Plot, *, narrow: bool) -> str:
    """One metric of every arm against sparsity -> an ``<svg>`` element (no script, no links)."""
    size = (3.75, 4.1) if narrow else (7.4, 4.15)
    with mpl.rc_context(_STYLE | {"svg.hashsalt": f"{plot.metric}-{narrow}"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        searches = list(dict.fromkeys(curve.search for curve in curves))
        _scale(axes, curves, plot)
        _x_axis(axes, curves, plot, narrow)
        if len(searches) == 1:
            _bracket(axes, curves, plot, searches[0])
        dense_keys = {curve.search.precision: curve for curve in curves if curve.arm == DENSE}
        for curve in dense_keys.values():
            _dense(axes, curve.points[0], plot.verdicts.get(curve.search, {}))
        arms = [curve for curve in curves if curve.arm != DENSE]
        for index, curve in enumerate(arms):
            _curve(axes, curve, plot, (index, len(arms)), searches)
        axes.set_ylabel(plot.label)
        columns = min(2 if narrow else 4, max(1, len(axes.get_legend_handles_labels()[0])))
        if len(searches) > 1:
            columns = 1 if narrow else 2
        figure.legend(loc="outside upper left", ncols=columns, frameon=False, handlelength=2.6,
                      columnspacing=1.4, borderpad=0.2)  # fmt: skip
        return _svg(figure, f"{plot.metric}-{'narrow' if narrow else 'wide'}", plot.label)


def _values(curves: Sequence[Curve]) -> list[float]:
    return [value for curve in curves for point in curve.points for value in point.values]


def _scale(axes: Axes, curves: Sequence[Curve], plot: Plot) -> None:
    """Limits that show every seed; intervals may leave the frame. Log where values span much."""
    values = _values(curves)
    for point in (p for curve in curves for p in curve.points):
        low, high = point.bounds
        reach = 0.35 * (max(values) - min(values))
        if math.isfinite(low):
            values += [max(low, min(values) - reach), min(high, max(values) + reach)]
    for found in plot.verdicts.values():
        values += [line for line in (_margin_line(found),) if line is not None]
    low, high = min(values), max(values)
    positive = min(_values(curves)) > 0
    if positive and max(_values(curves)) / min(_values(curves)) > _LOG_RATIO:
        low = max(low, min(_values(curves)) / 1.5)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.12, high * 1.25)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        pad = (high - low) * 0.07 or abs(high) * 0.05 or 1.0
        axes.set_ylim(low - pad, high + pad)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def _x_axis(axes: Axes, curves: Sequence[Curve], plot: Plot, narrow: bool) -> None:
    right = max((x_of(_sparsity(p, plot)) for c in curves for p in c.points), default=0.0)
    right = max(right, x_of(0.2))
    axes.set_xlim(-0.025 * right, right * 1.04)
    shown: list[float] = []
    for percent in _TICKS:
        place = x_of(percent / 100)
        room = right / (6.5 if narrow else 12)
        if place <= right * 1.03 and (not shown or place - x_of(shown[-1] / 100) >= room):
            shown.append(percent)
    axes.set_xticks([x_of(percent / 100) for percent in shown], [f"{p:g}%" for p in shown])
    what = "of all parameters" if plot.by_all else "of the prunable weights"
    axes.set_xlabel(f"sparsity, {what}")


def _sparsity(point: Point, plot: Plot) -> float:
    return point.sparsity_all if plot.by_all else point.sparsity


def _margin_line(verdict: Mapping[str, Any]) -> float | None:
    """Where quality is worse than dense by the margin, in the metric's unit."""
    mean, margin = verdict.get("dense_mean"), verdict.get("margin")
    if not isinstance(mean, int | float) or not isinstance(margin, int | float):
        return None
    return mean + margin if verdict.get("better") == "lower" else mean - margin


def _bracket(axes: Axes, curves: Sequence[Curve], plot: Plot, search: SearchKey) -> None:
    """The stretch in which the ticket's true sparsity lies: highest winning to first worse."""
    low, high = (list(plot.verdicts.get(search, {}).get("bracket") or ()) + [None, None])[:2]
    if low is None:
        return
    places = {p.sparsity: _sparsity(p, plot) for c in curves for p in c.points}
    left = x_of(places.get(low, low))
    right = axes.get_xlim()[1] if high is None else x_of(places.get(high, high))
    axes.axvspan(left, right, facecolor=SERIES[0], alpha=0.09, linewidth=0)
    axes.axvline(left, color=SERIES[0], linewidth=1.1, alpha=0.75)


def _dense(axes: Axes, point: Point, verdict: Mapping[str, Any]) -> None:
    low, high = point.bounds
    if math.isfinite(low):
        axes.axhspan(low, high, facecolor=INK, alpha=0.12, linewidth=0)
    axes.axhline(point.mean, color=INK, linewidth=1.0, alpha=0.7, label="dense, 95% interval")
    line = _margin_line(verdict)
    if line is not None:
        axes.axhline(line, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="margin")


def _curve(
    axes: Axes,
    curve: Curve,
    plot: Plot,
    place: tuple[int, int],
    searches: Sequence[SearchKey],
) -> None:
    """One arm: means joined by a line, 95% intervals beside each other, crosses for divergence."""
    known = ARMS[1:].index(curve.arm) if curve.arm in ARMS else len(ARMS) - 1
    hue = known if len(searches) == 1 else searches.index(curve.search)
    color, marker = SERIES[hue % len(SERIES)], _MARKERS[known % len(_MARKERS)]
    main = curve.arm == TICKET
    left, right = axes.get_xlim()
    index, count = place
    shift = (index - (count - 1) / 2) * (right - left) * 0.0032
    points = [point for point in curve.points if point.values]
    x = [x_of(_sparsity(point, plot)) + shift for point in points]
    label = ", ".join(filter(None, (curve.arm, label_of(curve.search, searches))))
    line = "-" if main or len(searches) == 1 else (0, (2 + 2 * known, 1.5))
    axes.plot(x, [point.mean for point in points], color=color, marker=marker, label=label,
              linestyle=line, linewidth=1.9 if main else 1.3, markersize=5.2 if main else 4.6,
              markeredgecolor=PAPER, markeredgewidth=0.7, zorder=4 if main else 3)  # fmt: skip
    bars = [(at, *point.bounds) for at, point in zip(x, points, strict=True)]
    bars = [bar for bar in bars if math.isfinite(bar[1])]
    axes.vlines([at for at, _, _ in bars], [low for _, low, _ in bars],
                [high for _, _, high in bars], color=color, linewidth=1.0, alpha=0.75,
                zorder=2.5)  # fmt: skip
    lost = [p for p in curve.points if p.diverged or p.not_run]
    if lost:
        axes.plot([x_of(_sparsity(p, plot)) + shift for p in lost], [0.985] * len(lost), "x",
                  color=color, markersize=5, markeredgewidth=1.4, clip_on=False,
                  transform=axes.get_xaxis_transform())  # fmt: skip


def _svg(figure: Figure, name: str, title: str) -> str:
    """The figure as an SVG element with ids of its own, CSS colours and a title."""
    text = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(
        text, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = text.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    for token, css in _CSS.items():
        svg = svg.replace(token, css)
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower())
    svg = re.sub(r'\bid="', f'id="{stem}-', svg)
    svg = re.sub(r'href="#', f'href="#{stem}-', svg)
    svg = svg.replace("url(#", f"url(#{stem}-")
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    heading = f"<title>{html.escape(title)} against sparsity</title>"
    head, rest = svg.split(">", 1)
    return f'{head} role="img">{heading}{rest}'.strip()
