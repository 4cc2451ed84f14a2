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
from itertools import islice
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from tombola.metrics.verdict.losses import OWN_ARMS
from tombola.metrics.verdict.sentences import percent
from tombola.report.curves import (
    DENSE,
    TICKET,
    Curve,
    Drawn,
    Point,
    arm_order,
    bracket_of,
    label_of,
)

INK, FAINT, PAPER = "#010203", "#010204", "#010205"
SERIES = tuple(f"#0103{index:02d}" for index in range(8))
_CSS = {INK: "currentColor", FAINT: "var(--rule)", PAPER: "var(--paper)"} | {
    token: f"var(--series-{index})" for index, token in enumerate(SERIES)
}
_KEY_EMS = 4.8
"""A legend's line, what is between it and its label, and between columns."""
_GENERAL = ("dense, 95% interval", "margin", "floor")
_MARKERS = "osD^vPXh"
_PLACES = {
    "ticket": 0, "compact": 0, "reinit": 1, "random-channels": 1, "shuffle": 2, "thin-flops": 2,
    "erk": 3, "reinit-chain": 4, "thin-parameters": 5, "dense-long": 6,
    "transferred": 3, "transferred-shuffle": 2, "transferred-reinit": 1,
}  # fmt: skip
_TICKS = (0, 20, 40, 60, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 99.95, 99.99)
_LOG_RATIO = 3.0
STYLE: dict[Any, Any] = {
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
    verdicts: Mapping[Drawn, Mapping[str, Any]]
    """Search -> verdict on this metric, as in summary.json; missing = curve only."""
    by_all: bool
    """Whether x is the sparsity of all parameters, not of the prunable ones."""
    floor: float | None = None
    """What real images score, drawn where it lies within the frame; None: unknown."""
    claimed: float | None = None
    """A sparsity that somebody else claims, to be marked."""


def x_of(sparsity: float) -> float:
    """Where a sparsity stands on the axis: -log10 of the density, so that levels are even."""
    return -math.log10(max(1 - sparsity, 1e-6))


def draw(curves: Sequence[Curve], plot: Plot, *, narrow: bool) -> str:
    """One metric of every arm against sparsity -> an ``<svg>`` element (no script, no links)."""
    searches = list(dict.fromkeys(curve.search for curve in curves))
    legend_inches = 0.17 * (len(searches) + 2) if len(searches) > 1 else 0.0
    size = (3.75, 4.3 + legend_inches) if narrow else (7.4, 4.3 + legend_inches / 3)
    with mpl.rc_context(STYLE | {"svg.hashsalt": f"{plot.metric}-{narrow}"}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        onto(axes, curves, plot, narrow=narrow)
        _legend(figure, axes, curves, searches, narrow)
        name = f"{plot.metric}-{'narrow' if narrow else 'wide'}"
        return svg_of(figure, name, f"{plot.label} against sparsity")


def onto(axes: Axes, curves: Sequence[Curve], plot: Plot, *, narrow: bool) -> None:
    """Draw one metric of every arm against sparsity, without a legend."""
    searches = list(dict.fromkeys(curve.search for curve in curves))
    _scale(axes, curves, plot)
    _x_axis(axes, curves, plot, narrow)
    if len(searches) == 1:
        _bracket(axes, curves, plot, searches[0])
    if plot.claimed is not None:
        at = x_of(plot.claimed)
        left, right = axes.get_xlim()
        axes.set_xlim(left, max(right, at * 1.04))
        label = f"claimed: {percent(plot.claimed)}"
        axes.axvline(at, color=INK, linewidth=1.0, linestyle=(0, (1, 2)), label=label)
    dense_keys = {curve.search.precision: curve for curve in curves if curve.arm == DENSE}
    bottom, top = axes.get_ylim()
    if plot.floor is not None and bottom <= plot.floor <= top:
        axes.axhline(plot.floor, color=INK, linewidth=1.0, linestyle=":", label=_GENERAL[2])
    for curve in dense_keys.values():
        _dense(axes, curve.points[0], plot.verdicts.get(curve.search, {}))
    arms = [curve for curve in curves if curve.arm != DENSE]
    for index, curve in enumerate(arms):
        _curve(axes, curve, plot, (index, len(arms)), searches)
    axes.set_ylabel(plot.label)


def _legend(
    figure: Figure, axes: Axes, curves: Sequence[Curve], searches: Sequence[Drawn], narrow: bool
) -> None:
    """What each line is; where searches share arms, colours and markers are told once each."""
    handles, labels = axes.get_legend_handles_labels()
    if len(searches) > 1:
        told = {text: h for h, text in zip(handles, labels, strict=True)
                if text in _GENERAL or text.startswith("claimed: ")}  # fmt: skip
        general = [(handle, text) for text, handle in told.items()]
        for search in searches:
            line = Line2D([], [], color=_hue(TICKET, search, searches), linewidth=3)
            general.append((line, label_of(search, searches)))
        alike: dict[int, list[str]] = {}
        for arm in sorted({curve.arm for curve in curves} - {DENSE}, key=arm_order):
            alike.setdefault(place_of(arm), []).append(arm)
        for arms in alike.values():
            dashes = _dashes(arms[0], searches)
            line = Line2D([], [], color=INK, linestyle=dashes, marker=marker_of(arms[0]))
            general.append((line, " / ".join(arms)))
        handles, labels = [h for h, _ in general], [text for _, text in general]
    columns = legend_columns(labels, 3.75 if narrow else 7.4)
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False,
                  handlelength=2.6, columnspacing=1.4, borderpad=0.2)  # fmt: skip


def legend_columns(labels: Sequence[str], inches: float) -> int:
    """In how many columns a legend is as low as it can be and no wider than ``inches``."""
    font = FontProperties(size=STYLE["font.size"])
    key = _KEY_EMS * STYLE["font.size"]
    points = [key + text_to_path.get_text_width_height_descent(label, font, False)[0]
              for label in labels]  # fmt: skip
    for rows in range(1, len(labels)):
        columns = -(-len(labels) // rows)
        least, larger = divmod(len(labels), columns)
        filled = iter(points)
        widths = [max(islice(filled, least + (column < larger))) for column in range(columns)]
        if sum(widths) <= 72 * inches:
            return columns
    return 1


def place_of(arm: str) -> int:
    """Which colour, marker and dashes an arm has; arms that share them are never in one search."""
    return _PLACES.get(arm, len(SERIES) - 1)


def _hue(arm: str, search: Drawn, searches: Sequence[Drawn]) -> str:
    """One search: a colour an arm. Several: a colour a search."""
    index = place_of(arm) if len(searches) == 1 else searches.index(search)
    return SERIES[index % len(SERIES)]


def marker_of(arm: str) -> str:
    """The marker of an arm's points."""
    return _MARKERS[place_of(arm) % len(_MARKERS)]


def _dashes(arm: str, searches: Sequence[Drawn]) -> Any:
    if arm in OWN_ARMS or len(searches) == 1:
        return "-"
    return (0, (2 + 2 * place_of(arm), 1.5))


def _values(curves: Sequence[Curve]) -> list[float]:
    return [value for curve in curves for point in curve.points for value in point.values]


def _scale(axes: Axes, curves: Sequence[Curve], plot: Plot) -> None:
    """Limits that show every seed; intervals may leave the frame. Log where values span much."""
    values = _values(curves)
    reach = 0.35 * (max(values) - min(values))
    least, most = min(values) - reach, max(values) + reach
    for point in (p for curve in curves for p in curve.points):
        low, high = point.bounds
        if math.isfinite(low):
            values += [max(low, least), min(high, most)]
    for found in plot.verdicts.values():
        values += [line for line in (_margin_line(found),) if line is not None]
    low, high = min(values), max(values)
    if spans_much(_values(curves)):
        low = max(low, min(_values(curves)) / 1.5)
        axes.set_yscale("log")
        axes.set_ylim(low / 1.12, high * 1.25)
        log_ticks(axes.yaxis)
    else:
        pad = (high - low) * 0.07 or abs(high) * 0.05 or 1.0
        axes.set_ylim(low - pad, high + pad)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)


def spans_much(values: Sequence[float]) -> bool:
    """Whether values are better told apart on a logarithmic axis."""
    return min(values) > 0 and max(values) / min(values) > _LOG_RATIO


def log_ticks(axis: Axis, most: int = 12) -> None:
    """Ticks of a logarithmic axis that are numbers to be read, and no more than there is room for.

    The axis must have its limits already.
    """
    low, high = sorted(axis.get_view_interval())
    places = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices = ((1.0, 1.5, 2.0, 3.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
    fitting = (
        subs
        for subs in choices
        if sum(low <= sub * 10.0**place <= high for sub in subs for place in places) <= most
    )
    axis.set_major_locator(LogLocator(subs=next(fitting, choices[-1])))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _x_axis(axes: Axes, curves: Sequence[Curve], plot: Plot, narrow: bool) -> None:
    right = max((x_of(_sparsity(p, plot)) for c in curves for p in c.points), default=0.0)
    right = max(right, x_of(0.2))
    axes.set_xlim(-0.025 * right, right * 1.04)
    shown: list[float] = []
    for tick in _TICKS:
        place = x_of(tick / 100)
        room = right / (6.5 if narrow else 12)
        if place <= right * 1.03 and (not shown or place - x_of(shown[-1] / 100) >= room):
            shown.append(tick)
    axes.set_xticks([x_of(tick / 100) for tick in shown], [f"{tick:g}%" for tick in shown])
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


def _bracket(axes: Axes, curves: Sequence[Curve], plot: Plot, search: Drawn) -> None:
    """The stretch in which the ticket's true sparsity lies: highest winning to first worse."""
    low, high = bracket_of(plot.verdicts.get(search, {}))
    if low is None:
        return
    places = {p.sparsity: _sparsity(p, plot) for c in curves for p in c.points}
    left = x_of(places.get(low, low))
    right = axes.get_xlim()[1] if high is None else x_of(places.get(high, high))
    axes.axvspan(left, right, facecolor=SERIES[0], alpha=0.09, linewidth=0)
    axes.axvline(left, color=SERIES[0], linewidth=1.1, alpha=0.75)
    axes.annotate(percent(low), (left, 1), (3, -3), xycoords=axes.get_xaxis_transform(),
                  textcoords="offset points", va="top", color=SERIES[0])  # fmt: skip


def _dense(axes: Axes, point: Point, verdict: Mapping[str, Any]) -> None:
    low, high = point.bounds
    if math.isfinite(low):
        axes.axhspan(low, high, facecolor=INK, alpha=0.12, linewidth=0)
    axes.axhline(point.mean, color=INK, linewidth=1.0, alpha=0.7, label=_GENERAL[0])
    line = _margin_line(verdict)
    if line is not None:
        axes.axhline(line, color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label=_GENERAL[1])


def _curve(
    axes: Axes,
    curve: Curve,
    plot: Plot,
    place: tuple[int, int],
    searches: Sequence[Drawn],
) -> None:
    """One arm: means joined by a line, 95% intervals beside each other, crosses for divergence."""
    color, marker = _hue(curve.arm, curve.search, searches), marker_of(curve.arm)
    main = curve.arm in OWN_ARMS
    left, right = axes.get_xlim()
    index, count = place
    shift = (index - (count - 1) / 2) * (right - left) * 0.0032
    points = [point for point in curve.points if point.values]
    x = [x_of(_sparsity(point, plot)) + shift for point in points]
    axes.plot(x, [point.mean for point in points], color=color, marker=marker, label=curve.arm,
              linestyle=_dashes(curve.arm, searches), linewidth=1.9 if main else 1.3,
              markersize=6.5 if main else 6, markeredgecolor=PAPER, markeredgewidth=0.7,
              zorder=4 if main else 3)  # fmt: skip
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


def svg_of(figure: Figure, name: str, title: str) -> str:
    """A figure in ``STYLE`` as an SVG element with ids of its own, CSS colours and a title."""
    text = io.BytesIO()
    blank = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(text, format="svg", transparent=True, metadata=blank)
    svg = text.getvalue().decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    for token, css in _CSS.items():
        svg = svg.replace(token, css)
    svg = _slim(svg)
    stem = re.sub(r"[^a-z0-9]+", "-", name.lower())
    svg = re.sub(r'\bid="', f'id="{stem}-', svg)
    svg = re.sub(r'href="#', f'href="#{stem}-', svg)
    svg = svg.replace("url(#", f"url(#{stem}-")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    heading = f"<title>{html.escape(title)}</title>"
    head, rest = svg.split(">", 1)
    return f'{head} role="img">{heading}{rest}'.strip()


def alone(svg: str, *, dark: bool = False) -> bytes:
    """A drawing as a file of its own: with the colours that report.html gives it, light or dark."""
    css = (Path(__file__).parent / "files" / "report.css").read_text("utf-8")
    colours = css.split("}")[0 if not dark else 1].split(":root {")[1]
    own = f"{colours} color: var(--ink); background: var(--paper);"
    head, rest = svg.split(">", 1)
    style = f"<style>svg {{ {' '.join(own.split())} }} text {{ font-family: sans-serif; }}</style>"
    return f"{head}>{style}{rest}\n".encode()


def _slim(svg: str) -> str:
    """A drawing without what nobody asks for: two thirds of what Matplotlib writes.

    The page's style names the font; only what is linked to needs an id.
    """
    linked = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in linked else "", svg)
    svg = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    svg = re.sub(r' transform="rotate\(-0 [^"]*\)"', "", svg)
    return re.sub(r">\s+<", "><", svg)
