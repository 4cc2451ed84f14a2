"""Which searches are shown as one? Those of early-bird that differ in nothing but compress.

A share of channels is a level of one search, with one verdict. In the tables each is told from the
others by its ``compress``; shown together they are one curve over the shares: a family.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from tombola.report.curves import DENSE, Curve, Drawn, Point, file_name, folder_of, key_of
from tombola.report.pictures import Gallery, Level
from tombola.store.tables import KeyColumns

_WATCHED = re.compile(r"(.+)-c([0-9.]+(?:e-[0-9]+)?)(?:-(fp32|bf16|fp16))?")
"""What a watch is called in summary.json: ``curves.folder_of``."""


class Family(NamedTuple):
    """Searches shown as one, in order of compress; most families have one member."""

    key: Drawn
    """What stands for it: its only member, or what all members share, compress being None."""
    members: tuple[Drawn, ...]

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


def families_of(searches: Iterable[Drawn]) -> list[Family]:
    """The families of some searches, in order of their first members."""
    found: dict[Drawn, list[Drawn]] = {}
    for search in dict.fromkeys(searches):
        found.setdefault(search._replace(compress=None), []).append(search)
    return [
        Family(key if len(group) > 1 else group[0], tuple(sorted(group, key=_compress)))
        for key, group in found.items()
    ]


def in_order(searches: Sequence[Drawn], first: Drawn | None) -> list[Drawn]:
    """The searches, those most like the first before the others: results.csv has them by name."""
    if first is None:
        return list(searches)
    fields = ("precision", "method", "networks", "rewind_steps")

    def unlike(search: Drawn) -> tuple[bool, ...]:
        return tuple(getattr(search, name) != getattr(first, name) for name in fields)

    return sorted(searches, key=lambda search: (unlike(search), search != first))


def merged(curves: Iterable[Curve], families: Iterable[Family]) -> list[Curve]:
    """One curve an arm and family: its points are the shares, numbered from 1 in place of rounds.

    Curves of a family with one member come back as they are; the dense network has one point.
    """
    at = {member: (family, place) for family in families
          for place, member in enumerate(family.members, 1)}  # fmt: skip
    found: dict[tuple[Drawn, str], list[Point]] = {}
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


def shown_name(name: str) -> str:
    """A search's name for people: without the rewound step where nothing is rewound."""
    return name.replace("/r0/", "/") if name.startswith("early-bird/") else name


def forced_text(summary: Mapping[str, Any], name: str) -> str:
    """``cut forced at 0.8 in 2 of 3 seeds`` where channels had not settled; else empty.

    ``name``: the search's in summary.json.
    """
    told = summary.get("early_bird")
    method, networks, _, precision = [*name.split("/"), "", "", ""][:4]
    forced = []
    for label, watched in sorted(told.items()) if isinstance(told, Mapping) else ():
        found = _WATCHED.fullmatch(str(label))
        if found is None or found[1] != f"{method}-{networks}" or found[3] not in (None, precision):
            continue
        seeds = (watched.get("seeds") or {}).values() if isinstance(watched, Mapping) else ()
        count = sum(bool(seed.get("forced")) for seed in seeds)
        if count:
            forced.append(f"at {found[2]} in {count} of {len(seeds)} seeds")
    return f"cut forced {', '.join(forced)}" if forced else ""


def watched_of(summary: Mapping[str, Any], search: Drawn) -> Mapping[str, Any]:
    """What summary.json tells of the watch behind a search; empty where nothing is told."""
    told = summary.get("early_bird")
    if not isinstance(told, Mapping) or search.compress is None:
        return {}
    names = (folder_of(search, several_precisions=several) for several in (True, False))
    found: Any = next((told[name] for name in names if name in told), {})
    return found if isinstance(found, Mapping) else {}


def _compress(search: Drawn) -> float:
    return search.compress or 0.0
