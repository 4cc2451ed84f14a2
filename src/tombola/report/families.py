"""Which searches are shown as one? Those of early-bird that differ in nothing but compress.

Each share of channels is a search of its own, with a verdict of its own and one level. Shown
together they are one curve, whose points are the shares: a family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tombola.metrics.sentences import sentence
from tombola.metrics.statistics import SearchKey
from tombola.report.curves import DENSE, Curve, Point, file_name, folder_of, key_of
from tombola.report.pictures import Gallery, Level
from tombola.runs.results import KeyColumns

_NAME = re.compile(r"(.+?)/(.+)/r(\d+)/([^/]*)/c([^/]+)")
"""``statistics.arm_name`` of a search with a compress value."""
_TOLD = ("state", "reason", "arm", "metric", "controls", "margin", "margin_share", "bracket",
         "levels", "seeds", "matches_up_to", "at_least", "decidable_margin", "seeds_needed",
         "dense_diverged")  # fmt: skip
"""What a verdict must hold for its sentence to be told again."""


class Family(NamedTuple):
    """Searches shown as one, in order of compress; most families have one member."""

    key: SearchKey
    """What stands for it: its only member, or what all members share, compress being None."""
    members: tuple[SearchKey, ...]

    @property
    def in_rounds(self) -> bool:
        """Whether its levels are rounds, and not shares of channels."""
        return self.members[0].compress is None

    def folder(self, several_precisions: bool) -> str:
        """What its files are named by, where there are several families."""
        if len(self.members) == 1:
            return folder_of(self.key, several_precisions)
        words = (self.key.method, self.key.networks.replace(",", "+"))
        return file_name("-".join((*words, *([self.key.precision] if several_precisions else []))))


def families_of(searches: Iterable[SearchKey]) -> list[Family]:
    """The families of some searches, in order of their first members."""
    found: dict[SearchKey, list[SearchKey]] = {}
    for search in dict.fromkeys(searches):
        found.setdefault(search._replace(compress=None), []).append(search)
    return [
        Family(key if len(group) > 1 else group[0], tuple(sorted(group, key=_compress)))
        for key, group in found.items()
    ]


def in_order(searches: Sequence[SearchKey], first: SearchKey | None) -> list[SearchKey]:
    """The searches, those most like the first before the others: results.csv has them by name."""
    if first is None:
        return list(searches)
    fields = ("precision", "method", "networks", "rewind_steps")

    def unlike(search: SearchKey) -> tuple[bool, ...]:
        return tuple(getattr(search, name) != getattr(first, name) for name in fields)

    return sorted(searches, key=lambda search: (unlike(search), search != first))


def merged(curves: Iterable[Curve], families: Iterable[Family]) -> list[Curve]:
    """One curve an arm and family: its points are the shares, numbered from 1 in place of rounds.

    Curves of a family with one member come back as they are; the dense network has one point.
    """
    at = {member: (family, place) for family in families
          for place, member in enumerate(family.members, 1)}  # fmt: skip
    found: dict[tuple[SearchKey, str], list[Point]] = {}
    metric = ""
    for curve in curves:
        (family, place), metric = at[curve.search], curve.metric
        points = found.setdefault((family.key, curve.arm), [])
        if len(family.members) == 1:
            points += curve.points
        elif curve.arm != DENSE:
            points += [replace(point, round=place) for point in curve.points]
        elif not points:  # the same network, whatever is cut from it
            points += curve.points
    return [
        Curve(search, arm, metric, tuple(sorted(points, key=lambda point: point.round)))
        for (search, arm), points in found.items()
    ]


def merged_gallery(galleries: Sequence[Gallery]) -> Gallery:
    """The pictures of a family, one gallery a member: a level is a share, numbered from 1."""
    if len(galleries) == 1:
        return galleries[0]
    levels = [Level(place, level.pictures) for place, gallery in enumerate(galleries, 1)
              for level in gallery.levels[:1]]  # fmt: skip
    broken = (name for gallery in galleries for name in gallery.unreadable)
    fixed = next((gallery.fixed for gallery in galleries if gallery.fixed), ())
    return Gallery(fixed, tuple(levels), tuple(dict.fromkeys(broken)))


def levels_at(family: Family, rows: Iterable[KeyColumns]) -> dict[int, float]:
    """Round (or place of the share) -> sparsity, that of the first seed."""
    found: dict[int, float] = {}
    for row in rows:
        if row.arm != DENSE and row.round and key_of(row) in family.members:
            several = len(family.members) > 1
            place = 1 + family.members.index(key_of(row)) if several else row.round
            found.setdefault(place, row.sparsity)
    return found


def in_tables(gallery: Gallery, family: Family, rows: Iterable[KeyColumns]) -> Gallery:
    """A family's pictures without those of levels that no row is of: left by another search."""
    known = levels_at(family, rows)
    return replace(gallery, levels=tuple(lv for lv in gallery.levels if lv.round in known))


