"""How much does each weight matter? One function per criterion; higher scores are kept.

A criterion is a function ``criterion(params, loss, masks, seed) -> scores``: the prunable weights
by name, a closure ``loss(network, batch=0)`` that gives the scalar loss of the turn in which that
network learns on the training batch of a number (None for the built-in ones), the masks so far
(None = dense) and a seed; it returns real scores of the same names and shapes. How many are kept,
and over which pool, is decided elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from tombola.config.runtime import rng
from tombola.sparsity.masks import Masks


class Loss(Protocol):
    """The loss by which a criterion may take gradients; the same whenever asked."""

    def __call__(self, network: str, batch: int = 0) -> Tensor:
        """The scalar loss of the turn in which a network learns, on the batch of a number.

        Only the networks of that turn require gradients until it is called again.
        """
        ...


Criterion = Callable[[dict[str, Tensor], Loss | None, Masks | None, int], dict[str, Tensor]]


def magnitude(
    params: dict[str, Tensor], loss: Loss | None, masks: Masks | None, seed: int
) -> dict[str, Tensor]:
    """Scores |w| (Han et al., "Learning both Weights and Connections", 2015, section 3.1)."""
    del loss, masks, seed
    return {name: value.detach().abs() for name, value in params.items()}


def random_scores(
    params: dict[str, Tensor], loss: Loss | None, masks: Masks | None, seed: int
) -> dict[str, Tensor]:
    """Scores uniform in [0, 1), of 53 bits, so that ties by position do not come into play."""
    del loss, masks
    return {
        name: torch.rand(
            value.shape,
            dtype=torch.float64,
            generator=rng(seed, f"random-scores-{name}"),
            device="cpu",
        )
        for name, value in params.items()
    }
