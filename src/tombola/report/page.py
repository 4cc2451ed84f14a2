"""What did the search find? OUT/report.html: one offline file, made from OUT/ alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tombola.metrics.verdict.sentences import percent
from tombola.report import channels, making, plots, tables, transfer
from tombola.report.comparisons import comparisons_of
from tombola.report.costs import costs_of
from tombola.report.curves import (
    Curve,
    Drawn,
    bracket_of,
    curves_csv,
    curves_of,
    label_of,
    searches_of,
)
from tombola.report.families import (
    Family,
    families_of,
    in_order,
    levels_at,
    merged,
)
from tombola.report.folder import ended, read_folder, write_file
from tombola.report.judging import first_of, judge_again
from tombola.report.pictures import data_uri
from tombola.report.savings import Savings
from tombola.report.settling import drawing_of
from tombola.report.techniques import Technique, techniques_of, techniques_table
from tombola.report.template import render_page
from tombola.report.viewers import share_name, viewers_of
from tombola.store.tables import CostRow, Row
from tombola.store.unfinished import progress_text

REPORT = "report.html"
_BETTER = {"lower": "lower is better", "higher": "higher is better"}


def write_report(out: Path) -> Path:
    """Write ``out/report.html`` anew, whole or not at all, and return its path.

    Reads config.json, results.csv, summary.json, costs.csv and samples/ (the last two may be
    missing). ConfigError if ``out`` is no run directory, DataError if a file in it is not as it
    should be.
    """
    judge_again(Path(out))
    folder = read_folder(Path(out))
    page = _Page(**vars(ended(transfer.own_part(folder))))
    path = folder.out / REPORT
    context = page.context() | transfer.told(folder)
    if progress_text(folder.summary):
        context |= {"state": "in progress", "tone": "open"}
    write_file(path, render_page(context).encode("utf-8", "backslashreplace"))
    return path


@dataclass(frozen=True)
class _Page:
    """What was read, and what the template asks of it."""

    out: Path
    config: dict[str, Any]
    summary: dict[str, Any]
    rows: list[Row]
    costs: list[CostRow]

    @cached_property
    def searches(self) -> list[Drawn]:
        """Every search, that of the headline and its like first."""
        found, name = searches_of(self.rows), first_of(self.summary)
        return in_order(found, next((search for search in found if search.name == name), None))

    @cached_property
    def families(self) -> list[Family]:
        """The searches as they are shown: those that differ in compress alone are one."""
        return families_of(self.searches)

    @cached_property
    def curves(self) -> dict[str, list[Curve]]:
        """Metric -> the curves of every search, in the order of the searches."""
        place = {search: index for index, search in enumerate(self.searches)}
        return {metric: sorted(found, key=lambda curve: place[curve.search])
                for metric, found in curves_of(self.rows).items()}  # fmt: skip

    @cached_property
    def primary(self) -> str | None:
        """The metric that decides."""
        wished = self.summary.get("primary")
        return wished if wished in self.curves else next(iter(self.curves), None)

    @cached_property
    def watched(self) -> list[channels.Watched]:
        """What is told of the watches behind early-bird tickets."""
        return channels.watched_in(self.summary, self.searches)

    @cached_property
    def focus(self) -> int:
        """The round that costs and classes are told of: that of the first search in rounds."""
        families = sorted(self.families, key=lambda family: not family.in_rounds)
        return self.focus_of(families[0]) if families else 0

    def focus_of(self, family: Family) -> int:
        """The level that a family opens at: the sparsest winning ticket's, else the middle one."""
        sparsity = levels_at(family, self.rows)
        found = self.verdict(family, self.primary or "")
        wanted = found.get("sparsity") or found.get("matches_up_to")
        at = [number for number in sorted(sparsity) if sparsity[number] == wanted]
        rounds = sorted(sparsity)
        return at[0] if at else rounds[len(rounds) // 2] if rounds else 0

    def verdicts(self, search: Drawn) -> Mapping[str, Mapping[str, Any]]:
        """The verdicts of one search by metric; those at the top belong to the first."""
        arms = self.summary.get("arms") or {}
        first = bool(self.searches) and search == self.searches[0]
        fallback = self.summary.get("verdicts") or {} if first else {}
        found: Mapping[str, Mapping[str, Any]] = arms.get(search.name) or fallback
        return found

    def verdict(self, family: Family, metric: str) -> Mapping[str, Any]:
        """The verdict on a family, whose shares of channels are its levels."""
        return self.verdicts(family.members[0]).get(metric) or {}

    def context(self) -> dict[str, Any]:
        """Everything that the template shows, as strings, tables and lists."""
        first = self.families[0] if self.families else None
        found = self.verdict(first, self.primary or "") if first else {}
        state = str(found.get("state", "no verdict"))
        savings, settled = self.savings, self.settled
        drawn = [*savings, *(plot for part in settled for plot in part["plots"])]
        early = any(search.compress is not None for search in self.searches)
        tones = {"wins": "good", "worse": "bad"}
        return {
            "title": self.title,
            "facts": self.facts,
            "sentence": tables.headline(self.summary),
            "notes": [str(note) for note in self.summary.get("notes") or ()],
            "state": state,
            "tone": tones.get(state, "open"),
            "verdict": self.verdict_tables[0],
            "verdicts": self.verdict_tables[1],
            "which": label_of(first.key, self.keys) if first else "",
            "forced": channels.forced_words(self.watched, self.searches),
            "early": early,
            "savings": savings,
            "settled": settled,
            "plots": [self.plot(metric) for metric in self.metrics],
            "galleries": viewers_of(
                self.out,
                self.families,
                self.rows,
                {family: self.focus_of(family) for family in self.families},
                sum(len(plot[part]) for plot in drawn for part in ("wide", "narrow", "csv")),
            ),
            "spread": tables.spread_of({m: self.curves[m] for m in self.metrics}, self.summary),
            "sampled": bool(self.summary.get("sampling_sd") or self.summary.get("floor")),
            "classes": tables.classes_of(self.rows, self.searches, self.focus),
            "comparisons": comparisons_of(self.summary.get("comparisons"), self.primary),
            "stability": tables.stability_of(self.summary.get("stability"), self.primary),
            "convergence": tables.convergence_of(self.summary.get("convergence"), self.primary),
            "troubles": self.troubles,
            "no_troubles": self.no_troubles,
            "techniques": self.techniques_table,
            "costs": costs_of(self.costs, self.searches, self.focus),
            "cost_level": self.level_name,
            **making.made(self.config, self.summary),
        }

    @property
    def title(self) -> str:
        some = self.rows[0] if self.rows else None
        return f"{some.task} on {some.data}" if some else "an empty search"

    @property
    def keys(self) -> list[Drawn]:
        """What stands for each family."""
        return [family.key for family in self.families]

    @property
    def facts(self) -> list[str]:
        """The search in a line: methods, seeds, levels, rewind steps, shares, precisions."""

        def each(name: str) -> str:
            values = dict.fromkeys(getattr(search, name) for search in self.searches)
            return ", ".join(f"{value:g}" if isinstance(value, float) else str(value)
                             for value in values if value not in ("", None))  # fmt: skip

        seeds = len({row.seed for row in self.rows})
        levels = len({row.round for row in self.rows if row.compress is None} - {0})
        many = levels or not any(search.compress is not None for search in self.searches)
        forced = [watched.search.compress for watched in self.watched if watched.forced]
        at = ", ".join(f"{value:g}" for value in dict.fromkeys(forced) if value is not None)
        facts = [
            each("method"),
            f"{seeds} training {'seed' if seeds == 1 else 'seeds'}",
            f"{levels} {'level' if levels == 1 else 'levels'} of sparsity" if many else "",
            f"compress {each('compress')}" if each("compress") else "",
            f"cut forced at {at}" if at else "",
            f"rewound to step {each('rewind_steps')}" if each("rewind_steps") else "",
            f"pruned: {each('networks')}" if each("networks") else "",
            each("precision"),
        ]
        return [fact for fact in (progress_text(self.summary), *facts) if fact]

    @property
    def metrics(self) -> list[str]:
        judged = self.summary.get("verdicts") or {}
        # How long trainings were stands in the place of numbers where a script gave none.
        shown = self.curves.keys() - ({"steps"} - judged.keys())
        return sorted(shown, key=lambda name: (name != self.primary, name not in judged, name))

    @property
    def verdict_tables(self) -> tuple[tables.Table, list[tuple[str, tables.Table]]]:
        """The table under the sentence, and, of several searches, every metric of each."""
        found = {
            label_of(family.key, self.keys): tables.with_forced(
                self.verdicts(family.key), self.summary, family.key.name
            )
            for family in self.families
        }
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
        curves = merged(self.curves[metric], self.families)
        verdicts = {family.key: self.verdict(family, metric) for family in self.families}
        # Of tickets and of networks cut smaller only the share of all parameters can be compared.
        by_all = len({search.networks for search in self.searches}) > 1
        by_all = by_all or any(search.compress is not None for search in self.searches)
        label = tables.metric_label(metric)
        plot = plots.Plot(
            metric=metric, label=label, verdicts=verdicts, by_all=by_all, floor=self.floor(metric)
        )
        first = next((found for found in verdicts.values() if found), {})
        name = re.sub(r"[^a-z0-9]+", "-", metric.lower())
        return {
            "name": name,
            "title": f"{label} against sparsity",
            "label": label,
            "better": _BETTER.get(str(first.get("better")), "no direction: drawn, not judged"),
            "words": self.words(curves, label, first),
            "wide": Markup(plots.draw(curves, plot, narrow=False)),
            "narrow": Markup(plots.draw(curves, plot, narrow=True)),
            "levels": [(label_of(family.key, self.keys),
                        tables.levels_of(curves, family.key, verdicts[family.key], {
                            number: share_name(family, number)
                            for number in range(1, len(family.members) + 1)}))
                       for family in self.families],
            "csv": data_uri("text/csv", curves_csv(self.curves[metric]).encode()),
        }  # fmt: skip

    def floor(self, metric: str) -> float | None:
        """What training images score in the place of samples; drawn for Frechet distances only."""
        if not metric.startswith(("fid", "fcd-")):
            return None
        found = (self.summary.get("floor") or {}).get(metric)
        return found if isinstance(found, int | float) else None

    @property
    def floor_of(self) -> str:
        """How many training images the floor is of: as many as samples, where there are enough."""
        judged = self.summary.get("judged") or {}
        few = 0 < judged.get("floor", 0) < judged.get("fakes", 0)
        return f"All {judged['floor']:,}" if few else "As many"

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
                f"{self.floor_of} training images get {tables.number(floor)}: the floor, dotted "
                "where it lies within the frame."
            )
        if len(self.families) == 1 and bracket_of(verdict)[0] is not None:
            words.append(
                "The vertical line marks the sparsest ticket that wins; the shaded stretch runs "
                "from it to the first level that is worse than dense, or to the end."
            )
        if any(p.diverged or p.not_run for c in curves for p in c.points):
            words.append("A cross marks a level where a seed diverged or was not run.")
        return [*filter(None, words), "The axis is logarithmic in the share of weights kept."]

    @property
    def level_name(self) -> str:
        """``83.2% sparsity, round 8``: the level that costs and classes are told of."""
        own = [family for family in self.families if family.in_rounds]
        shares = "every compress value" if len(own) < len(self.families) else ""
        if not own:
            return shares
        sparsity = levels_at(own[0], self.rows).get(self.focus)
        known = "" if sparsity is None else f"{percent(sparsity)} sparsity, "
        return " and ".join(filter(None, (f"{known}round {self.focus}", shares)))

    @cached_property
    def techniques(self) -> list[Technique]:
        """What could be trained in the place of the dense network, and what it costs."""
        metric = self.primary or ""
        verdicts = {s: self.verdicts(s).get(metric, {}) for s in self.searches}
        return techniques_of(self.curves.get(metric, ()), self.costs, verdicts)

    @property
    def techniques_table(self) -> tables.Table | None:
        """The paper's table 2, where there is more than one technique to compare."""
        methods = {(search.method, search.compress) for search in self.searches}
        several = len(methods) > 1 or any(compress is not None for _, compress in methods)
        shown = self.techniques if several and self.costs else []
        return techniques_table(shown, self.searches, self.primary or "")

    @property
    def savings(self) -> list[dict[str, Any]]:
        """The paper's figure 7, where networks were cut smaller and costs are known."""
        if not any(search.compress is not None for search in self.searches):
            return []
        found = self.verdict(self.families[0], self.primary or "")
        better = str(found.get("better", ""))
        return list(Savings(self.techniques, self.searches, self.primary or "", better).drawings())

    @property
    def settled(self) -> list[dict[str, Any]]:
        """When the channels settled, a part for each family of early-bird searches."""
        parts: list[dict[str, Any]] = []
        for family in self.families:
            group = [each for each in self.watched if each.search in family.members]
            if not group:
                continue
            words = [*channels.rule_words(group[0]), channels.norm_words(group)]
            parts.append({
                "label": label_of(family.key, self.keys),
                "words": words if all(part["words"] != words for part in parts) else [],
                "table": channels.settled_table(group),
                "thin": channels.thin_words(group),
                "left": channels.left_table(group),
                "plots": [drawing_of(each, label_of(each.search, self.searches))
                          for each in group],
            })  # fmt: skip
        return parts

    @property
    def troubles(self) -> list[tables.Table]:
        """Collapsed layers and divergences, where there are any."""
        # Channels are cut so that each layer keeps some; only rounds can leave one without any.
        first = next((family for family in self.families if family.in_rounds), None)
        sparsity = levels_at(first, self.rows) if first else {}
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
