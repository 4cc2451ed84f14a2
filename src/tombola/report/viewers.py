"""What do the networks make? The sample grids of every search, as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tombola.metrics.verdict.sentences import percent
from tombola.report.curves import label_of
from tombola.report.families import Family, in_tables, levels_at, merged_gallery
from tombola.report.pictures import BUDGET_BYTES, Gallery, Level, Picture, embedded, gallery_of
from tombola.store.tables import Row

_LEAST_BYTES = 300_000
"""What the pictures may take however much else there is."""


def viewers_of(
    out: Path,
    families: Sequence[Family],
    rows: Sequence[Row],
    starts: Mapping[Family, int],
    taken_bytes: int = 0,
) -> dict[str, Any]:
    """The grids that fit into the page: one viewer a family, whose slider runs over its levels.

    ``starts``: the level at which a viewer opens, by family. ``taken_bytes``: what other parts have
    taken of the pictures' room.
    """
    several = len({member.precision for family in families for member in family.members}) > 1
    whole = [
        in_tables(
            merged_gallery([gallery_of(out, member, several) for member in family.members]),
            family,
            rows,
        )
        for family in families
    ]
    budget = max(_LEAST_BYTES, BUDGET_BYTES - taken_bytes)
    shown, uris, exact = embedded(whole, sorted(set(starts.values())), budget)
    viewers = [
        _viewer(family, gallery, uris, _names(family, rows, gallery), starts[family])
        | {"label": label_of(family.key, [other.key for other in families])}
        for family, gallery in zip(families, shown, strict=True)
    ]
    return {
        "viewers": [viewer for viewer in viewers if viewer["fixed"] or viewer["levels"]],
        "tests": any(p.arm == "originals" for gallery in shown for p in gallery.fixed),
        "exact": exact,
        "dropped": sum(len(a.levels) - len(b.levels) for a, b in zip(whole, shown, strict=True)),
        "unreadable": sorted({name for gallery in whole for name in gallery.unreadable}),
    }


def _names(family: Family, rows: Sequence[Row], gallery: Gallery) -> dict[int, str]:
    """What a level is called, by its round or by the place of its share."""
    sparsity = levels_at(family, rows)
    return {level.round: level_name(family, sparsity, level.round) for level in gallery.levels}


def level_name(family: Family, sparsity: Mapping[int, float], number: int) -> str:
    """``83.2% sparsity``, with the share of channels where that is what tells levels apart."""
    text = f"{percent(sparsity[number])} sparsity" if number in sparsity else f"round {number}"
    compress = share_name(family, number)
    return f"{text}, {compress}" if compress else text


def share_name(family: Family, number: int) -> str:
    """``compress 0.8``: what a level of a family of several members is called; else empty."""
    if len(family.members) == 1 or not 1 <= number <= len(family.members):
        return ""
    return f"compress {family.members[number - 1].compress:g}"


def _viewer(
    family: Family, gallery: Gallery, uris: Mapping[Path, str], names: Mapping[int, str], focus: int
) -> dict[str, Any]:
    """One family's grids; in print the first level, the last and the one that it opens at."""
    rounds = [level.round for level in gallery.levels]
    every = len(family.members) > 1
    printed = {*rounds[:1], *rounds[-1:], *(r for r in rounds if r == focus or every)}
    beside = max(map(len, (gallery.fixed, *(level.pictures for level in gallery.levels))))
    return {
        "start": rounds.index(focus) if focus in rounds else len(rounds) // 2,
        "columns": max(2, min(4, beside)),
        "fixed": [_picture(picture, uris[picture.path], "") for picture in gallery.fixed],
        "levels": [_level(level, uris, names[level.round], level.round in printed)
                   for level in gallery.levels],
    }  # fmt: skip


def _level(level: Level, uris: Mapping[Path, str], name: str, printed: bool) -> dict[str, Any]:
    pictures = [_picture(picture, uris[picture.path], name) for picture in level.pictures]
    return {"round": level.round, "printed": printed, "name": name, "pictures": pictures}


def _picture(picture: Picture, uri: str, level: str) -> dict[str, Any]:
    """One grid with its words."""
    alt = "test images" if picture.arm == "originals" else f"images of the {picture.arm} network"
    return {"uri": uri, "arm": picture.arm, "width": picture.width, "height": picture.height,
            "alt": f"Grid: {alt}{f' at {level}' if level else ''}"}  # fmt: skip
