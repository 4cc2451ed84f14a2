"""Does a training begin with the weights that it was given? Looked at before they are changed.

A loop that initialises its networks itself, or loads them, trains every ticket and every control
from the same weights, and nothing in their numbers says so.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from tombola.errors import ConfigError
from tombola.sparsity.names import plain_parameters


class Start:
    """The parameters of networks as a training is given them, until its first step.

    Looked at before the first forward pass of any of their modules, and again at the first step:
    ``own`` weights, which belong to the training, may be changed between the two, as layers do that
    are initialised by their first batch. What was changed before the pass and is put back by the
    step was a jitter of weights; what is clipped, as a WGAN's critic before each batch, still is
    its own. ``advice``: what to do where they were changed too early.
    """

    def __init__(self, networks: Mapping[str, nn.Module], *, own: bool, advice: str) -> None:
        self._networks, self._own, self._advice = networks, own, advice
        self._hooks: list[Any] = []
        self._begun: dict[str, tuple[nn.Parameter, Tensor]] | None = {
            name: (leaf, leaf.detach().clone()) for name, leaf in self._leaves()
        }
        self._modules = {id(part) for network in networks.values() for part in network.modules()}
        self._filter: Any = None
        self._passing = False
        self.moved = False
        """Whether the weights were others at the first forward pass: the step is to find them."""

    def watch(
        self, look: Callable[[Start], None], optimizers: Iterable[torch.optim.Optimizer] = ()
    ) -> None:
        """Let ``look`` be called with this before the first forward pass, and the first step."""

        def before(module: nn.Module, inputs: Any) -> None:
            del inputs
            if torch.compiler.is_compiling():  # what is traced must not hold this; the step will
                return
            names = ("_orig_mod", "module")  # compiled, and parallel
            parts = (module, *(getattr(module, name, None) for name in names))
            if self._hooks and any(id(part) in self._modules for part in parts):
                self._unhook(1)
                self._passing = True
                try:
                    look(self)
                finally:
                    self._passing = False
                if self._own and not self.moved:
                    self.close()

        def first(*details: Any) -> None:
            del details
            self._unhook()
            look(self)
            self.close()

        self._hooks = [register_module_forward_pre_hook(before)]
        self._hooks += [optimizer.register_step_pre_hook(first) for optimizer in optimizers]
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
        now = dict(self._leaves())
        changed = [
            name
            for name, (leaf, then) in self._begun.items()
            if now.get(name) is not leaf or not bool((leaf == then.to(leaf)).all())
        ]
        if changed and all(now.get(name) is self._begun[name][0] for name in changed):
            if _are_clipped([self._begun[name] for name in changed]):
                return
            if self._passing:
                self.moved = True
                return
        if changed:
            raise ConfigError(
                f"before the first step the weights were changed ({', '.join(changed[:3])}), so "
                f"that a ticket would not begin with its own; {self._advice}"
            )

    def _leaves(self) -> Iterator[tuple[str, nn.Parameter]]:
        for network, module in self._networks.items():
            for name, leaf in plain_parameters(module).items():
                yield f"{network}.{name}", leaf

    def _unhook(self, count: int | None = None) -> None:
        """Take away so many hooks, the first of which is of the forward pass; all by default."""
        gone, self._hooks = self._hooks[:count], self._hooks[len(self._hooks[:count]) :]
        for hook in gone:
            hook.remove()
        if self._filter is not None:
            with contextlib.suppress(ValueError):  # filters may have been reset since
                warnings.filters.remove(self._filter)  # type: ignore[attr-defined]
            self._filter = None


def _are_clipped(pairs: Iterable[tuple[Tensor, Tensor]]) -> bool:
    """Whether tensors are what they were, clipped from both sides to one bound."""
    now, then = (
        torch.cat([t.detach().to("cpu").flatten() for t in ts]) for ts in zip(*pairs, strict=True)
    )
    bound = now.abs().max()
    both = bool(bound > 0 and (now == bound).any() and (now == -bound).any())
    return both and torch.equal(now, then.to(now).clamp(-bound, bound))
