"""What does a search say at a glance? Quality against sparsity over a strip of samples, one SVG.

Two files of the same drawing, for a light and for a dark page, so that a document may show either.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from tombola.errors import ConfigError
from tombola.report import plots
from tombola.report.curves import Curve, curves_of, searches_of
from tombola.report.families import families_of, merged
from tombola.report.figure import ACROSS, Grid
from tombola.report.folder import read_folder, write_file
from tombola.report.pictures import thinned
from tombola.report.tables import metric_label
from tombola.report.transfer import own_part

STRIP = 4
"""Sparsities of the strip, unless others are asked for."""
IMAGES = 8
_WIDTH_INCHES, _PLOT_INCHES, _HEAD_INCHES = 7.4, 3.3, 0.3


def write_headline(
    out: Path, *, images: int | None = None, sparsities: Sequence[float] = ()
) -> list[Path]:
    """Write ``readme-light.svg`` and ``readme-dark.svg`` into a run directory, of its first search.

    ``images``: of a cell of the strip (none = 8, or as many as there are); ``sparsities``: the
    levels of the strip, as fractions in (0, 1), each taken as the nearest there is; none = four,
    evenly. ConfigError if there is nothing to show, or less than asked.
    """
    folder = own_part(read_folder(Path(out)))
    metric = str(folder.summary.get("primary"))
    families = families_of(searches_of(folder.rows))
    curves = merged(curves_of(folder.rows).get(metric, []), families)
    own = [curve for curve in curves if curve.search == families[0].key] if families else []
    if not own:
        raise ConfigError(
            f"{str(out)!r} has no search with a metric that decides, so there is no curve to draw; "
            "give a directory that tombola find wrote"
        )
    verdict = (folder.summary.get("arms") or {}).get(families[0].key.name, {}).get(metric) or {}
    plot = plots.Plot(
        metric=metric,
        label=metric_label(metric),
        verdicts={families[0].key: verdict},
        by_all=not families[0].in_rounds,
    )
    grid = Grid(folder, families[0], several=False, images=images)
    if images is None:
        grid.images = min(grid.images, IMAGES)
    if not sparsities:
        chosen = thinned(grid.gallery.levels, STRIP, ())
        sparsities = [grid.sparsity_at[level.round] for level in chosen]
    svg = _drawing(grid, plot, own, sparsities)
    paths = [folder.out / f"readme-{name}.svg" for name in ("light", "dark")]
    for path in paths:
        write_file(path, plots.alone(svg, dark=path.stem.endswith("dark")))
    return paths


def _drawing(
    grid: Grid, plot: plots.Plot, curves: Sequence[Curve], sparsities: Sequence[float]
) -> str:
    """Plot above, strip below, as one ``<svg>`` element."""
    heads, arms = grid.names(sparsities)
    cell = _WIDTH_INCHES / len(heads) * grid.lines / ACROSS * grid.size[0] / grid.size[1]
    heights = [_PLOT_INCHES, _HEAD_INCHES + cell * len(arms)]
    with mpl.rc_context(plots.STYLE | {"svg.hashsalt": plot.metric}):
        figure = Figure(figsize=(_WIDTH_INCHES, sum(heights)), layout="constrained")
        above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
        axes = above.add_subplot()
        plots.onto(axes, curves, plot, narrow=False)
        handles, labels = axes.get_legend_handles_labels()
        above.legend(handles, labels, loc="outside upper left", ncols=len(labels), frameon=False)
        grid.onto(below, sparsities)
        return plots.svg_of(figure, "readme", f"{plot.label} against sparsity, with samples")
