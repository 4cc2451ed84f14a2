"""Does a training begin with the weights that it was given? Looked at before they are changed.

A loop that initialises its networks itself, or loads them, trains every ticket and every control
from the same weights, and nothing in their numbers says so.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from tombola.errors import ConfigError
from tombola.loops.draws import leaves


class Start:
    """The parameters of networks as a training is given them, until its first step.

    Looked at before the first forward pass of any of their modules, and again at the first step:
    ``own`` weights, which belong to the training, may be changed between the two, as layers do that
    are initialised by their first batch. ``advice``: what to do where they were changed too early.
    """

    def __init__(self, networks: Mapping[str, nn.Module], *, own: bool, advice: str) -> None:
        self._networks, self._own, self._advice = networks, own, advice
        self._begun: dict[str, tuple[nn.Parameter, Tensor]] | None = {
            name: (leaf, leaf.detach().clone()) for name, leaf in leaves(networks)
        }
        self._modules = {id(part) for network in networks.values() for part in network.modules()}
        self._hook: Any = None
        self._filter: Any = None

    def watch(self, look: Callable[[Start], None]) -> None:
        """Let ``look`` be called with this before the first forward pass."""

        def before(module: nn.Module, inputs: Any) -> None:
            del inputs
            names = ("_orig_mod", "module")  # compiled, and parallel
            parts = (module, *(vars(module).get("_modules", {}).get(name) for name in names))
            if self._hook is not None and any(id(part) in self._modules for part in parts):
                self._unhook()
                look(self)
                if self._own:
                    self._begun = None

        self._hook = register_module_forward_pre_hook(before)
        # torch.compile says that such a hook may be called twice; this one is gone by then.
        warnings.filterwarnings("ignore", ".*when there are global hooks on modules", UserWarning)
        self._filter = warnings.filters[0]

    def close(self) -> None:
        """Look no more."""
        self._unhook()
        self._begun = None

    def check(self) -> None:
        """ConfigError if the weights are no longer those that the training was given."""
        if self._begun is None:
            return
        now = dict(leaves(self._networks))
        changed = [
            name
            for name, (leaf, then) in self._begun.items()
            if now.get(name) is not leaf or not bool((leaf == then.to(leaf)).all())
        ]
        if changed:
            raise ConfigError(
                f"before the first step the weights were changed ({', '.join(changed[:3])}), so "
                f"that a ticket would not begin with its own; {self._advice}"
            )

    def _unhook(self) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
            with contextlib.suppress(ValueError):  # filters may have been reset since
                warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
