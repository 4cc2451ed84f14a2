"""What did everything cost together, with what no row tells of alone: searches, scores, chains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tombola.plan.cells import Cell
from tombola.store.graph import Graph
from tombola.store.tables import CostRow

Record = Mapping[str, Any]


def spent(rows: Iterable[CostRow], others: Iterable[tuple[int, float]]) -> dict[str, float]:
    """The sums of rows, each of another training, and of (FLOPs, seconds) of what has no row."""
    rows, others = list(rows), list(others)
    return {
        "train_flops": sum(r.train_flops or 0 for r in rows) + sum(f for f, _ in others),
        "train_seconds": sum(r.train_seconds or 0.0 for r in rows) + sum(s for _, s in others),
        "eval_seconds": sum(r.eval_seconds or 0.0 for r in rows),
    }


def before_ticket(
    name: str, record: Callable[[str], Record], flops_of: Callable[[Record], int]
) -> tuple[int, float]:
    """(FLOPs, seconds) of a run that had to be done to get a ticket.

    Of a rewind point, where nothing of the dense run is needed but its way there, the steps to it
    and as large a share of that run's seconds.
    """
    made = record(name)
    if made["kind"] == "rewind":
        dense, step = record(made["parents"]["dense"]), made["config"]["step"]
        share = step / dense["config"]["steps"]
        return flops_of({"config": {"steps": step}}), dense["seconds"] * share
    return 2 * made["macs"] if "macs" in made else flops_of(made), made["seconds"]


def behind(
    graph: Graph,
    record: Callable[[str], Record],
    flops_of: Callable[[Record], int],
    cells: Iterable[Cell],
) -> Iterator[tuple[int, float]]:
    """(FLOPs, seconds) of every run that learns or scores and is no training of the cells."""
    told = {cell.train for cell in cells}
    for node in graph:
        made = record(node.hash)
        if "not_run" in made or node.hash in told:
            continue
        if node.kind in ("train", "search"):
            yield flops_of(made), made["seconds"]
        elif node.kind == "watch":
            ends = [cut["step"] for cut in made["cuts"].values()]
            yield 2 * made["step_macs"] * max([*ends, made.get("diverged", 0)]), made["seconds"]
        elif node.kind in ("scores", "mask") and "macs" in made:
            yield 2 * made["macs"], made["seconds"]
