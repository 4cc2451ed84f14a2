"""Which runs make an experiment? A setting goes in, a graph and its table's cells come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from tombola.config.search import AT_INIT
from tombola.plan.cells import Arm, Plan, sampled_anew
from tombola.plan.chain import Chain, evaluation
from tombola.plan.setting import Setting
from tombola.store.graph import Graph, Node
from tombola.tasks.base import RECONSTRUCTING

NO_REWIND = (*AT_INIT, "early-bird")
"""Methods of which nothing is rewound."""
LEAST_SAMPLING_SEEDS = 3
"""Fewer say nothing of the judge's own noise."""


def search(setting: Setting) -> Plan:
    """The graph of a ticket search: every arm, seed and level, with what they share run once."""
    config = setting.config.search
    arms = [
        Arm(
            method=method,
            networks=networks,
            rewind=rewind,
            precision=precision,
            compress=compress,
        )
        for precision in setting.config.train.precision
        for networks in setting.config.prune.networks
        for rewind in config.rewind
        for method in config.method
        for compress in (setting.config.prune.compress if method == "early-bird" else ("",))
    ]
    # Nothing is trained before these, so nothing is rewound: once, from step 0.
    arms = list(
        dict.fromkeys(
            dataclasses.replace(arm, rewind="0it") if arm.method in NO_REWIND else arm
            for arm in arms
        )
    )
    plan = Plan(graph=Graph(), arms=arms)
    judges = judges_of(setting, plan.graph)
    for seed in range(config.seeds):
        for arm in arms:
            Chain(setting, plan, arm, seed, judges).build()
    judge_besides(setting, plan, judges)
    return plan


def judge_besides(setting: Setting, plan: Plan, judges: Mapping[str, str]) -> None:
    """Judge what shows how much the numbers of the table can be trusted."""
    resample(setting, plan, judges)
    judge_floor(setting, plan, judges)
    judge_trivial(setting, plan, judges)


def dense(setting: Setting) -> Plan:
    """The graph of ``tombola train``: the dense network of every seed, judged."""
    arms = [
        Arm(method="dense", networks="all", rewind="0it", precision=precision)
        for precision in setting.config.train.precision
    ]
    plan = Plan(graph=Graph(), arms=arms)
    judges = judges_of(setting, plan.graph)
    for seed in range(setting.config.search.seeds):
        for arm in arms:
            Chain(setting, plan, arm, seed, judges).dense_cell()
    if setting.task.latent:
        plan.kept = (sampled_anew(plan).train,)
    return plan


def from_ticket(setting: Setting, ticket: Mapping[str, Any]) -> Plan:
    """The graph of ``tombola train --ticket``: the file taken in, trained and judged.

    ``ticket``: sha256 of the file; method, networks, rewind, rewind_step, seed, round, granularity,
    sparsity and sparsity_all from its manifest; ``compact``: whether its channels are cut.
    """
    of_channels = ticket["granularity"] == "channel"
    arms = [
        Arm(
            method=str(ticket["method"]),
            networks=str(ticket["networks"]),
            rewind=str(ticket["rewind"]),
            precision=precision,
            compress=setting.config.prune.compress[0] if of_channels else "",
        )
        for precision in setting.config.train.precision
    ]
    plan = Plan(graph=Graph(), arms=arms)
    judges = judges_of(setting, plan.graph)
    taken = plan.graph.add(Node("import", {"sha256": ticket["sha256"]}, label="take the ticket in"))
    for arm in arms:
        chain = Chain(setting, plan, arm, int(ticket["seed"]), judges)
        chain.rewind_steps = int(ticket["rewind_step"])
        if of_channels:  # what was cut goes on where it was, whatever single weights do
            chain.restart = chain.restore = False
        kind = "compact" if ticket["compact"] else "ticket"
        chain.trained(kind, int(ticket["round"]), taken, ())
        if of_channels:
            cell = plan.cells[-1]
            gone = round(sum(setting.parameters.values()) * float(ticket["sparsity_all"]))
            plan.cells[-1] = dataclasses.replace(
                cell,
                rewind_steps=None,
                # Of networks that are cut, nothing that is left is masked.
                kept=cell.pool if ticket["compact"] else cell.pool - gone,
                sparsity=float(ticket["sparsity"]),
                sparsity_all=float(ticket["sparsity_all"]),
            )
    return plan


def judges_of(setting: Setting, graph: Graph) -> dict[str, str]:
    """The trainings of the networks that judge, where none is at hand: role -> run."""
    found: dict[str, str] = {}
    for role, spec in (("judge", setting.judge), ("classifier", setting.classifier)):
        if spec is not None and spec["source"] == "run":
            config = {
                "data": {"sha256": setting.images.sha256, "shape": list(setting.shape)},
                "steps": setting.config.judge.steps,
                "classes": setting.images.classes,
                **{key: value for key, value in spec.items() if key != "source"},
            }
            steps = setting.config.judge.steps or 1500
            found[role] = graph.add(Node("judge", config, {}, "judge's classifier", steps))
    return found


def judge_floor(setting: Setting, plan: Plan, judges: Mapping[str, str]) -> None:
    """Judge training images in the place of samples: what a perfect generator would get."""
    if setting.judge is None:
        return
    config = {
        "data": {"sha256": setting.images.sha256, "shape": list(setting.shape)},
        "judge": dict(setting.judge),
        "samples": setting.judged_samples,
        "fakes": setting.fakes,
        "device": setting.device,
        "threads": setting.threads,
    }
    parents = {role: run for role, run in judges.items() if role == "judge"}
    plan.floor = plan.graph.add(Node("floor", config, parents, "judge training images"))


def resample(setting: Setting, plan: Plan, judges: Mapping[str, str]) -> None:
    """Judge the first dense network with further sampling seeds, to show the judge's own noise."""
    if not setting.task.latent:
        return
    train = sampled_anew(plan).train
    for sampling_seed in range(1, max(LEAST_SAMPLING_SEEDS, setting.config.judge.sampling_seeds)):
        plan.resampled.append(evaluation(setting, plan.graph, train, judges, 0, sampling_seed))


def judge_trivial(setting: Setting, plan: Plan, judges: Mapping[str, str]) -> None:
    """Judge what needs no training: the mean training image, and the dense network's first states.

    Samples are of seed 0 at step 0 and at every rewind point, as many as of what is trained.
    """
    train = sampled_anew(plan).train
    config = {
        **{key: plan.graph[train].config[key] for key in ("task", "data")},
        "samples": setting.judged_samples,
        "device": setting.device,
        "threads": setting.threads,
    }
    classifier = dict(setting.classifier) if setting.classifier else None
    if setting.task.family in RECONSTRUCTING:
        own = {**config, "judge": None, "classifier": classifier}
        parents = {role: run for role, run in judges.items() if role == "classifier"}
        label = "judge the mean training image"
        plan.trivial.append(plan.graph.add(Node("trivial", own, parents, label)))
    if setting.judge is not None:
        own = {**config, "judge": dict(setting.judge), "classifier": None}
        own |= {"fakes": setting.fakes, "sampling_seed": 0}
        parents = {role: run for role, run in judges.items() if role == "judge"}
        parents |= {
            f"rewind-{node.config['step']}": node.hash
            for node in plan.graph
            if node.kind == "rewind" and node.parents["dense"] == train
        }
        label = "judge the dense network before it is trained"
        plan.trivial.append(
            plan.graph.add(Node("trivial", own, {"dense": train, **parents}, label))
        )
