"""How is a dense network made thin, so that it costs what a smaller network costs?

By the task's option ``width``, each network for itself, to the work nearest to what is wished; what
is left between them is made up for in steps. So initial weights are drawn as the task draws them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from tombola.errors import ConfigError
from tombola.plan.trial import between, task_options
from tombola.sparsity.cost import count_macs
from tombola.sparsity.cutting import Inputs, outputs_of
from tombola.tasks.base import Networks, Shape, Task
from tombola.training.scoring import inputs_of


def forward_macs(network: nn.Module, inputs: Inputs) -> int:
    """Multiply-adds of one answer of a network in eval mode to one of a batch of inputs."""
    was = network.training
    network.eval()
    with torch.no_grad():
        macs = count_macs(lambda: network(*inputs))
    network.train(was)
    return macs // len(inputs[0])


def thin_plan(task: Task, shape: Shape, wanted: Mapping[str, int]) -> dict[str, Any]:
    """By network, the ``width`` whose work is nearest to the wished one.

    ``wanted``: network -> multiply-adds of one forward pass. Of each also its ``ratio``: what it
    has of them. ConfigError for a task without an option ``width``.
    """
    plan: dict[str, Any] = {}
    for name, macs in wanted.items():
        width, own = _nearest_width(task, shape, name, macs)
        plan[name] = {"width": width, "ratio": own / macs}
    return plan


def thin_networks(task: Task, shape: Shape, plan: Mapping[str, Any]) -> Networks:
    """New thin networks by a plan, drawn from torch's global generator."""
    return {
        name: of_width(task, part["width"]).networks(shape)[name] for name, part in plan.items()
    }


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


def _nearest_width(task: Task, shape: Shape, name: str, macs: int) -> tuple[int, int]:
    """The width whose network has nearly so much work, and the task's own interface; its work."""
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

    low, high, made = 0, widest, {widest: forward_macs(own[name], inputs)}
    while found := between(work, low, high):
        width, made[width] = found
        low, high = (low, width) if made[width] >= macs else (width, high)
    return min(made.items(), key=lambda pair: (abs(pair[1] - macs), pair[0]))
