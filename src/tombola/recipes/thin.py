"""How is a dense network made thin, so that it costs what a smaller network costs?

By the task's option ``width``, each network for itself, to the least that is not below the wished
work; what is then too much goes evenly from all layers, channel by channel. So initial weights are
drawn as the task draws them for a network of about that size.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from tombola.errors import ConfigError
from tombola.recipes.trial import between, task_options
from tombola.sparsity.channels import Group, channel_groups
from tombola.sparsity.cost import count_macs
from tombola.sparsity.cutting import Cut, Inputs, outputs_of, shrink
from tombola.tasks.base import Networks, Shape, Task
from tombola.training.scoring import inputs_of

NEAR = 0.02
"""How far from the wished work a thin network may be, as a share of it; the tiniest networks,
where one channel is more than that, come as near as they can."""


def forward_macs(network: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds of one answer of a network in eval mode to one of a batch of inputs."""
    was = network.training
    network.eval()
    with torch.no_grad():
        macs = count_macs(lambda: network(*inputs))
    network.train(was)
    return macs // len(inputs[0])


def thin_plan(task: Task, shape: Shape, wanted: Mapping[str, int]) -> dict[str, Any]:
    """By network, the ``width`` and the channels of each group that give it its wished work.

    ``wanted``: network -> multiply-adds of one forward pass. Of each also its ``ratio``: what it
    has of them, further from 1 than 2% only where whole channels come no nearer. ConfigError for a
    task without an option ``width``.
    """
    plan: dict[str, Any] = {}
    for name, macs in wanted.items():
        width = _least_width(task, shape, name, macs)
        networks = of_width(task, width).networks(shape)
        inputs = inputs_of(task, networks, shape)[name]
        counts, own = _trim(name, networks[name], inputs, macs)
        plan[name] = {"width": width, "counts": counts, "ratio": own / macs}
    return plan


def thin_networks(task: Task, shape: Shape, plan: Mapping[str, Any]) -> Networks:
    """New thin networks by a plan, drawn from torch's global generator."""
    networks: Networks = {}
    for name, part in plan.items():
        made = of_width(task, part["width"]).networks(shape)
        if part["counts"]:
            inputs = inputs_of(task, made, shape)[name]
            groups = channel_groups(name, made[name], inputs)
            shrink({name: made[name]}, _evenly(groups, part["counts"]))
        networks[name] = made[name]
    return networks


def thinned(task: Task, record: Mapping[str, Any]) -> Task:
    """The task of a training whose networks a record of its thin run made thinner, if any did."""
    return type(task)(**record["options"]) if "options" in record else task


def new_networks(task: Task, shape: Shape, record: Mapping[str, Any]) -> Networks:
    """New networks of such a task. What a width decides besides sizes is as the width has it."""
    if "plan" in record:
        return thin_networks(task, shape, record["plan"])
    return task.networks(shape)


def of_width(task: Task, width: int) -> Task:
    """The same task with another value of its option ``width``."""
    return type(task)(**{**task_options(task), "width": width})


def _least_width(task: Task, shape: Shape, name: str, macs: int) -> int:
    """The least width whose network has at least so much work, and the task's own interface."""
    widest = task_options(task).get("width")
    if not isinstance(widest, int) or isinstance(widest, bool):
        raise ConfigError(
            f"control thin-flops makes networks thinner by the option width, which "
            f"{type(task).__name__} does not have; give it one, or leave the control out"
        )
    own = task.networks(shape)
    inputs = inputs_of(task, own, shape)[name]
    outer = [x.shape for x in outputs_of(own[name], inputs)]

    def work(width: int) -> int | None:
        """Multiply-adds at a width; None where there is no such network between the others."""
        try:
            network = of_width(task, width).networks(shape)[name]
            fits = [x.shape for x in outputs_of(network, inputs)] == outer
        except Exception:  # whatever a user's networks say of a width that they do not take
            return None
        return forward_macs(network, inputs) if fits else None

    low, high = 0, widest
    while found := between(work, low, high):
        width, own_macs = found
        low, high = (low, width) if own_macs >= macs else (width, high)
    return high


def _trim(name: str, network: nn.Module, inputs: Inputs, macs: int) -> tuple[dict[str, int], int]:
    """Channels to keep of each group so that the work is within 2%, if any comes so near; the work.

    No group is named if the work is so already.
    """
    own = forward_macs(network, inputs)
    if abs(own - macs) <= NEAR * macs:
        return {}, own
    groups = [g for g in channel_groups(name, network, inputs) if not g.reason]

    def work(counts: Mapping[str, int]) -> int:
        small = copy.deepcopy(network)
        shrink({name: small}, _evenly(groups, counts))
        return forward_macs(small, inputs)

    low, high = 0.0, 1.0
    for _ in range(20):
        share = (low + high) / 2
        counts = {g.name: max(1, round(g.n * share)) for g in groups}
        low, high = (low, share) if work(counts) >= macs else (share, high)
    counts = {g.name: max(1, round(g.n * high)) for g in groups}
    sizes = {g.name: g.n for g in groups}
    # Evenly is as near as whole channels of all layers come; then one channel more or less here
    # and there, as long as that comes nearer.
    own = work(counts)
    while abs(own - macs) > NEAR * macs:
        tries = [(work(near), near) for near in _neighbours(counts, sizes)]
        best = min(tries, key=lambda pair: abs(pair[0] - macs), default=(own, counts))
        if abs(best[0] - macs) >= abs(own - macs):
            break
        own, counts = best
    return counts, own


def _neighbours(counts: Mapping[str, int], sizes: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The counts with one channel more or less in one group, or in each of two."""
    moves = [{name: change} for name in counts for change in (-1, 1)]
    moves += [
        {one: a, other: b}
        for one, other in itertools.combinations(counts, 2)
        for a in (-1, 1)
        for b in (-1, 1)
    ]
    for move in moves:
        near = {name: count + move.get(name, 0) for name, count in counts.items()}
        if all(1 <= near[name] <= sizes[name] for name in near):
            yield near


def _evenly(groups: list[Group], counts: Mapping[str, int]) -> Cut:
    """The cut that leaves the first channels of every group."""
    parts = []
    for group in groups:
        if group.name in counts:
            parts.append((group.slices, torch.arange(group.n, device="cpu") < counts[group.name]))
    return Cut.of(parts)
