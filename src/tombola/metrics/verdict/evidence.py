"""What must a verdict know besides the rows? Gates and sizes, from what is kept of a search."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tombola.metrics.verdict.losses import SearchKey, search_name

COMPARED = ("fcd", "kcd", "cs", "precision", "recall", "density", "coverage")
"""Kinds of metrics in which a judge of our own compares samples with reals."""


def failed_gates(
    judge: Mapping[str, Any] | None, classifier: Mapping[str, Any] | None
) -> dict[str, str]:
    """Kind of metric -> why the network that measures it may not be believed; empty if all may.

    ``judge``, ``classifier``: what summary.json tells of them.
    """
    found: dict[str, str] = {}
    for network, kinds in ((classifier, ("accuracy",)), (judge, COMPARED)):
        gate = (network or {}).get("gate")
        if gate is not None and not gate["passed"]:
            found |= dict.fromkeys(kinds, "; ".join(gate["reasons"]))
    return found


def larger_than_cut(costs: Iterable[Any]) -> dict[str, float]:
    """Search -> how many times the parameters of its cut networks thin-parameters has, if more.

    It cannot be made so thin; of the means over seeds and cuts. ``costs``: rows of costs.csv.
    """
    sizes: dict[tuple[str, str], list[int]] = {}
    for cost in costs:
        key = SearchKey(cost.method, cost.networks, cost.rewind_steps, cost.precision)
        sizes.setdefault((search_name(key), cost.arm), []).append(cost.parameters or 0)
    found = {}
    for name, arm in sizes:
        thin, cut = sizes.get((name, "thin-parameters")), sizes.get((name, "compact"))
        if arm == "compact" and thin and cut:
            times = (math.fsum(thin) / len(thin)) / (math.fsum(cut) / len(cut))
            if times > 1:
                found[name] = times
    return found
