"""What did the search find? OUT/report.html: one offline file, made from OUT/ alone."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from tombola.metrics.sentences import percent
from tombola.metrics.statistics import SearchKey, arm_name
from tombola.report import plots, tables
from tombola.report.curves import (
    DENSE,
    TICKET,
    Curve,
    bracket_of,
    curves_csv,
    curves_of,
    key_of,
    label_of,
    searches_of,
)
from tombola.report.folder import read_folder, write_file
from tombola.report.pictures import data_uri, embedded, gallery_of
from tombola.runs.results import CostRow, Row

REPORT = "report.html"
_FILES = Path(__file__).parent / "files"
_BETTER = {"lower": "lower is better", "higher": "higher is better"}
_HASH = re.compile(r"[0-9a-f]{32,128}")


def write_report(out: Path) -> Path:
    """Write ``out/report.html`` anew, whole or not at all, and return its path.

    Reads config.json, results.csv, summary.json, costs.csv and samples/ (the last two may be
    missing). ConfigError if ``out`` is no run directory, DataError if a file in it is not as it
    should be.
    """
    folder = read_folder(Path(out))
    page = _Page(**vars(folder))
    path = folder.out / REPORT
    write_file(path, _render(page.context()).encode())
    return path


def _render(context: Mapping[str, Any]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_FILES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (_FILES / "report.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style = (_FILES / "report.css").read_text(encoding="utf-8")
    return environment.get_template("report.html.j2").render(
        **context, script=Markup(script), script_hash=digest, style=Markup(style)
    )


@dataclass(frozen=True)
class _Page:
    """What was read, and what the template asks of it."""

    out: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[Row]
    costs: list[CostRow]

    @cached_property
    def searches(self) -> list[SearchKey]:
        return searches_of(self.rows)

    @cached_property
    def curves(self) -> dict[str, list[Curve]]:
        return curves_of(self.rows)

    @cached_property
    def primary(self) -> str | None:
        wished = self.summary.get("primary")
        return wished if wished in self.curves else next(iter(self.curves), None)

    @cached_property
    def focus(self) -> int:
        """The round that the page opens at: the sparsest winning ticket's, else the middle one."""
        rounds = sorted({row.round for row in self.rows} - {0})
        found = self.verdicts(self.searches[0]).get(self.primary or "", {}) if self.searches else {}
        wanted = found.get("sparsity") or found.get("matches_up_to")
        for row in self.rows:
            if row.round and row.arm == TICKET and row.sparsity == wanted:
                return row.round
        return rounds[len(rounds) // 2] if rounds else 0

    def verdicts(self, search: SearchKey) -> Mapping[str, Mapping[str, Any]]:
        """The verdicts of one search by metric; those at the top belong to the first."""
        arms = self.summary.get("arms") or {}
        first = bool(self.searches) and search == self.searches[0]
        fallback = self.summary.get("verdicts") or {} if first else {}
        found: Mapping[str, Mapping[str, Any]] = arms.get(arm_name(search)) or fallback
        return found

    def context(self) -> dict[str, Any]:
        """Everything that the template shows, as strings, tables and lists."""
        found = self.verdicts(self.searches[0]) if self.searches else {}
        state = str((found.get(self.primary or "") or {}).get("state", "no verdict"))
        tones = {"wins": "good", "worse": "bad"}
        return {
            "title": self.title,
            "facts": self.facts,
            "sentence": tables.headline(self.summary),
            "state": state,
            "tone": tones.get(state, "open"),
            "verdict": self.verdict_tables[0],
            "verdicts": self.verdict_tables[1],
            "which": label_of(self.searches[0], self.searches) if self.searches else "",
            "plots": [self.plot(metric) for metric in self.metrics],
            "galleries": self.galleries,
            "spread": tables.spread_of(
                self.curves, self.summary.get("sampling_sd"), self.summary.get("floor")
            ),
            "sampled": bool(self.summary.get("sampling_sd") or self.summary.get("floor")),
            "classes": tables.classes_of(self.rows, self.searches, self.focus),
            "stability": tables.stability_of(self.summary.get("stability"), self.primary),
            "convergence": tables.convergence_of(self.summary.get("convergence"), self.primary),
            "troubles": self.troubles,
            "no_troubles": self.no_troubles,
            "costs": tables.costs_of(self.costs, self.searches, self.focus),
            "cost_level": self.level_name(self.focus),
            "command": _text(self.config.get("command")),
            "made_with": self.made_with,
            "hashes": self.hashes,
            "settings": _flat(
                {name: self.config.get(name) or {} for name in ("config", "resolved")}
            ),
        }

    @property
    def title(self) -> str:
        some = self.rows[0] if self.rows else None
        return f"{some.task} on {some.data}" if some else "an empty search"

    @property
    def facts(self) -> list[str]:
        """The search in a line: methods, seeds, levels, rewind steps, precisions."""

        def each(name: str) -> str:
            values = dict.fromkeys(str(getattr(search, name)) for search in self.searches)
            return ", ".join(value for value in values if value not in ("", "None"))

        seeds = len({row.seed for row in self.rows})
        levels = len({row.round for row in self.rows} - {0})
        facts = [
            each("method"),
            f"{seeds} training {'seed' if seeds == 1 else 'seeds'}",
            f"{levels} {'level' if levels == 1 else 'levels'} of sparsity",
            f"rewound to step {each('rewind_steps')}" if each("rewind_steps") else "",
            f"pruned: {each('networks')}" if each("networks") else "",
            each("precision"),
        ]
        return [fact for fact in facts if fact]

    @property
    def metrics(self) -> list[str]:
        judged = self.summary.get("verdicts") or {}
        return sorted(
            self.curves, key=lambda name: (name != self.primary, name not in judged, name)
        )

    @property
    def verdict_tables(self) -> tuple[tables.Table, list[tuple[str, tables.Table]]]:
        """The table under the sentence, and, of several searches, every metric of each."""
        found = {label_of(search, self.searches): self.verdicts(search) for search in self.searches}
        judged = {label: verdicts for label, verdicts in found.items() if verdicts}
        each = [
            (label, tables.verdicts_of(verdicts, self.primary))
            for label, verdicts in judged.items()
        ]
        if len(judged) > 1:
            return tables.searches_verdict(judged, self.primary), each
        return each[0][1] if each else tables.verdicts_of({}, None), []

    def plot(self, metric: str) -> dict[str, Any]:
        """One metric: its drawing in two widths, the words under it, its tables and its data."""
        curves = self.curves[metric]
        verdicts = {search: self.verdicts(search).get(metric, {}) for search in self.searches}
        by_all = len({search.networks for search in self.searches}) > 1
        label = tables.metric_label(metric)
        plot = plots.Plot(
            metric=metric, label=label, verdicts=verdicts, by_all=by_all, floor=self.floor(metric)
        )
        first = next((found for found in verdicts.values() if found), {})
        name = re.sub(r"[^a-z0-9]+", "-", metric.lower())
        return {
            "name": name,
            "label": label,
            "better": _BETTER.get(str(first.get("better")), "no direction: drawn, not judged"),
            "words": self.words(curves, label, first),
            "wide": Markup(plots.draw(curves, plot, narrow=False)),
            "narrow": Markup(plots.draw(curves, plot, narrow=True)),
            "levels": [(label_of(search, self.searches),
                        tables.levels_of(curves, search, verdicts[search]))
                       for search in self.searches],
            "csv": data_uri("text/csv", curves_csv(curves).encode()),
        }  # fmt: skip

    def floor(self, metric: str) -> float | None:
        """What training images score in the place of samples; drawn for Frechet distances only."""
        if not metric.startswith(("fid", "fcd-")):
            return None
        found = (self.summary.get("floor") or {}).get(metric)
        return found if isinstance(found, int | float) else None

    def words(self, curves: Sequence[Curve], label: str, verdict: Mapping[str, Any]) -> list[str]:
        """What stands under a plot, in sentences."""
        seeds = max((len(p.values) for c in curves for p in c.points), default=0)
        better = _BETTER.get(str(verdict.get("better")), "drawn but not judged")
        words = [f"{label[:1].upper()}{label[1:]}, {better}."]
        if seeds > 1:
            words.append(
                f"Points are means over up to {seeds} training seeds; bars are 95% t intervals of "
                "the mean, and so is the grey band around the dense network."
            )
        else:
            words.append("One training seed: there are no intervals.")
        words.append(tables.margin_sentence(verdict))
        floor = self.floor(curves[0].metric) if curves else None
        if floor is not None:
            words.append(
                f"As many training images get {tables.number(floor)}: the floor, dotted where it "
                "lies within the frame."
            )
        if len(self.searches) == 1 and bracket_of(verdict)[0] is not None:
            words.append(
                "The vertical line marks the sparsest ticket that wins; the shaded stretch runs "
                "from it to the first level that is worse than dense, or to the end."
            )
        if any(p.diverged or p.not_run for c in curves for p in c.points):
            words.append("A cross marks a level where a seed diverged or was not run.")
        return [*filter(None, words), "The axis is logarithmic in the share of weights kept."]

    def sparsity_at(self, search: SearchKey) -> dict[int, float]:
        """Round -> sparsity in one search."""
        return {row.round: row.sparsity for row in self.rows
                if row.round and row.arm != DENSE and key_of(row) == search}  # fmt: skip

    def level_name(self, number: int) -> str:
        """``83.2% sparsity (round 8)`` of the first search."""
        sparsity = self.sparsity_at(self.searches[0]).get(number) if self.searches else None
        return (
            f"round {number}"
            if sparsity is None
            else f"{percent(sparsity)} sparsity, round {number}"
        )

    @cached_property
    def galleries(self) -> dict[str, Any]:
        """The sample grids of every search, as they fit into the page."""
        several = len({search.precision for search in self.searches}) > 1
        whole = [gallery_of(self.out, search, several) for search in self.searches]
        shown, uris, exact = embedded(whole, [self.focus])
        viewers = []
        for search, gallery in zip(self.searches, shown, strict=True):
            sparsity = self.sparsity_at(search)
            rounds = [level.round for level in gallery.levels]
            printed = {*rounds[:1], *rounds[-1:], *(r for r in rounds if r == self.focus)}
            start = rounds.index(self.focus) if self.focus in rounds else len(rounds) // 2
            viewers.append({
                "label": label_of(search, self.searches),
                "start": start,
                "columns": max(2, min(4, max(map(len, (gallery.fixed, *(
                    level.pictures for level in gallery.levels)))))),
                "fixed": [self.picture(p, uris[p.path], "") for p in gallery.fixed],
                "levels": [
                    {"round": level.round, "printed": level.round in printed, "name": name,
                     "pictures": [self.picture(p, uris[p.path], name) for p in level.pictures]}
                    for level in gallery.levels
                    for name in [_level(level.round, sparsity)]
                ],
            })  # fmt: skip
        dropped = sum(len(a.levels) - len(b.levels) for a, b in zip(whole, shown, strict=True))
        return {
            "viewers": [viewer for viewer in viewers if viewer["fixed"] or viewer["levels"]],
            "tests": any(p.arm == "originals" for g in shown for p in g.fixed),
            "exact": exact,
            "dropped": dropped,
            "unreadable": sorted({name for gallery in whole for name in gallery.unreadable}),
        }

    @staticmethod
    def picture(picture: Any, uri: str, level: str) -> dict[str, Any]:
        """One grid with its words."""
        alt = (
            "test images" if picture.arm == "originals" else f"images of the {picture.arm} network"
        )
        return {"uri": uri, "arm": picture.arm, "width": picture.width, "height": picture.height,
                "alt": f"Grid: {alt}{f' at {level}' if level else ''}"}  # fmt: skip

    @property
    def troubles(self) -> list[tables.Table]:
        """Collapsed layers and divergences, where there are any."""
        sparsity = self.sparsity_at(self.searches[0]) if self.searches else {}
        found = (tables.collapsed_of(self.summary.get("collapsed"), sparsity),
                 tables.events_of(self.rows))  # fmt: skip
        return [table for table in found if table is not None]

    @property
    def no_troubles(self) -> str:
        """What did not happen, in words; nothing is said of collapse where it was not looked at."""
        said = []
        if "collapsed" in self.summary and not self.summary["collapsed"]:
            said.append("In every ticket each layer keeps some weight.")
        if tables.events_of(self.rows) is None:
            said.append("No run diverged.")
        return " ".join(said)

    @property
    def hashes(self) -> list[tuple[str, str]]:
        """Every hash in the config and the judge's record: data, judge, commit, task file."""
        found = _flat({**self.config, "judge": self.summary.get("judge") or {}})
        return [(name.removeprefix("resolved."), text) for name, text in found
                if _HASH.fullmatch(text)]  # fmt: skip

    @property
    def made_with(self) -> list[tuple[str, str]]:
        """Versions, machine, device, threads, commit: whatever the config records of them."""
        resolved = self.config.get("resolved") or {}
        known = {name: resolved[name] for name in ("images", "data_note") if name in resolved}
        run = (self.config.get("config") or {}).get("run") or {}
        return [
            *_flat(self.config.get("versions") or {}),
            *_flat({name: run[name] for name in ("device", "workers", "threads") if name in run}),
            *_flat(known),
            *_flat(self.summary.get("judge") or {}, "judge"),
            *_flat(self.summary.get("runs") or {}, "runs"),
        ]


def _level(number: int, sparsity: Mapping[int, float]) -> str:
    return f"{percent(sparsity[number])} sparsity" if number in sparsity else f"round {number}"


def _text(command: Any) -> str:
    """The command line, given as a string or as a list of arguments."""
    return " ".join(map(str, command)) if isinstance(command, list) else str(command or "")


def _flat(value: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested tables as (dotted name, text) pairs in order."""
    return list(_walk(value, name))


def _walk(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield name, ", ".join(map(str, value))
    else:
        yield name, "" if value is None else str(value)
