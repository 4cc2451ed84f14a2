"""What does it cost to keep the pruned weights at zero?

Three ways on the same networks and masks: ours (``Hold.apply``), ``torch.nn.utils.prune`` (a hook
multiplies in each forward pass, its gradient in the backward pass) and the paper's walk over the
state dict. Only their own work is timed here; a last part looks for it in a whole dcgan step.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.utils import prune

import settings
from bench_steps import STEPS, Case, compared
from measure import Row, Section, Spread, compare, row, timed
from paper_loop import StateDictMask
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import Masks
from tombola.sparsity.names import walk
from tombola.tasks.base import Networks

APPLICATIONS = 2
"""Times that a dcgan step applies the masks: after each network's update."""
REPEATS = {"linear-ae": 200, "dcgan": 5}


class PruneHooks:
    """``torch.nn.utils.prune`` on the networks: what it adds to one forward and backward pass."""

    def __init__(self, networks: Networks, masks: Masks) -> None:
        self.modules: list[nn.Module] = []
        for network, module in networks.items():
            for prefix, part in walk(module):
                name = f"{network}.{prefix}weight"
                if name in masks:
                    prune.custom_from_mask(part, "weight", masks[name])
                    self.modules.append(part)
        self.hooks = [next(iter(m._forward_pre_hooks.values())) for m in self.modules]
        self.gradients = [torch.randn_like(m.weight_orig) for m in self.modules]

    def apply(self) -> None:
        """The hook of each layer, then the way back from its masked weight to the original."""
        for module, hook in zip(self.modules, self.hooks, strict=True):
            module.weight_orig.grad = None
            hook(module, None)
        torch.autograd.backward([m.weight for m in self.modules], self.gradients)


def ways(name: str, size: str) -> dict[str, Callable[[], None]]:
    """Each way's own work on networks of its own with the same masks."""
    made = settings.task(name, size)
    held, hooked, walked = (settings.networks(made, name) for _ in range(3))
    masks = settings.masks(held)
    return {
        "ours": Hold(held, masks).apply,
        "torch.nn.utils.prune": PruneHooks(hooked, masks).apply,
        "the paper's walk": StateDictMask(walked, masks).apply,
        "the paper's walk, masks of 32 bits": StateDictMask(walked, masks, 32).apply,
    }


def own_work(name: str, size: str, blocks: int) -> tuple[list[Row], float]:
    """One application against one of each other way; and the seconds of ours."""
    repeats = REPEATS[name] if size == "full" else 1
    sides = {way: timed(work, repeats) for way, work in ways(name, size).items()}
    targets = {
        "torch.nn.utils.prune": 0.30,
        "the paper's walk": 0.50,
        "the paper's walk, masks of 32 bits": 0.50,
    }
    rows = [
        row(
            f"{name}: own work, against {way}",
            compare(sides["ours"], sides[way], blocks),
            target,
            repeats,
        )
        for way, target in targets.items()
    ]
    seconds = rows[0].seconds
    assert seconds is not None
    return rows, seconds[0]


def measured(size: str, blocks: int) -> Section:
    """Own work on a small and a large task, then a dcgan step with masks against one without."""
    torch.set_num_threads(1)
    rows, _ = own_work("linear-ae", size, blocks)
    large, seconds = own_work("dcgan", size, blocks)
    rows += large
    case = Case(task="dcgan", target=None, other="dense", same_allocator=True)
    found = compared(case, size, blocks)
    step = found.seconds()[0] / STEPS["dcgan"]
    share = APPLICATIONS * seconds / step
    whole = row("dcgan: a step with masks, against one without", found, None, STEPS["dcgan"])
    chance = found.chance()
    noise = max(abs(chance.low - 1), abs(chance.high - 1))
    rows.append(
        Row(
            label="dcgan: the masks' share of a step, by their own work",
            value=Spread(share, share, share),
            target=noise,
            seconds=(APPLICATIONS * seconds, step),
        )
    )
    rows.append(whole)
    return Section(
        title="The mask's own work",
        rows=rows,
        notes=[
            "One application: ours one multiplication of all masked weights after an update; "
            "`prune` its hooks in one forward and one backward pass; the paper's walk over "
            "the state dict. In a whole GAN step ours and the walk are applied twice, to both "
            "networks; `prune`'s hooks run in 5 forward and 4 backward passes of one network.",
            '"Not measurable" is taken to mean: smaller than the quartiles of the A/A row of whole '
            "steps, which is the target of the last row but one.",
        ],
    )


if __name__ == "__main__":
    from run import main

    main(["masks"])
