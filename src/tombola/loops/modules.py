"""How does each training of a search find the user's modules? As they came, whoever left them how.

Networks are given, or made by a function for each seed; a training changes their weights, modes and
gradients, and the next begins on the same objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from tombola.config.runtime import generators_as_found, seed_everything
from tombola.errors import ConfigError
from tombola.loops.draws import permute
from tombola.sparsity.names import networks_of
from tombola.training.trainer import load_weights, named_state

Networks = Mapping[str, nn.Module]
Weights = dict[str, Tensor]


class Modules:
    """The networks of a seed: how they came, and how each training finds them again."""

    def __init__(self, networks: Any, seed: int) -> None:
        self.given = isinstance(networks, Mapping | nn.Module) or not callable(networks)
        self.make = networks
        """What was given: the networks, or a function that makes them."""
        self.networks: dict[str, nn.Module] = checked(networks if self.given else self._new(seed))
        self.came = copied(self.networks)
        """The weights and buffers that they came with."""
        self.start = self.came
        """Those that the dense training begins with."""
        self._learns = [
            (p, p.requires_grad) for n in self.networks.values() for p in n.parameters()
        ]
        self._modes = [(m, m.training) for n in self.networks.values() for m in n.modules()]

    def _new(self, seed: int, purpose: str = "init") -> Any:
        with generators_as_found():
            seed_everything(seed, purpose)
            return self.make()

    def sizes(self) -> dict[str, int]:
        """Network -> number of its parameters."""
        return {
            name: sum(leaf.numel() for leaf in network.parameters())
            for name, network in self.networks.items()
        }

    def restore(self) -> None:
        """Forget gradients of an earlier training; who learns, and modes, are as at first."""
        for parameter, learns in self._learns:
            parameter.grad = None
            parameter.requires_grad_(learns)
        for module, mode in self._modes:
            module.training = mode

    def begin(self, seed: int, draw: str | None = None) -> None:
        """Put the start weights in place; with ``draw`` (``reinit/3``) others drawn like them."""
        if draw is None or self.given:
            load_weights(self.networks, self.start)
            if draw is not None:
                permute(self.networks, seed, draw)
            return
        load_weights(self.networks, copied(checked(self._new(seed, f"init-{draw}"))))

    def hand_back(self) -> None:
        """Given networks are as they came."""
        if self.given:
            self.restore()
            load_weights(self.networks, self.came)


def checked(given: Any) -> dict[str, nn.Module]:
    """Networks by name, which is a word; ConfigError for anything else."""
    networks = networks_of(given)
    for name in networks:
        if not isinstance(name, str) or not name.isidentifier():
            raise ConfigError(f"a network's name is {name!r}; give a word such as generator")
    return networks


def copied(networks: Networks) -> Weights:
    """Copies on the CPU of every parameter and buffer, by ``network.name``."""
    return {k: v.to("cpu", copy=True) for k, v in named_state(dict(networks)).items()}
