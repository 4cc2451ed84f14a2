"""What a search would do: its config, its graph, and what it would take in time and disk."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tombola.engine.mending import whole_runs
from tombola.engine.output import whole_config
from tombola.engine.search import Request, prepare
from tombola.metrics.rules import rule_of
from tombola.metrics.verdict.planning import USUAL_DEVIATIONS, seeds_to_match
from tombola.metrics.verdict.sentences import plan_text
from tombola.metrics.verdict.sequence import Spread
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
    return tables, [
        *_graph(request, setting, plan),
        *few,
        *estimates,
        seeds_line(request.out, setting),
    ]


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


def seeds_line(out: Path, setting: Setting | None) -> str:
    """How many seeds would show a match at 80% power: by the runs that are there, else as usual.

    ``setting``: None where the training is the user's own, and what it measures is not known.
    """
    try:
        summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
        planning = summary["verdicts"][summary["primary"]]["planning"]
        return f"seeds: {plan_text(planning)} (at 80% power, by the spread of the runs here)"
    except (OSError, ValueError, LookupError, TypeError):
        pass
    family = setting.task.family if setting else ""
    metric = "reconstruction_error" if family == "autoencoder" else "fcd"
    rule = rule_of(metric, setting.config.verdict.margins if setting else None)
    deviation = USUAL_DEVIATIONS.get(family, USUAL_DEVIATIONS["gan"])
    assert rule is not None
    needed = seeds_to_match(math.log1p(rule.margin), 0.0, Spread(deviation**2, 1, 1.0))
    return (
        f"seeds: {needed} would show a match within {100 * rule.margin:g}% at 80% power if there "
        f"is no loss, at a deviation of {deviation:g} of the log over seeds (as usual: nothing was "
        "trained here yet)"
    )
