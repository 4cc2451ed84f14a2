"""What is the run that learns a ticket's mask, from the rewind point? Its length and its config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tombola.plan.setting import Setting
from tombola.store.graph import Graph

DECIDING = ("task", "data", "precision", "device", "threads")
"""What it has in common with every training; nothing of it is averaged, or N steps long."""


def search_steps(setting: Setting, method: str, rewind_steps: int) -> int:
    """How many steps a search has: length (N - k), rounded, at least one."""
    length: float = getattr(setting.config, method).length
    return max(1, math.floor(length * (setting.steps - rewind_steps) + 0.5))


def search_config(
    base: Mapping[str, Any], mask: Mapping[str, Any], method: str, steps: int
) -> dict[str, Any]:
    """All that decides a search: what every training has, and ``mask``, the wanted one."""
    wanted = {key: mask[key] for key in ("keep", "prune", "exclude")}
    return {**{key: base[key] for key in DECIDING}, **wanted, "method": method, "steps": steps}


def steps_before(graph: Graph, name: str) -> int:
    """The training steps of a run that had to be done to get a ticket: of a rewind point, to it."""
    node = graph[name]
    return int(node.config["step"]) if node.kind == "rewind" else node.steps
