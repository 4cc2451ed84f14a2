"""What is told of the watches behind early-bird tickets: when each settled, and on what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tombola.plan.cells import Arm, Plan
from tombola.sparsity.watch import unpack_watch

DIGITS = 4
"""Decimals of a distance; two masks of 960 channels that differ in one are 0.001 apart."""


def watched(
    plan: Plan, record: Callable[[str], dict[str, Any]], label: Callable[[Arm], str]
) -> dict[str, Any]:
    """Arm -> what its watches found, for ``summary.json``; empty without early-bird arms.

    By seed: ``step`` and ``steps`` (where it was cut, of how many), ``forced`` (it had not settled
    by half of them), ``overlap`` (network -> share of its channels that the end of dense training
    chooses too, and that share by chance), ``widths`` (group -> channels before and after),
    ``largest`` (step and network -> the distance that the rule compared), and ``thin_flops``
    (network -> what thin-flops has of its multiply-adds, where it is among the controls). Of the
    first seed also
    ``matrix``: network -> the distances of all draws from each other, at ``draws``. Once an arm
    ``rule``, ``delta``, ``settle``, ``left`` (what could not be cut, and why) and ``by_scale``.
    """
    found: dict[str, Any] = {}
    thin = _thin(plan, record)
    for cell in plan.cells:
        if cell.kind != "compact" or cell.cut not in plan.watches:
            continue
        made = record(cell.cut)
        if "not_run" in made:
            continue
        runs = {role: record(name) for role, name in plan.watches[cell.cut].items()}
        config, watch = runs["watch"]["config"], runs["watch"]["watches"][cell.arm.compress]
        rule = {key: config[key] for key in ("rule", "delta", "settle", "prune")}
        rest = {key: runs["watch"][key] for key in ("left", "by_scale")}
        arm = found.setdefault(label(cell.arm), {**rule, **rest, "seeds": {}})
        arm["seeds"][str(cell.seed)] = {
            "step": made["from_step"],
            "steps": config["steps"],
            "forced": made["forced"],
            "overlap": runs["overlap"].get("overlap"),
            "widths": made["widths"],
            "largest": dict(zip(map(str, watch["steps"]), watch["largest"], strict=True)),
            "thin_flops": thin.get(cell.cut, {}),
        }
        if "matrix" not in arm and watch["steps"]:
            draws, distances = unpack_watch(watch).matrix()
            arm["draws"] = draws
            arm["matrix"] = {
                name: [[round(value, DIGITS) for value in row] for row in rows.tolist()]
                for name, rows in distances.items()
            }
    return found


def _thin(plan: Plan, record: Callable[[str], dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Cut -> network -> what thin-flops has of the multiply-adds of the smaller network."""
    found = {}
    for cell in plan.cells:
        if cell.kind == "thin-flops" and cell.cut is not None and cell.train in plan.graph:
            made = record(plan.graph[cell.train].parents["thin"])
            # Runs of an earlier version did not record it.
            parts = made.get("plan", {}).items()
            found[cell.cut] = {name: part["ratio"] for name, part in parts if "ratio" in part}
    return found
