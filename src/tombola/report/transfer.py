"""Can a ticket be played in another task? The matrix, the four curves of figure 8, what matched.

Read from summary.json (``transfer``), config.json (the layers) and results.csv, as all of the page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from markupsafe import Markup

from tombola.metrics.verdict.sentences import percent
from tombola.report import plots
from tombola.report.curves import curves_csv, curves_of
from tombola.report.folder import Folder
from tombola.report.pictures import data_uri
from tombola.report.tables import NONE, Table, levels_of, metric_label, number
from tombola.store.tables import Row
from tombola.store.transfer_tables import RouteKey, rows_of, without_transfers
from tombola.store.unfinished import so_far

Summary = Mapping[str, Any]


def routes_told(summary: Summary) -> list[Mapping[str, Any]]:
    """The transfers that summary.json tells of; empty where there are none."""
    told = summary.get("transfer")
    routes = told.get("routes") if isinstance(told, Mapping) else None
    return [route for route in routes or [] if isinstance(route, Mapping)]


def own_part(folder: Folder) -> Folder:
    """What a folder holds of its main task's own search, where it holds several tasks.

    All rows of that task where only a file was transferred: there is no other search.
    """
    if not routes_told(folder.summary):
        return folder
    task = str((folder.config.get("resolved") or {}).get("task", ""))
    own = without_transfers(folder.rows, task)
    if not any(row.round for row in own):
        own = [row for row in folder.rows if row.task == task]
    arms = {row.arm for row in own}
    costs = [row for row in folder.costs if row.task == task and row.arm in arms]
    return replace(folder, rows=own, costs=costs)


def transfer_text(summary: Summary) -> str:
    """The matrix and a sentence a transfer as plain text, ASCII, no trailing newline."""
    table = matrix(summary)
    cells = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip()
             for row in cells]  # fmt: skip
    rule = "  ".join("-" * width for width in widths)
    text = [lines[0], rule, *lines[1:], "", *_sentences(summary)]
    return "\n".join("".join(c for c in line if c.isprintable()) for line in text)


def matrix(summary: Summary) -> Table:
    """Sources by targets: whether what was transferred equals the target's own ticket."""
    routes = routes_told(summary)
    targets = list(dict.fromkeys(f"{r['target']}.{r['network']}" for r in routes))
    sources = list(dict.fromkeys(str(route["source"]) for route in routes))
    at = {(str(r["source"]), f"{r['target']}.{r['network']}"): r for r in routes}
    rows = []
    for source in sources:
        cells = []
        for target in targets:
            route = at.get((source, target))
            own = "own" if source == target else NONE
            cells.append(own if route is None else _cell(_decides(route)))
        rows.append((source, *cells))
    metrics = dict.fromkeys(metric_label(str(r["primary"])) for r in routes if r.get("primary"))
    note = (
        f"Rows: where the ticket is from; columns: where it is played. By {' and '.join(metrics)}."
    )
    return Table("Transferred against own", ("from", *(f"in {t}" for t in targets)),
                 tuple(rows), note)  # fmt: skip


def told(folder: Folder) -> dict[str, Any]:
    """What the page shows of the transfers, as ``transfer``: None where there are none.

    Where the folder is about them, and not about a search that has some besides, also its title and
    first lines.
    """
    routes = routes_told(folder.summary)
    if not routes:
        return {"transfer": None}
    layers = (folder.config.get("transfer") or {}).get("routes") or []
    parts = []
    for index, route in enumerate(routes):
        key = RouteKey(*(str(route[name]) for name in RouteKey._fields))
        known = layers[index].get("layers") if index < len(layers) else None
        parts.append(_part(rows_of(folder.rows, key), key, route, known or ()))
    sentences = _sentences(folder.summary)
    shown = {"matrix": matrix(folder.summary), "sentences": sentences, "parts": parts}
    if folder.summary["transfer"].get("search"):
        return {"transfer": shown}
    alone = any(_decides(route).get("state") is None for route in routes)
    states = {_state(_decides(route)) for route in routes}
    state = states.pop() if len(states) == 1 else "not the same for all"
    tasks = " and ".join(dict.fromkeys(str(route["target"]) for route in routes))
    data = next((row.data for row in folder.rows), "")
    return {
        "transfer": {**shown, "sentences": []},
        "title": f"Tickets from elsewhere in {tasks} on {data}",
        "sentence": so_far(folder.summary, " ".join(sentences)),
        "state": state,
        "tone": {"equal": "good", "transferred worse": "bad"}.get(state, "open"),
        "which": "" if alone else "transferred against own",
        "verdict": shown["matrix"],
    }


