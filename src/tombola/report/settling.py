"""What does settling look like? Distances of channel masks as heat maps, and against the step."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tombola.report.channels import Watched, distances_csv, every, kept_text
from tombola.report.pictures import data_uri
from tombola.report.plots import FAINT, INK, PAPER, SERIES, STYLE, svg_of

_COLOURS = "viridis_r"
"""Bright = alike, as You et al. 2020 draw it; to be read without colour too."""


def drawing_of(watched: Watched, label: str) -> dict[str, Any]:
    """One search: its heat maps and its distances, as the template takes a plot."""
    name = f"settled-{label}" if label else "settled"
    words = []
    if watched.matrix:
        words.append(
            "Top: the share of a network's channels in which two masks differ, each draw against "
            "each other (first training seed); bright is alike."
        )
        if every(watched) > 1:
            words.append(f"One draw of {every(watched)} is shown; summary.json has all.")
    several = " Faint lines are further seeds." if len(watched.seeds) > 1 else ""
    words.append(
        "Below: what the rule compared, the largest distance of a mask from the four before it; a "
        f"ring marks the cut, a cross a cut that was forced.{several}"
    )
    return {
        "name": "".join(char if char.isalnum() else "-" for char in name),
        "title": "distances between channel masks" + (f", {label}" if label else ""),
        "label": label,
        "kept": kept_text(watched),
        "words": words,
        "wide": Markup(draw(watched, name, narrow=False)),
        "narrow": Markup(draw(watched, name, narrow=True)),
        "csv": data_uri("text/csv", distances_csv(watched).encode()),
    }


def draw(watched: Watched, name: str, *, narrow: bool) -> str:
    """The heat maps of one search above its distances against the step -> an ``<svg>`` element."""
    maps = [network for network in watched.networks if _map(watched, network).size]
    across = 1 if narrow else min(3, max(1, len(maps)))
    lines = -(-len(maps) // across)
    side = 3.2 if narrow else 3.3 if across < 3 else 2.5
    size = (3.75, side * lines + 2.4) if narrow else (7.4, side * lines + 2.5)
    name = f"{name}-{'narrow' if narrow else 'wide'}"
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=size, layout="constrained")
        heights = [*[side] * lines, 2.4]
        grid = figure.add_gridspec(lines + 1, across, height_ratios=heights)
        top = _top(watched)
        squares = []
        for place, network in enumerate(maps):
            square = figure.add_subplot(grid[place // across, place % across])
            _heat(square, watched, network, top)
            squares.append(square)
        if squares:
            _bar(figure, squares, watched.delta, top, narrow)
        _compared(figure.add_subplot(grid[lines, :]), watched)
        return svg_of(figure, name, "distances between channel masks")


def _map(watched: Watched, network: str) -> NDArray[np.float64]:
    """The matrix of a network, of as many draws as are shown; empty where there is none."""
    try:
        table = np.asarray(watched.matrix.get(network) or (), dtype=np.float64)
    except ValueError:  # rows of different length
        return np.zeros((0, 0))
    count = len(watched.draws)
    if table.shape != (count, count) or not count:
        return np.zeros((0, 0))
    return table[:: every(watched), :: every(watched)]


def _top(watched: Watched) -> float:
    """Where the colours end: the largest distance, and far enough for delta to be seen."""
    largest = [float(_map(watched, network).max(initial=0.0)) for network in watched.networks]
    return max([*largest, 2 * watched.delta])


def _heat(axes: Axes, watched: Watched, network: str, top: float) -> None:
    draws = watched.draws
    half = (draws[-1] - draws[0]) / max(1, len(draws) - 1) / 2 or 0.5
    ends = (draws[0] - half, draws[-1] + half)
    axes.imshow(_map(watched, network), cmap=_COLOURS, vmin=0, vmax=top, origin="lower",
                extent=(*ends, *ends), interpolation="none")  # fmt: skip
    axes.set_title(network, fontsize=9.5)
    axes.set_xlabel("step")
    axes.set_ylabel("step")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(4, integer=True))
    for spine in axes.spines.values():
        spine.set_visible(False)


def _bar(figure: Figure, squares: list[Axes], delta: float, top: float, narrow: bool) -> None:
    """The colours from 0, with delta marked on them."""
    colours = ScalarMappable(Normalize(0, top), _COLOURS)
    place = "bottom" if narrow else "right"  # beside the squares there is no room on a phone
    bar = figure.colorbar(colours, ax=squares, location=place, shrink=0.85, aspect=24, pad=0.02)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # 256 rectangles otherwise
    bar.outline.set_visible(False)
    (bar.ax.axvline if narrow else bar.ax.axhline)(delta, color=INK, linewidth=1.6)
    room = top / (6 if narrow else 14)
    ticks = [tick for tick in MaxNLocator(5).tick_values(0, top)
             if tick <= top and abs(tick - delta) > room]  # fmt: skip
    bar.set_ticks([*ticks, delta], labels=[*(f"{tick:g}" for tick in ticks), f"delta {delta:g}"])
    bar.set_label("share of channels that differ")


def _compared(axes: Axes, watched: Watched) -> None:
    """The distances that the rule compared, a line a network and seed, and where the cut was."""
    for place, network in enumerate(watched.networks):
        color = SERIES[place % len(SERIES)]
        for index, seed in enumerate(watched.seeds):
            points = [(step, each[network]) for step, each in seed.largest.items()
                      if network in each]  # fmt: skip
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.2 if index else 1.9,
                      alpha=0.4 if index else 1.0, label="" if index else network)  # fmt: skip
            axes.plot(*points[-1], marker="X" if seed.forced else "o", color=color, markersize=7,
                      markerfacecolor=color if seed.forced else PAPER, markeredgewidth=1.4,
                      linestyle="", clip_on=False, zorder=4)  # fmt: skip
    axes.axhline(watched.delta, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_xlabel("step")
    chance = watched.rule == "corrected"
    axes.set_ylabel("distance / chance" if chance else "distance")
    handles, labels = axes.get_legend_handles_labels()
    handles.append(Line2D([], [], color=INK, linewidth=1.0, linestyle=(0, (4, 3))))
    axes.legend(handles, [*labels, f"delta {watched.delta:g}"], frameon=False, loc="upper right",
                handlelength=2.2)  # fmt: skip
