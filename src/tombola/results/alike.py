"""Which trainings gave the same numbers though they must differ? Told, as no chance makes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tombola.plan.cells import Cell

MOST = 3
"""Sets of equal trainings that are named."""


def alike(cells: Sequence[Cell], record: Callable[[str], Mapping[str, Any]]) -> list[str]:
    """A sentence for each set of different trainings that are equal in every metric, to the bit."""
    found: dict[str, dict[str, str]] = {}
    for cell in cells:
        values = record(cell.evaluate).get("values")
        if values:
            where = "" if cell.kind == "dense" else f" of round {cell.round}"
            same = found.setdefault(repr(sorted(values.items())), {})
            same.setdefault(cell.train, f"{cell.kind}{where}, seed {cell.seed}")
    sets = [list(names.values()) for names in found.values() if len(names) > 1]
    return [f"These gave the same numbers, bit for bit: {'; '.join(each)}." for each in sets[:MOST]]
