"""Which run is next? Of those whose parents are whole the short ones first, then as planned."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Collection, Iterable

from tombola.store.graph import Node

FIRST = {
    "import": 0,
    "rewind": 1,
    "scores": 2,
    "mask": 2,
    "cut": 2,
    "thin": 2,
    "transfer": 2,
    "overlap": 3,
    "evaluate": 3,
    "floor": 3,
    "trivial": 3,
    "judge": 4,
    "search": 5,
    "watch": 5,
    "train": 5,
}
"""Which kind of ready run goes first: the short ones, which others wait for."""


class Agenda:
    """Runs that are to be carried out, handed out as their parents become whole.

    Each costs a look at its parents when it is added and one at its children when it is whole,
    however many others wait. ``done``: the runs that are whole already.
    """

    def __init__(self, nodes: Iterable[Node], done: Collection[str]) -> None:
        self._done = set(done)
        self._order: dict[str, int] = {}
        self._waiting: dict[str, tuple[Node, set[str]]] = {}
        self._children: dict[str, list[str]] = defaultdict(list)
        self._ready: list[tuple[int, int, Node]] = []
        self.add(nodes)

    def add(self, nodes: Iterable[Node]) -> None:
        """More runs to carry out, after those that are known."""
        for node in nodes:
            if node.hash in self._order or node.hash in self._done:
                continue
            self._order[node.hash] = len(self._order)
            open_parents = set(node.parents.values()) - self._done
            if not open_parents:
                self.give_back(node)
                continue
            self._waiting[node.hash] = node, open_parents
            for parent in open_parents:
                self._children[parent].append(node.hash)

    def take(self) -> Node | None:
        """The next run, which is handed out no more; None while all that are left wait."""
        return heapq.heappop(self._ready)[2] if self._ready else None

    def give_back(self, node: Node) -> None:
        """A run that was taken, in its old place."""
        heapq.heappush(self._ready, (FIRST[node.kind], self._order[node.hash], node))

    def finish(self, node: Node) -> None:
        """A run is whole: those that waited for it alone are ready."""
        self._done.add(node.hash)
        for name in self._children.pop(node.hash, ()):
            child, open_parents = self._waiting[name]
            open_parents.discard(node.hash)
            if not open_parents:
                del self._waiting[name]
                self.give_back(child)

    @property
    def waiting(self) -> int:
        """How many runs wait for others."""
        return len(self._waiting)
