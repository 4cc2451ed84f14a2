"""What has to be run: nodes of work named by their content, and the graph they make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tombola.config.values import content_hash

SCHEMA = {
    "import": 1,
    "train": 1,
    "rewind": 1,
    "mask": 1,
    "judge": 2,
    "evaluate": 4,
    "floor": 2,
    "trivial": 1,
    "scores": 1,
    "watch": 1,
    "cut": 1,
    "overlap": 1,
    "thin": 1,
    "transfer": 1,
    "search": 1,
}
"""Schema number by kind of node; raise one when its stage's results would change."""


@dataclass(frozen=True)
class Node:
    """One run: a kind, what makes it different, and the runs it builds on."""

    kind: str
    config: Mapping[str, Any]
    """Everything that decides the result and nothing else; plain JSON values."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """Role -> hash of the run that plays it."""
    label: str = ""
    """For people; not part of the name."""
    steps: int = 0
    """Training steps it takes, for the progress bar; not part of the name."""

    @cached_property
    def hash(self) -> str:
        """The run's name: 32 hex digits of the hash of kind, schema, config and parents."""
        named = {
            "kind": self.kind,
            "schema": SCHEMA[self.kind],
            "config": dict(self.config),
            "parents": dict(self.parents),
        }
        return content_hash(named)[:32]


class Graph:
    """Nodes by hash, parents before children; the same node added twice is one node."""

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}

    def add(self, node: Node) -> str:
        """Add a node and return its hash; its parents must be in the graph already."""
        for role, parent in node.parents.items():
            assert parent in self._nodes, f"{node.label}: its {role} is not in the graph"
        return self._nodes.setdefault(node.hash, node).hash

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def missing(self, done: Iterable[str]) -> list[Node]:
        """Nodes that are not done, parents first."""
        finished = set(done)
        return [node for node in self if node.hash not in finished]
