"""What does quality look like against sparsity, beside what the paper claims? One SVG file."""

from __future__ import annotations

from pathlib import Path

from tombola.report import plots
from tombola.report.curves import curves_of, searches_of
from tombola.report.families import families_of, merged
from tombola.report.folder import read_folder, write_file
from tombola.report.tables import metric_label


def draw_first(search: Path, claimed: float | None, out: Path) -> bool:
    """Draw the primary metric of a search, the claimed sparsity marked; whether there was any."""
    folder = read_folder(search)
    metric = folder.summary.get("primary")
    curves = curves_of(folder.rows).get(str(metric))
    if not curves:
        return False
    families = families_of(searches_of(folder.rows))
    arms = folder.summary.get("arms") or {}
    verdicts = {f.key: (arms.get(f.key.name) or {}).get(metric) or {} for f in families}
    by_all = len({family.key.networks for family in families}) > 1
    by_all = by_all or any(s.compress is not None for f in families for s in f.members)
    plot = plots.Plot(
        metric=str(metric),
        label=metric_label(str(metric)),
        verdicts=verdicts,
        by_all=by_all,
        claimed=claimed,
    )
    svg = plots.draw(merged(curves, families), plot, narrow=False)
    write_file(out, plots.alone(svg))
    return True