def _part(
    rows: Sequence[Row], key: RouteKey, route: Mapping[str, Any], layers: Sequence[Any]
) -> dict[str, Any]:
    """One transfer: its figure, its levels, its other metrics and its layers."""
    verdict = _decides(route)
    label = f"{key.source} in {key.target}.{key.network}"
    counts = ", ".join(f"{n} {state}" for state, n in (route.get("layers") or {}).items())
    return {
        "label": label,
        "plots": _plots(rows, str(route.get("primary")), key, verdict),
        "levels": _levels(verdict),
        "metrics": _metrics(route),
        "counts": counts,
        "layers": Table(
            f"Layers of {label}",
            ("target", "source", "", "shape, and what is left as drawn"),
            tuple(
                tuple(str(layer.get(name) or NONE) for name in ("target", "source", "state",
                                                                "note"))
                for layer in layers if isinstance(layer, Mapping)
            ),
            "A skipped layer of the target has its own initial values and no mask.",
        ),
    }  # fmt: skip


def _plots(
    rows: Sequence[Row], metric: str, key: RouteKey, verdict: Mapping[str, Any]
) -> list[dict[str, Any]]:
    curves = curves_of(rows).get(metric) if rows else None
    if not curves:
        return []
    label = metric_label(metric)
    line = {k: verdict.get("as_ticket", {}).get(k) for k in ("dense_mean", "margin", "better")}
    search = curves[0].search
    plot = plots.Plot(metric=f"{'-'.join(key)}-{metric}", label=label, verdicts={search: line},
                      by_all=False)  # fmt: skip
    name = re.sub(r"[^a-z0-9]+", "-", f"transfer-{'-'.join(key)}".lower())
    seeds = max(len(point.values) for curve in curves for point in curve.points)
    spread = (
        "Means over training seeds, bars and band 95% t intervals." if seeds > 1 else "One seed."
    )
    return [{
        "name": name,
        "title": f"{label} of {key.source} in {key.target}",
        "label": label,
        "words": [
            f"{label[:1].upper()}{label[1:]} of {key.target} with only its {key.network} pruned.",
            spread,
            "ticket: the target's own; transferred: from " + key.source + ".",
        ],
        "wide": Markup(plots.draw(curves, plot, narrow=False)),
        "narrow": Markup(plots.draw(curves, plot, narrow=True)),
        "levels": [("", levels_of(curves, search, None))],
        "csv": data_uri("text/csv", curves_csv(curves).encode()),
    }]  # fmt: skip


def _levels(verdict: Mapping[str, Any]) -> Table | None:
    """Level by level: the difference, its interval, the states."""
    levels = verdict.get("levels") or []
    if not levels:
        return None
    rows = [
        (
            percent(level["sparsity"]) if level.get("sparsity") is not None else NONE,
            *_numbers(level),
            str(level.get("state") or NONE),
            str(level.get("against_dense") or NONE),
        )
        for level in levels
    ]
    columns = ("sparsity", "worse than own by", "90% interval", "against own", "against dense")
    note = f"Margin: {number(verdict.get('margin'), 3)}."
    return Table("Transferred against own, by level", columns, tuple(rows), note)


def _metrics(route: Mapping[str, Any]) -> Table:
    """Every metric of one transfer, over levels."""
    found = route.get("metrics") or {}
    primary = route.get("primary")
    rows = [
        (
            metric_label(name) + (" *" if name == primary else ""),
            str(verdict.get("state") or NONE),
            *_numbers(verdict),
            number(verdict.get("margin"), 3),
            *(str(state) for state in (verdict.get("beats") or {}).values()),
        )
        for name, verdict in sorted(found.items(), key=lambda item: (item[0] != primary, item[0]))
    ]
    controls = next((list(v.get("beats") or {}) for v in found.values()), [])
    columns = ("metric", "over levels", "worse than own by", "90% interval", "margin",
               *(f"{name} at its frontier" for name in controls))  # fmt: skip
    return Table("Transferred against own, by metric", columns, tuple(rows), "* decides")


def _numbers(found: Mapping[str, Any]) -> tuple[str, str]:
    if found.get("d_mean") is None:
        return NONE, NONE
    low, high = number(found.get("low"), 3), number(found.get("high"), 3)
    return number(found["d_mean"], 3), f"{low} to {high}" if found.get("low") is not None else NONE


def _decides(route: Mapping[str, Any]) -> Mapping[str, Any]:
    found = (route.get("metrics") or {}).get(route.get("primary"))
    return found if isinstance(found, Mapping) else {}


def _state(verdict: Mapping[str, Any]) -> str:
    """Whether it equals the own ticket; where there is none, what it is by itself."""
    alone = (verdict.get("as_ticket") or {}).get("state")
    return str(verdict.get("state") or alone or "no verdict")


def _cell(verdict: Mapping[str, Any]) -> str:
    beaten = [name for name, state in (verdict.get("beats") or {}).items() if state == "worse"]
    return _state(verdict) + (f"; better than {' and '.join(beaten)}" if beaten else "")


def _sentences(summary: Summary) -> list[str]:
    """One for each transfer, with its names in front."""
    return [
        f"{route.get('source')} in {route.get('target')}.{route.get('network')}: "
        f"{_decides(route).get('sentence') or 'No verdict: no metric of it has a direction.'}"
        for route in routes_told(summary)
    ]
