"""What a search would do: its config, its graph, and what it would take in time and disk."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tombola.engine.mending import whole_runs
from tombola.engine.phases import Phases, part_of
from tombola.engine.search import Request, prepare
from tombola.metrics.rules import rule_of
from tombola.metrics.verdict.losses import OWN_ARMS
from tombola.metrics.verdict.planning import USUAL_DEVIATIONS, seeds_to_match
from tombola.metrics.verdict.sentences import plan_text
from tombola.metrics.verdict.sequence import Spread
from tombola.plan.cells import Arm, Cell, Plan
from tombola.plan.chain import few_draws
from tombola.plan.setting import Setting, seconds_per_step
from tombola.results.output import whole_config
from tombola.store.graph import Node
from tombola.store.runs import Store

_WEIGHT_BYTES = 4


def describe(request: Request) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The tables that ``--config`` reads back, and lines on the plan and the estimates."""
    setting, whole = prepare(request)
    phases = Phases(setting, whole, Store(request.out / "store"))
    plan = phases.plan
    tables = whole_config(setting)
    asked = setting.config.run
    # What the machine decides stays open, so that the file works on another machine.
    tables["run"] = {**dataclasses.asdict(asked)}
    few = [note] if (note := few_draws(setting)) else []
    seconds = seconds_per_step(setting)
    pace = seconds / setting.workers
    estimates = _estimates(request, setting, plan, seconds)
    if more := _controls_to_come(setting, whole, phases.open_arms, pace):
        estimates.append(more)
    estimates += _designs(request, setting, whole, pace)
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


def _estimates(request: Request, setting: Setting, plan: Plan, seconds: float) -> list[str]:
    done = whole_runs(plan, Store(request.out / "store"))
    todo = plan.graph.missing(done)
    steps = sum(node.steps for node in todo)
    trainings = _trainings(todo)
    total = steps * seconds / setting.workers
    return [
        f"work: {work(setting)}",
        f"left: {steps} training steps in {trainings} trainings, {seconds * 1e3:.3g} ms a step, "
        f"{setting.workers} workers: about {total / 60:.3g} minutes, judging apart",
        *_longer(todo),
        disk(disk_bytes(sum(setting.parameters.values()), trainings)),
    ]


def _controls_to_come(setting: Setting, whole: Plan, arms: Collection[Arm], pace: float) -> str:
    """The controls of arms whose frontier is not known yet, as long as they can be; else empty."""
    search = setting.config.search
    cells = [cell for cell in _longest_draws(whole) if cell.arm in arms]
    if not cells:
        return ""
    steps = sum(whole.graph[name].steps for name in {cell.train for cell in cells})
    draws, kinds = len(search.control_draws), len({cell.kind for cell in cells})
    several = f" in each of {len(arms)} arms" if len(arms) > 1 else ""
    return (
        f"then at most {draws} x {search.seeds} x {kinds} trainings of controls at the "
        f"frontier{several} (draws x seeds x controls), {steps} steps: about "
        f"{steps * pace / 60:.3g} minutes"
    )


def _longest_draws(plan: Plan) -> list[Cell]:
    """Of every draw of a control its longest training: at which level it will be is not known."""
    found: dict[tuple[Any, ...], Cell] = {}
    for cell in plan.cells:
        place, steps = (cell.arm, cell.seed, cell.kind, cell.draw), plan.graph[cell.train].steps
        if cell.draw is not None and (
            place not in found or steps > plan.graph[found[place].train].steps
        ):
            found[place] = cell
    return list(found.values())


def _designs(request: Request, setting: Setting, whole: Plan, pace: float) -> list[str]:
    """What each way of training controls takes from the start, and the least that stopping leaves.

    ``pace``: seconds of a step, shared by the workers.
    """
    own = ("dense", *OWN_ARMS)
    if all(cell.kind in own or cell.arm.method == "early-bird" for cell in whole.cells):
        return []
    config = setting.config
    ways = {"all": replace(config.search, controls_at="all", draws=0)}
    if "reinit-chain" not in config.search.controls:
        ways["frontier"] = replace(config.search, controls_at="frontier")
    lines, most = ["designs, each from the start:"], config.search.worse_levels
    for where, search in ways.items():
        plan = request.planner(replace(setting, config=replace(config, search=search)))
        chain = [cell for cell in plan.cells if cell.draw is None]
        graph = part_of(plan, [*chain, *_longest_draws(plan)])
        count, steps = _trainings(graph), sum(node.steps for node in graph)
        draws = len(search.control_draws)
        what = "every level" if where == "all" else f"one level, {draws} draws of each, at most"
        text = f"  --controls-at {where}: controls at {what}: {count} trainings, {steps} steps"
        text += f", about {steps * pace / 60:.3g} minutes"
        if most:
            least = _trainings(part_of(plan, [cell for cell in chain if cell.round <= most]))
            text += f"; at least {least} trainings by --stop-after {most}"
        lines.append(text)
    return lines


def _trainings(nodes: Iterable[Node]) -> int:
    return sum(node.kind == "train" for node in nodes)


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
