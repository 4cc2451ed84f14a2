"""What loss is a network scored by before training? That of the turn in which it learns.

The same batches and draws whenever asked, so that a criterion may go over them twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tombola.data.batches import Batches
from tombola.errors import ConfigError
from tombola.runtime import generators_as_found, seed_everything
from tombola.sparsity.cutting import Inputs, copied
from tombola.tasks.base import Networks, Shape, Task, Turn
from tombola.training.trainer import BatchSource

PROBE = 2
"""Blank images with which it is learnt what each network is called with."""


def inputs_of(task: Task, networks: Networks, shape: Shape) -> dict[str, Inputs]:
    """What each network is called with in its turn's loss, on blank images.

    Networks and global generators stay as they are. ConfigError for a network that no loss calls,
    or that cannot be copied.
    """
    copies = {name: network.cpu() for name, network in copied(networks).items()}
    blank = torch.zeros(PROBE, *shape, device="cpu")
    blind = Batches(blank.to(torch.uint8), PROBE, 0)
    with generators_as_found():
        return Scored(task, copies, blind, 0).inputs(blank)


class Scored:
    """The networks of a task in train mode, their weights as they start, and batches."""

    def __init__(self, task: Task, networks: Networks, batches: BatchSource, seed: int) -> None:
        self.task, self.networks, self.batches, self.seed = task, networks, batches, seed
        self._buffers = {
            name: {key: value.clone() for key, value in network.named_buffers()}
            for name, network in networks.items()
        }

    def losses(self, network: str, batches: int, draws: int) -> Iterator[Tensor]:
        """The losses of the first turn in which a network learns: ``draws`` for each batch.

        Only the networks that learn in it require gradients meanwhile. ConfigError if it learns in
        none.
        """
        turn = self._turn_of(network)
        for number in range(batches):
            images = self.batches.batch(number)
            if not turn.images:
                images = torch.zeros_like(images)
            for draw in range(draws):
                yield self._loss(turn, images, draw * batches + number)

    def inputs(self, images: Tensor) -> dict[str, Inputs]:
        """What each network is called with first in the turn in which it learns, by its name."""
        found: dict[str, Inputs] = {}
        for name, network in self.networks.items():

            def note(module: Any, args: Inputs, name: str = name) -> None:
                del module
                found.setdefault(name, tuple(x.detach() for x in args))

            handle = network.register_forward_pre_hook(note)
            try:
                self._loss(self._turn_of(name), images, 0)
            finally:
                handle.remove()
            if name not in found:
                raise ConfigError(
                    f"network {name!r} is not called in its turn's loss, so no flow through it can "
                    "be scored; prune the others, or use another method"
                )
        return found

    def _turn_of(self, network: str) -> Turn:
        for turn in self.task.turns:
            if not turn.learns or network in turn.learns:
                return turn
        raise ConfigError(
            f"network {network!r} learns in no turn of {type(self.task).__name__}, so no loss "
            "scores its weights; prune the others"
        )

    def _loss(self, turn: Turn, images: Tensor, draw: int) -> Tensor:
        self._restore()
        for name, network in self.networks.items():
            network.requires_grad_(not turn.learns or name in turn.learns)
        seed_everything(self.seed, f"scores-{turn.name}", draw)
        made = self.task.loss(turn.name, self.networks, images)
        return made["loss"] if isinstance(made, dict) else made

    def _restore(self) -> None:
        """Buffers as they were: every forward pass in train mode moves them."""
        with torch.no_grad():
            for name, network in self.networks.items():
                kept: Mapping[str, Tensor] = self._buffers[name]
                for key, value in network.named_buffers():
                    value.copy_(kept[key])
