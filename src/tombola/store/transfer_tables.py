"""Which rows of results.csv tell of one transfer? Those of the target and of its one source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

from tombola.store.tables import Row

ARROW = "<-"
OWN = ("dense", "ticket", "reinit")
TRANSFERRED = ("transferred", "transferred-shuffle", "transferred-reinit")


class RouteKey(NamedTuple):
    """One way of a ticket, as the tables name it."""

    target: str
    network: str
    source: str
    """``vae.decoder``: task and network."""


def route_name(network: str, source: str, its_network: str) -> str:
    """The column ``networks`` of a transferred arm: ``generator<-vae.decoder``."""
    return f"{network}{ARROW}{source}.{its_network}"


def routes_in(rows: Iterable[Row]) -> list[RouteKey]:
    """The transfers that rows tell of, in order of appearance."""
    found: dict[RouteKey, None] = {}
    for row in rows:
        network, arrow, source = row.networks.partition(ARROW)
        if arrow and row.arm in TRANSFERRED:
            found[RouteKey(row.task, network, source)] = None
    return list(found)


def rows_of(rows: Iterable[Row], route: RouteKey) -> list[Row]:
    """The target's own rows and those of one source, as if of one search: that of the target.

    Where there is no own ticket (a file was transferred), the search is the file's.
    """
    mine = [row for row in rows if row.task == route.target]
    name = f"{route.network}{ARROW}{route.source}"
    foreign = [row for row in mine if row.arm in TRANSFERRED and row.networks == name]
    own = [row for row in mine if row.arm in OWN and row.networks in (route.network, name)]
    rewind = next((row.rewind_steps for row in [*own, *foreign]), None)
    return [
        dataclasses.replace(row, networks=route.network, rewind_steps=rewind)
        for row in [*own, *foreign]
    ]


def as_ticket(rows: Iterable[Row]) -> list[Row]:
    """The rows of :func:`rows_of` with the transferred ticket in the place of the own.

    Its controls are called as a ticket's: ``shuffle``, and ``reinit``, that of the own mask where
    there is one, else that of its own.
    """
    rows = [row for row in rows if row.arm != "ticket"]
    names = {"transferred": "ticket", "transferred-shuffle": "shuffle"}
    if not any(row.arm == "reinit" for row in rows):
        names["transferred-reinit"] = "reinit"
    return [dataclasses.replace(row, arm=names.get(row.arm, row.arm)) for row in rows]


def without_transfers(rows: Iterable[Row], task: str) -> list[Row]:
    """The rows of one task's own search."""
    return [row for row in rows if row.task == task and row.arm not in TRANSFERRED]
