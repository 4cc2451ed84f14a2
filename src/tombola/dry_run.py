"""What a search would do: its config, its graph, and what it would take in time and disk."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

from tombola.engine.mending import whole_runs
from tombola.engine.output import whole_config
from tombola.engine.search import Request, prepare
from tombola.metrics.statistics import seeds_for_margin
from tombola.recipes.cells import Plan
from tombola.recipes.chain import few_draws
from tombola.recipes.setting import Setting, seconds_per_step
from tombola.runs.plan import Node
from tombola.runs.store import Store

_WEIGHT_BYTES = 4


def describe(request: Request) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The tables that ``--config`` reads back, and lines on the plan and the estimates."""
    setting, plan = prepare(request)
    tables = whole_config(setting)
    asked = setting.config.run
    # What the machine decides stays open, so that the file works on another machine.
    tables["run"] = {**dataclasses.asdict(asked)}
    few = [note] if (note := few_draws(setting)) else []
    estimates = _estimates(request, setting, plan)
    return tables, [*_graph(request, setting, plan), *few, *estimates, *margins()]


def _graph(request: Request, setting: Setting, plan: Plan) -> list[str]:
    done = whole_runs(plan, Store(request.out / "store"))
    kinds = Counter(node.kind for node in plan.graph)
    there = Counter(node.kind for node in plan.graph if node.hash in done)
    lines = [f"out: {request.out}", "graph:"]
    lines += [
        f"  {kind}: {count} runs, {there[kind]} of them done"
        for kind, count in sorted(kinds.items())
    ]
    config = setting.config
    if "early-bird" in config.search.method:
        lines.append(f"  compress: {', '.join(config.prune.compress)} of the channels")
    masked = set(config.search.method) != {"early-bird"}
    levels = sorted({cell.round for cell in plan.cells} - {0})  # none of a dense training
    for pool, n in setting.pools.items() if masked and levels else ():
        kept = [setting.kept(pool, level) for level in levels]
        lines.append(
            f"  prune {pool}: {n} weights, kept by level: {', '.join(str(k) for k in kept)}"
        )
    return lines


def _estimates(request: Request, setting: Setting, plan: Plan) -> list[str]:
    done = whole_runs(plan, Store(request.out / "store"))
    todo = plan.graph.missing(done)
    steps = sum(node.steps for node in todo)
    seconds = seconds_per_step(setting)
    trainings = sum(node.kind == "train" for node in todo)
    total = steps * seconds / setting.workers
    return [
        f"work: {work(setting)}",
        f"left: {steps} training steps in {trainings} trainings, {seconds * 1e3:.3g} ms a step, "
        f"{setting.workers} workers: about {total / 60:.3g} minutes, judging apart",
        *_longer(todo),
        disk(disk_bytes(sum(setting.parameters.values()), trainings)),
    ]


def _longer(todo: Iterable[Node]) -> list[str]:
    """What no plan can know: how long a thin network trains until it has spent what a ticket has.

    It is counted as long as any other training.
    """
    longer = sum(node.kind == "train" and node.config["start"] == "thin-flops" for node in todo)
    if not longer:
        return []
    return [f"  {longer} of them are thin-flops: longer than counted here, until each has spent "
            "the FLOPs of its early-bird run"]  # fmt: skip


def work(setting: Setting) -> str:
    """What a step and an image of a task take."""
    return (
        f"{2 * setting.work.step_macs:.4g} FLOPs a step ({setting.work.step_macs} MACs), "
        f"{setting.work.sample_macs} MACs an image"
    )


def disk_bytes(parameters: int, trainings: int) -> int:
    """What the weights of so many trainings take at the end: start weights and trained ones."""
    return 2 * trainings * parameters * _WEIGHT_BYTES


def disk(size: int) -> str:
    """The line on what is written, in megabytes."""
    return (
        f"disk: about {size / 1e6:.3g} MB of weights at the end; until then also states of what "
        "trains, which --keep all keeps"
    )


def margins() -> list[str]:
    """How many seeds a margin needs: what they vary by is known only once some are there."""
    lines = ["seeds needed to decide a margin, by the seeds' standard deviation:"]
    lines += [
        f"  sd = {share:g} of the margin: {seeds_for_margin(share, 1.0)} seeds"
        for share in (0.2, 0.5, 1.0)
    ]
    return lines