def headline_of(verdicts: Sequence[Mapping[str, Any]]) -> int:
    """Which of a family's verdicts, in order of compress, speaks for it.

    The last that wins, else the last that matches dense, else the first that is not worse, else
    the first.
    """
    states = [str(found.get("state", "")) for found in verdicts]
    for wanted in (
        [place for place, state in enumerate(states) if state == "wins"],
        [place for place, found in enumerate(verdicts) if found.get("matches_up_to") is not None],
    ):
        if wanted:
            return wanted[-1]
    return next((place for place, state in enumerate(states) if state != "worse"), 0)


def over_compress(verdicts: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """One verdict over a family: that of its headline, told with what is known of the others.

    The levels are those of all members, in order of compress and numbered from 1; the bracket ends
    at the first share beyond the headline that is worse; "at least" where the headline is the last.
    """
    if len(verdicts) < 2:
        return verdicts[0] if verdicts else {}
    place = headline_of(verdicts)
    chosen = verdicts[place]
    beyond = [level["sparsity"] for found in verdicts[place:]
              for level in found.get("levels") or () if found.get("state") == "worse"]  # fmt: skip
    levels = [{**level, "round": number} for number, found in enumerate(verdicts, 1)
              for level in found.get("levels") or ()]  # fmt: skip
    sparsest = max((level["sparsity"] for level in levels), default=None)
    told: dict[str, Any] = {
        **chosen,
        "levels": levels,
        "bracket": [chosen.get("sparsity"), beyond[0] if beyond else None],
        "at_least": chosen.get("state") == "wins" and chosen.get("sparsity") == sparsest,
    }
    # A reason that is not told by ``sentence`` has told itself: a judge that failed its gate.
    known = told.get("reason") in (None, "noise", "no controls", "controls undecided")
    if not known or any(name not in told for name in _TOLD):
        return told
    try:
        return {**told, "sentence": sentence(told)}
    except (LookupError, TypeError, AttributeError, StopIteration):
        return told  # a verdict whose parts do not fit together is none of a search's


def first_of(summary: Mapping[str, Any]) -> str | None:
    """The name of the search whose verdicts are at the top of summary.json, None without any.

    The file has its searches by name, so the order in which they were asked for is not in it.
    """
    arms = summary.get("arms") or {}
    top = summary.get("verdicts")
    return next((name for name, found in arms.items() if found == top), next(iter(arms), None))


def key_named(name: str) -> SearchKey | None:
    """The search of an ``arm_name`` that has a compress value; None for other names."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    method, networks, _, precision, compress = found.groups()
    try:
        return SearchKey(method, networks, None, precision, float(compress))
    except ValueError:
        return None


def shown_name(name: str) -> str:
    """An ``arm_name`` for people: without the rewound step where nothing is rewound."""
    key = key_named(name)
    return name if key is None else f"{key.method}/{key.networks}/{key.precision}/c{key.compress:g}"


def siblings(name: str, arms: Mapping[str, Any]) -> list[str]:
    """The names of the searches that differ from one in compress alone, in that order."""
    own = key_named(name)
    if own is None:
        return [name]
    keys = {other: key for other in arms if (key := key_named(other)) is not None}
    alike = [other for other, key in keys.items() if key._replace(compress=own.compress) == own]
    return sorted(alike, key=lambda other: _compress(keys[other]))


def forced_text(summary: Mapping[str, Any], search: SearchKey) -> str:
    """``forced in 2 of 3 seeds`` where channels were cut before they had settled; else empty."""
    seeds = (watched_of(summary, search).get("seeds") or {}).values()
    forced = sum(bool(seed.get("forced")) for seed in seeds)
    return f"cut forced in {forced} of {len(seeds)} seeds" if forced else ""


def watched_of(summary: Mapping[str, Any], search: SearchKey) -> Mapping[str, Any]:
    """What summary.json tells of the watch behind a search; empty where nothing is told."""
    told = summary.get("early_bird")
    if not isinstance(told, Mapping) or search.compress is None:
        return {}
    names = (folder_of(search, several_precisions=several) for several in (True, False))
    found: Any = next((told[name] for name in names if name in told), {})
    return found if isinstance(found, Mapping) else {}


def _compress(search: SearchKey) -> float:
    return search.compress or 0.0
