"""On which networks, masks and images do the benchmarks run? At the paper's size, or at a toy's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tombola.config.registry import TASKS
from tombola.config.runtime import seed_everything
from tombola.data.sources import load_images
from tombola.sparsity.compact import Channels
from tombola.sparsity.cutting import shrink
from tombola.sparsity.masks import Masks, kept_count, prunable
from tombola.sparsity.select import top
from tombola.tasks.base import Networks, Shape, Task
from tombola.training.scoring import inputs_of

SIZES = ("full", "toy")
LEVEL = 10
"""Rounds of the masks: 89.3% of the weights cut at a rate of 0.2, where the paper's ticket is."""
RATE = "0.2"
TOYS = {"linear-ae": {"width": 8, "batch_size": 8}, "dcgan": {"width": 4, "batch_size": 4}}


def task(name: str, size: str, of: str = "paper") -> Task:
    """A registered task at a preset's size, or a toy of it that a test runs in milliseconds."""
    kind = TASKS.load(name)
    if size == "toy":
        made: Task = kind(**TOYS[name])
        return made
    preset = {k: v for k, v in kind.presets[of].items() if k not in ("steps", "epochs")}
    made = kind(**preset)
    return made


def shape(name: str) -> Shape:
    """(C, H, W) of the paper's data: MNIST for the linear autoencoder, colour else."""
    return (1, 28, 28) if name == "linear-ae" else (3, 32, 32)


def networks(made: Task, name: str) -> Networks:
    """New networks, the same whenever asked."""
    seed_everything(0, "init")
    return made.networks(shape(name))


def masks(built: Networks, level: int = LEVEL) -> Masks:
    """The global magnitude mask of a level on the networks as they are."""
    pool = prunable(built)
    total = sum(weight.numel() for weight in pool.values())
    return top({k: w.detach().abs() for k, w in pool.items()}, kept_count(total, RATE, level))


def cut(made: Task, built: Networks, name: str) -> Networks:
    """Copies of networks with a quarter of each layer's channels, rounded to 16 (a toy's to 1)."""
    multiple = 16 if made.batch_size > 16 else 1
    channels = Channels.of(built, inputs_of(made, built, shape(name)), ["all"])
    small = {network: copy.deepcopy(module) for network, module in built.items()}
    kept = {
        group.name: torch.arange(group.n) < multiple * max(1, round(group.n / 4 / multiple))
        for group in channels.groups
    }
    shrink(small, channels.cut(kept))
    return small


def images(name: str, count: int) -> Tensor:
    """The shipped digits as uint8 images (count, C, H, W), as often as it takes.

    Real ones: on noise nearly all units of a masked network die, and the moments of their weights
    fade into denormal numbers, which are slow to compute with.
    """
    shipped = load_images("digits", shape(name)).splits["train"]
    return shipped.repeat(-(-count // len(shipped)), 1, 1, 1)[:count].contiguous()
