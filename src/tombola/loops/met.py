"""Which optimizer steps in a loop that is not ours, on whose weights, how deep in its step?"""

from __future__ import annotations

import types
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tombola.sparsity.hold import Hold


class Met:
    """An optimizer that was met, whose turn it is, and how deep in its ``step`` we are."""

    def __init__(
        self, optimizer: Any, key: Hashable, networks: frozenset[str], leaves: list[Tensor]
    ) -> None:
        self.optimizer, self.key, self.networks, self.leaves = optimizer, key, networks, leaves
        self.hold: Hold | None = None
        """The masks of its own leaves; of all, where its leaves are not known."""
        self.size = size_of(optimizer)
        self.depth = 0
        self.within = False
        """Whether it is in a step of another optimizer of the same weights."""
        # A step that calls the step of its base class is told of twice, once within the other.
        kinds = [kind.__dict__.get("step") for kind in type(optimizer).__mro__]
        self.nested = sum(bool(getattr(step, "hooked", False)) for step in kinds) > 1


def size_of(optimizer: Any) -> int:
    """How many parameters an optimizer has, to see when some were added."""
    groups = getattr(optimizer, "param_groups", None)
    return sum(len(group["params"]) for group in groups) if isinstance(groups, list) else 0


def parameters_of(optimizer: Any) -> Iterator[Tensor]:
    """The parameters that an optimizer, or an object like one, holds."""
    groups = getattr(optimizer, "param_groups", None)
    if isinstance(groups, list):
        for group in groups:
            yield from group["params"]
        return
    for value in getattr(optimizer, "__dict__", {}).values():
        if isinstance(value, Mapping):
            value = value.values()
        elif not isinstance(value, list | tuple | types.GeneratorType):
            value = [value]
        if not isinstance(value, types.GeneratorType):
            yield from (part for part in value if isinstance(part, torch.nn.Parameter))
