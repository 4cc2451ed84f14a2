"""What loss is a network scored by before training? That of the turn in which it learns.

The same batches and draws whenever asked, so that a criterion may go over them twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tombola.config.registry import CRITERIA
from tombola.config.runtime import generators_as_found, seed_everything
from tombola.data.batches import Batches, LabelledBatches, blank
from tombola.data.splits import Images
from tombola.errors import ConfigError, UserError
from tombola.sparsity.criteria import Loss
from tombola.sparsity.cutting import Inputs, copied
from tombola.sparsity.masks import Masks
from tombola.tasks.base import Networks, Shape, Task, Turn, zero_labelled
from tombola.training.trainer import BatchSource

PROBE = 2
"""Blank images with which it is learnt what each network is called with."""


def batches_of(
    task: Task, images: Images, seed: int, device: torch.device | str = "cpu"
) -> Batches:
    """The training images in the order of a seed, with labels if the task takes them."""
    given = images.splits["train"]
    if task.takes_labels():
        labels = images.labels["train"]
        return LabelledBatches(given, labels, task.batch_size, seed, device)
    return Batches(given, task.batch_size, seed, device)


def score_weights(
    name: str, pool: Mapping[str, Tensor], loss: Loss | None, among: Masks | None, seed: int
) -> dict[str, Tensor]:
    """A criterion's scores of the pool; ConfigError if a user's criterion fails or scores less."""
    try:
        scores = CRITERIA.load(name)(dict(pool), loss, among, seed)
        fits = {k: v.shape for k, v in scores.items()} == {k: v.shape for k, v in pool.items()}
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).strip() or "no message").splitlines()[0]
        raise ConfigError(
            f"criterion {name} failed: {type(error).__name__}: {reason}; mend it and run again"
        ) from error
    if not fits:
        raise ConfigError(
            f"criterion {name} must return one score for every weight it is given, by the same "
            f"names and shapes ({', '.join(pool)}); mend it and run again"
        )
    return {key: scores[key].detach().cpu() for key in pool}


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
            images = self._batch(turn, number)
            for draw in range(draws):
                yield self._loss(turn, images, draw * batches + number)

    def loss(self, network: str, batch: int = 0) -> Tensor:
        """The loss of a network's turn on the batch of a number: what a criterion calls."""
        turn = self._turn_of(network)
        return self._loss(turn, self._batch(turn, batch), batch)

    def _batch(self, turn: Turn, number: int) -> Any:
        images = self.batches.batch(number)
        return images if turn.images else blank(images)

    def inputs(self, images: Tensor) -> dict[str, Inputs]:
        """What each network is called with first in the turn in which it learns, by its name."""
        found: dict[str, Inputs] = {}
        for name, network in self.networks.items():

            def note(module: Any, args: Inputs, name: str = name) -> None:
                del module
                found.setdefault(name, tuple(x.detach() for x in args))

            handle = network.register_forward_pre_hook(note)
            try:
                self._loss(self._turn_of(name), zero_labelled(self.task, images), 0)
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

    def _loss(self, turn: Turn, images: Any, draw: int) -> Tensor:
        self._restore()
        for name, network in self.networks.items():
            network.requires_grad_(not turn.learns or name in turn.learns)
        seed_everything(self.seed, f"scores-{turn.name}", draw)
        made = self.task.turn_loss(turn.name, self.networks, images)
        return made["loss"] if isinstance(made, dict) else made

    def _restore(self) -> None:
        """Buffers as they were: every forward pass in train mode moves them."""
        with torch.no_grad():
            for name, network in self.networks.items():
                kept: Mapping[str, Tensor] = self._buffers[name]
                for key, value in network.named_buffers():
                    value.copy_(kept[key])
