"""How much do two tickets agree, layer by layer, beyond what chance gives? Without torch.

Chance: the masks of a layer are drawn independently, each with the kept count that it has. What
both keep is then hypergeometric: of n places with a and b kept, a b / n on average, with variance
a b (n - a)(n - b) / (n^2 (n - 1)). How the layers share a ticket's weights is thus given, and two
tickets with the same share for each layer are not said to agree because of that. Channels count
once each: a mask that repeats their bits along whole filters is first brought back to channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tombola.errors import TicketError, escape
from tombola.store.container import open_file
from tombola.store.format import TICKET_FORMAT, Header, expect, numel

_FACTS = ("task", "data", "method", "granularity", "seed", "round", "rewind_step", "sparsity")


@dataclass(frozen=True)
class _Masks:
    """A ticket's header and its masks in the shapes of their weights, by "network.parameter"."""

    header: Header
    bits: Mapping[str, NDArray[np.bool_]]


def difference(first: str | Path, second: str | Path) -> dict[str, Any]:
    """The overlap of two tickets' masks against chance, as a JSON-ready dictionary.

    ``layers`` and ``total`` have ``kept`` (of the first and the second), ``both``, ``expected`` by
    chance, ``over_chance`` = both / expected, ``z`` = (both - expected) / its standard deviation
    (None where chance leaves no choice), ``jaccard`` and ``jaccard_by_chance``. ``shapes_differ``,
    ``only_first`` and ``only_second`` name masked layers that cannot be compared. Both files are
    checked whole; TicketError if one is unsound or no ticket, or if no layer is in both.
    """
    one, other = _masks(first), _masks(second)
    shared = [key for key in one.bits if key in other.bits]
    alike = [key for key in shared if one.bits[key].shape == other.bits[key].shape]
    kinds = [each.header.manifest["granularity"] for each in (one, other)]
    if not alike or kinds[0] != kinds[1]:
        raise _nothing_shared(one, other, kinds)
    layers, summed, expected, variance = [], [0, 0, 0, 0], 0.0, 0.0
    for key in alike:
        a, b = one.bits[key], other.bits[key]
        shape = list(a.shape)
        if kinds[0] == "channel":
            a, b = _by_channel(a, b)
        counts = [a.size, *(int(np.count_nonzero(each)) for each in (a, b, a & b))]
        mean, spread = chance(*counts[:3])
        layers.append({"name": key, "shape": shape, **_row(counts, mean, spread)})
        summed = [x + y for x, y in zip(summed, counts, strict=True)]
        expected, variance = expected + mean, variance + spread
    return {
        "files": [one.header.path, other.header.path],
        "facts": [{key: each.header.manifest.get(key) for key in _FACTS} for each in (one, other)],
        "total": _row(summed, expected, variance),
        "layers": layers,
        "shapes_differ": {
            key: [list(each.bits[key].shape) for each in (one, other)]
            for key in shared
            if key not in alike
        },
        "only_first": [key for key in one.bits if key not in other.bits],
        "only_second": [key for key in other.bits if key not in one.bits],
    }


def chance(n: int, a: int, b: int) -> tuple[float, float]:
    """Mean and variance of what two independent masks both keep: ``a`` and ``b`` of ``n`` places.

    The hypergeometric distribution's (Johnson, Kemp and Kotz 2005, section 6.3).
    """
    if n == 0:
        return 0.0, 0.0
    spread = a * b * (n - a) * (n - b) / (n * n * (n - 1)) if n > 1 else 0.0
    return a * b / n, spread


def difference_text(found: Mapping[str, Any]) -> str:
    """What ``difference`` returns as lines for a terminal; strings from the files are escaped."""
    lines = []
    for letter, path, facts in zip("AB", found["files"], found["facts"], strict=True):
        known = ", ".join(
            f"{key.replace('_', ' ')} {f'{value:.4%}' if key == 'sparsity' else value}"
            for key, value in facts.items()
            if value is not None
        )
        lines += [f"{letter}: {escape(path, 400)}", f"   {escape(known, 200)}"]
    rows = [*found["layers"], {"name": "all layers", **found["total"]}]
    names = [escape(row["name"], 60) for row in rows]
    wide = max(map(len, names))
    lines += [
        "",
        f"  {'layer':{wide}}  {'total':>11}  {'kept by A':>11}  {'kept by B':>11}  "
        f"{'by both':>11}  {'by chance':>11}  {'ratio':>7}  {'z':>8}  {'Jaccard':>7}",
    ]
    for name, row in zip(names, rows, strict=True):
        ratio = "-" if row["over_chance"] is None else f"{row['over_chance']:.3f}"
        z = "-" if row["z"] is None else f"{row['z']:.1f}"
        shared = "-" if row["jaccard"] is None else f"{row['jaccard']:.4f}"
        lines.append(
            f"  {name:{wide}}  {row['total']:>11,}  {row['kept'][0]:>11,}  {row['kept'][1]:>11,}  "
            f"{row['both']:>11,}  {row['expected']:>11,.1f}  {ratio:>7}  {z:>8}  {shared:>7}"
        )
    lines += [
        f"  {escape(key, 60)}: {a} in A, {b} in B; not compared"
        for key, (a, b) in found["shapes_differ"].items()
    ]
    for letter, names in (("A", found["only_first"]), ("B", found["only_second"])):
        lines += [f"  {escape(key, 60)}: masked only in {letter}" for key in names]
    return "\n".join(lines)


def _masks(path: str | Path) -> _Masks:
    """The masks of a ticket, all of it checked before any is read."""
    with open_file(path) as source:
        expect(source.header, TICKET_FORMAT)
        found = source.check()
        bits = {}
        for key, shape in source.header.shapes.items():
            if key in found:
                packed = bytearray(source.header.entries[f"mask.{key}"].size)
                source.read_into(f"mask.{key}", memoryview(packed))
                flat = np.unpackbits(np.frombuffer(packed, np.uint8), count=numel(shape))
                bits[key] = flat.view(np.bool_).reshape(shape)
        return _Masks(source.header, bits)


def _by_channel(
    a: NDArray[np.bool_], b: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """One bit a channel, if there is an axis along which both masks are the same throughout."""
    for axis in range(a.ndim if a.size else 0):
        rows = [np.moveaxis(each, axis, 0).reshape(each.shape[axis], -1) for each in (a, b)]
        if all((row == row[:, :1]).all() for row in rows):
            return rows[0][:, 0], rows[1][:, 0]
    return a, b


def _row(counts: list[int], expected: float, variance: float) -> dict[str, Any]:
    """The numbers of a layer, or of all, from (places, kept by A, kept by B, kept by both)."""
    n, a, b, both = counts
    union, by_chance = a + b - both, a + b - expected
    return {
        "total": n,
        "kept": [a, b],
        "both": both,
        "expected": expected,
        "over_chance": both / expected if expected else None,
        "z": (both - expected) / math.sqrt(variance) if variance else None,
        "jaccard": both / union if union else None,
        "jaccard_by_chance": expected / by_chance if by_chance else None,
    }


def _nothing_shared(one: _Masks, other: _Masks, kinds: list[str]) -> TicketError:
    paths = [escape(each.header.path, 400) for each in (one, other)]
    if kinds[0] != kinds[1]:
        why = f"one masks {kinds[0]}s, the other {kinds[1]}s"
    else:
        has = [escape(", ".join(each.bits) or "no mask at all", 60) for each in (one, other)]
        why = f"{has[0]} against {has[1]}"
    return TicketError(
        f"{paths[0]} and {paths[1]} have no masked layer of the same name and shape in common "
        f"({why}); give two tickets of the same networks"
    )
