"""Is a smaller network worth it? The paper's figure 7: quality and costs of early-bird tickets.

Three plots: the primary metric against the FLOPs of training and search together, and those FLOPs
and seconds against the share of channels removed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from tombola.metrics.intervals import interval
from tombola.report.costs import unit_of
from tombola.report.curves import DENSE, TICKET, Drawn, arm_order, label_of
from tombola.report.pictures import data_uri
from tombola.report.plots import (
    FAINT,
    INK,
    PAPER,
    SERIES,
    STYLE,
    legend_columns,
    log_ticks,
    marker_of,
    place_of,
    spans_much,
    svg_of,
)
from tombola.report.tables import mean_of, metric_label
from tombola.report.techniques import Technique, name_of, techniques_csv, values_of

_DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)))
_MASKED = 4
"""The first colour of tickets that keep the dense shape: those before are of networks cut."""
_STARS = "*v^<>Dd"


@dataclass(frozen=True)
class Savings:
    """The techniques of one folder, and what their plots share."""

    techniques: Sequence[Technique]
    searches: Sequence[Drawn]
    metric: str
    better: str
    """Which way the metric is better: lower, higher, or empty."""

    def drawings(self) -> Iterator[dict[str, Any]]:
        """The three plots: name, title, words, SVG for wide and narrow screens, data as CSV."""
        label = metric_label(self.metric)
        seeds = max((len(each.point.values) for each in self.techniques), default=0)
        bars = " Bars are 95% t intervals over the training seeds." if seeds > 1 else ""
        if any(each.flops for each in self.techniques):
            where = {
                "lower": "Lower and further left is better.",
                "higher": "Higher and further left is better.",
            }.get(self.better, "")
            words = (f"{where} Numbers beside points are shares of channels removed; FLOPs are of "
                     f"training and search together, on a logarithmic axis.{bars}")  # fmt: skip
            yield self._drawing("quality", f"{label} against training FLOPs", words)
            words = ("FLOPs of training and search together; level: the unpruned network. The "
                     "opponent thin-flops is trained until it has spent what the ticket "
                     "spends.")  # fmt: skip
            yield self._drawing("flops", "Training FLOPs against compress", words + bars)
        if any(each.seconds for each in self.techniques):
            words = ("Seconds of training and search together on the machine that ran it, judging "
                     "left out; level: the unpruned network.")  # fmt: skip
            yield self._drawing("seconds", "Training time against compress", words + bars)

    def _drawing(self, kind: str, title: str, words: str) -> dict[str, Any]:
        measures = ("metric", "flops") if kind == "quality" else (kind,)
        shown = [
            each
            for each in self.techniques
            if kind == "quality" or each.arm == DENSE or each.search.compress is not None
        ]
        text = techniques_csv(shown, measures, self.metric)
        return {
            "name": f"cost-{kind}",
            "title": title,
            "words": [f"{title[:1].upper()}{title[1:]}.", words],
            "wide": Markup(self.draw(kind, title, narrow=False)),
            "narrow": Markup(self.draw(kind, title, narrow=True)),
            "csv": data_uri("text/csv", text.encode()),
        }  # fmt: skip

    def draw(self, kind: str, title: str, *, narrow: bool) -> str:
        """One plot: ``quality``, ``flops`` or ``seconds`` -> an ``<svg>`` element."""
        name = f"cost-{kind}-{'narrow' if narrow else 'wide'}"
        handles = self._handles(kind)
        labels = [str(handle.get_label()) for handle in handles]
        columns = legend_columns(labels, 3.75 if narrow else 7.4)
        lines = -(-len(handles) // columns)
        size = (3.75, 3.2 + 0.18 * lines) if narrow else (7.4, 3.7 + 0.18 * lines)
        with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
            figure = Figure(figsize=size, layout="constrained")
            axes = figure.add_subplot()
            axes.grid(axis="y", color=FAINT, linewidth=0.6)
            axes.set_axisbelow(True)
            if kind == "quality":
                self._quality(axes, narrow)
            else:
                self._against_compress(axes, kind)
            figure.legend(handles=handles, loc="outside upper left", ncols=columns,
                          frameon=False, handlelength=2.6, columnspacing=1.4,
                          borderpad=0.2)  # fmt: skip
            return svg_of(figure, name, title)

    @property
    def families(self) -> list[Drawn]:
        """The early-bird searches without their compress values, in order."""
        return list(dict.fromkeys(s._replace(compress=None) for s in self.searches
                                  if s.compress is not None))  # fmt: skip

    def lines(self) -> Iterator[tuple[str, int, list[Technique]]]:
        """Arm, place of its family, and its techniques by compress."""
        arms = {each.arm for each in self.techniques if each.search.compress is not None}
        for place, family in enumerate(self.families):
            for arm in sorted(arms - {DENSE}, key=arm_order):
                own = [
                    each
                    for each in self.techniques
                    if each.arm == arm and each.search._replace(compress=None) == family
                ]
                if own:
                    yield arm, place, sorted(own, key=lambda each: each.search.compress or 0.0)

    def singles(self) -> list[Technique]:
        """What is a point and no line: the dense networks, and tickets of weights."""
        return [each for each in self.techniques if each.arm in (DENSE, TICKET)]

    def _look(self, technique: Technique) -> dict[str, Any]:
        """How a single point is drawn: by its method; hollow in a further precision."""
        if technique.arm == DENSE:
            color, marker = INK, "o"
        else:
            methods = list(dict.fromkeys(each.search.method for each in self.singles()
                                         if each.arm != DENSE))  # fmt: skip
            place = methods.index(technique.search.method)
            color = SERIES[_MASKED + place % (len(SERIES) - _MASKED)]
            marker = _STARS[place % len(_STARS)]
        precisions = list(dict.fromkeys(search.precision for search in self.searches))
        hollow = precisions.index(technique.search.precision) > 0
        return {"color": color, "marker": marker, "linestyle": "",
                "markersize": 9 if marker == "*" else 6.5,
                "markerfacecolor": PAPER if hollow else color, "markeredgewidth": 1.2}  # fmt: skip

    @staticmethod
    def _line(arm: str, family: int) -> dict[str, Any]:
        """How a line over compress values is drawn: colour by arm, dashes by family."""
        color = SERIES[place_of(arm) % len(SERIES)]
        return {"color": color, "marker": marker_of(arm), "markersize": 6,
                "linestyle": _DASHES[family % len(_DASHES)],
                "linewidth": 1.9 if arm == "compact" else 1.2,
                "markerfacecolor": PAPER if family else color, "markeredgewidth": 1.1}  # fmt: skip

    def _handles(self, kind: str) -> list[Line2D]:
        arms = list(dict.fromkeys(arm for arm, _, _ in self.lines()))
        handles = [Line2D([], [], label=arm, **self._line(arm, 0)) for arm in arms]
        if len(self.families) > 1:
            handles += [Line2D([], [], color=INK, linestyle=_DASHES[place % len(_DASHES)],
                               label=label_of(family, self.families))
                        for place, family in enumerate(self.families)]  # fmt: skip
        for each in self.singles():
            if kind == "quality":
                label = name_of(each, self.searches)
                handles.append(Line2D([], [], label=label, **self._look(each)))
        if kind != "quality":
            handles += [Line2D([], [], color=INK, linewidth=1, label=name_of(each, self.searches),
                               linestyle=_DASHES[place % len(_DASHES)])
                        for place, each in enumerate(self._dense())]  # fmt: skip
        return handles

    def _dense(self) -> list[Technique]:
        return [each for each in self.techniques if each.arm == DENSE]

    def _quality(self, axes: Axes, narrow: bool) -> None:
        """The metric against total FLOPs, compress values written beside the cut networks."""
        unit, scale = unit_of([value for each in self.techniques for value in each.flops])
        for arm, family, own in self.lines():
            known = [each for each in own if each.flops]
            x = [mean_of(each.flops) / scale for each in known]
            self._drawn(axes, x, known, "metric", self._line(arm, family))
            for at, each in zip(x, known, strict=True):
                if arm == "compact" and family == 0:
                    # On the better side of the point, where there are fewer others.
                    beside = (0, 7) if self.better == "higher" else (0, -14)
                    axes.annotate(f"{each.search.compress:g}", (at, each.point.mean), beside,
                                  textcoords="offset points", fontsize=8.5, ha="center",
                                  color=self._line(arm, family)["color"], zorder=6)  # fmt: skip
        for each in self.singles():
            if each.flops:
                x = [mean_of(each.flops) / scale]
                self._drawn(axes, x, [each], "metric", self._look(each) | {"zorder": 5})
        self._frame(axes)
        axes.set_xscale("log")
        log_ticks(axes.xaxis, 6 if narrow else 11)
        axes.set_xlabel(f"training and search, {unit}FLOP")
        axes.set_ylabel(metric_label(self.metric))

    def _frame(self, axes: Axes) -> None:
        """Limits that show every seed; intervals of two or three seeds may leave the frame."""
        values = [value for each in self.techniques for value in each.point.values]
        reach = 0.2 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
        if spans_much(values):
            axes.set_yscale("log")
            axes.set_ylim(min(values) / 1.35, max(values) * 1.35)
            log_ticks(axes.yaxis)
        else:
            axes.set_ylim(min(values) - reach, max(values) + reach)

    def _against_compress(self, axes: Axes, kind: str) -> None:
        """FLOPs or seconds against compress, from 0; the dense network is a level line."""
        values = [value for each in self.techniques for value in values_of(each, kind)]
        unit, scale = unit_of(values) if kind == "flops" else ("", 1.0)
        for place, each in enumerate(self._dense()):
            if values_of(each, kind):
                axes.axhline(mean_of(values_of(each, kind)) / scale, color=INK, linewidth=1.0,
                             alpha=0.7, linestyle=_DASHES[place % len(_DASHES)])  # fmt: skip
        for arm, family, own in self.lines():
            known = [each for each in own if values_of(each, kind)]
            x = [each.search.compress or 0.0 for each in known]
            self._drawn(axes, x, known, kind, self._line(arm, family), scale)
        shares = sorted({s.compress for s in self.searches if s.compress is not None})
        axes.set_xticks(shares, [f"{share:g}" for share in shares])
        axes.margins(x=0.06)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("compress: share of the channels removed")
        axes.set_ylabel(f"{unit}FLOP" if kind == "flops" else "seconds")

    @staticmethod
    def _drawn(
        axes: Axes,
        x: Sequence[float],
        own: Sequence[Technique],
        measure: str,
        look: dict[str, Any],
        scale: float = 1.0,
    ) -> None:
        """Means and, where there are two seeds or more, 95% intervals of one measure."""
        found = [interval(values_of(each, measure)) for each in own]
        axes.plot(x, [each.mean / scale for each in found], **({"zorder": 4} | look))
        bars = [(at, each) for at, each in zip(x, found, strict=True) if math.isfinite(each.low)]
        axes.vlines([at for at, _ in bars], [each.low / scale for _, each in bars],
                    [each.high / scale for _, each in bars], color=look["color"],
                    linewidth=1.0, alpha=0.6, zorder=2.5)  # fmt: skip
