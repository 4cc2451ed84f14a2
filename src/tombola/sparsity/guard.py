"""How do masks hold in a loop that is not ours, between the steps of its optimizers?

What moves a weight there is not only a step: an optimizer may climb before a second forward pass
(SAM, Foret et al. 2021, equation 2), and one without schedules has other weights for evaluation
(Defazio et al. 2024, "The road less scheduled", equation 3). So gradients of pruned weights are
zero when they arrive, which is the gradient of the smaller network; closures and calls of a
layer find the pruned weights at zero; ``eval()`` and ``train()`` of an optimizer leave them there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tombola.sparsity.effective import Look
from tombola.sparsity.hold import Hold
from tombola.sparsity.names import own_tensors, walk

MODES = ("train", "eval")
"""Methods of an optimizer that put other weights into the networks."""


class Guard:
    """Keeps pruned weights at zero wherever a loop looks at them; ``close`` takes all away.

    ``names``: the weights ``network.parameter`` that are or will be pruned. At the first call of a
    layer of its own ``forward`` it is looked whether a zero of its weight is one in what it
    computes: ConfigError if not.
    """

    def __init__(self, networks: Mapping[str, nn.Module], names: Iterable[str]) -> None:
        self._networks = networks
        self._look = Look(networks, names)
        self._masks: dict[int, tuple[Tensor, Tensor]] = {}
        """Identity of a leaf -> itself and its mask."""
        self._owned: dict[int, list[int]] = {}
        """Identity of a layer -> identities of its masked leaves."""
        self._clean: dict[int, int] = {}
        """Identity of a leaf -> its version when it was last known to be masked."""
        self._hooks: dict[int, Any] = {}
        self._wrapped: list[tuple[Optimizer, str]] = []
        self._evaluating: set[int] = set()
        for _, layer, _ in self._look.waiting.values():
            self._hook(layer)

    @property
    def looks(self) -> bool:
        """Whether a layer is to be looked at when it is first called."""
        return bool(self._look.waiting)

    def fit(self, hold: Hold) -> None:
        """From now on keep these masks."""
        self._masks = {id(leaf): (leaf, mask) for leaf, mask in hold.pairs()}
        for network in self._networks.values():
            for _, layer in walk(network):
                own = [id(leaf) for _, leaf in own_tensors(layer) if id(leaf) in self._masks]
                if own:
                    self._owned[id(layer)] = own
                    self._hook(layer)
        for leaf, _ in self._masks.values():
            self._hook_gradient(leaf)

    def apply(self, hold: Hold) -> None:
        """Zero what a hold prunes."""
        hold.apply()
        for leaf, _ in hold.pairs():
            self._clean[id(leaf)] = leaf._version

    def held(self, hold: Hold | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """(args, kwargs) of an optimizer's step, with masks held whenever it calls its closure."""
        if hold is None:
            return None

        def closure(call: Any) -> Any:
            def held_first() -> Any:
                self.apply(hold)
                return call()

            return held_first if callable(call) else call

        own, *given = args
        return (own, *map(closure, given)), {key: closure(each) for key, each in kwargs.items()}

    def watch(self, optimizer: Any, hold: Hold | None) -> None:
        """Zero the pruned weights also after ``eval()`` and ``train()`` of an optimizer."""
        if not isinstance(optimizer, Optimizer):
            return
        for name in MODES:
            own = getattr(optimizer, name, None)
            if callable(own) and (optimizer, name) not in self._wrapped:
                setattr(optimizer, name, self._wrap(optimizer, name, own, hold))
                self._wrapped.append((optimizer, name))

    def evaluate(self) -> list[str]:
        """Let optimizers put their evaluation weights in place; names of the kinds that have any.

        Of those with ``eval()`` and ``train()`` that were met; none is asked twice in a row.
        """
        both = [o for o, name in self._wrapped if name == "eval" and (o, "train") in self._wrapped]
        for optimizer in both:
            if id(optimizer) not in self._evaluating:
                optimizer.eval()  # type: ignore[attr-defined]
        return sorted({type(optimizer).__name__ for optimizer in both})

    def close(self) -> None:
        """Take all hooks away."""
        for hook in self._hooks.values():
            hook.remove()
        for optimizer, name in self._wrapped:
            delattr(optimizer, name)
        self._hooks, self._wrapped, self._masks = {}, [], {}

    def _wrap(
        self, optimizer: Optimizer, name: str, own: Callable[..., Any], hold: Hold | None
    ) -> Callable[..., Any]:
        def switch(*args: Any, **kwargs: Any) -> Any:
            made = own(*args, **kwargs)
            (self._evaluating.add if name == "eval" else self._evaluating.discard)(id(optimizer))
            if hold is not None:
                self.apply(hold)
            return made

        return switch

    def _hook(self, layer: nn.Module) -> None:
        if id(layer) not in self._hooks:
            # Before other hooks: the older spectral norm computes its weight in one.
            gate = _Gate(self)
            hook = layer.register_forward_pre_hook(gate, prepend=True, with_kwargs=True)
            self._hooks[id(layer)] = hook

    def _hook_gradient(self, leaf: Tensor) -> None:
        if id(leaf) in self._hooks:
            return
        learns = leaf.requires_grad
        leaf.requires_grad_(True)  # torch hooks no other, and it may learn later
        hook = leaf.register_post_accumulate_grad_hook(self._mask_gradient)  # type: ignore[no-untyped-call]
        self._hooks[id(leaf)] = hook
        leaf.requires_grad_(learns)

    @torch.no_grad()
    def _mask_gradient(self, leaf: Tensor) -> None:
        found = self._masks.get(id(leaf))
        if found is not None and leaf.grad is not None:
            leaf.grad.mul_(found[1].to(leaf.grad))

    @torch.no_grad()
    def enter(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """A layer is about to be called."""
        if id(layer) in self._look.waiting:
            self._look.at(layer, args, kwargs)
        for key in self._owned.get(id(layer), ()):
            leaf, mask = self._masks[key]
            if leaf._version != self._clean.get(key):
                # Written to only if need be: a graph through it may be open.
                if bool(((leaf != 0) & (mask == 0)).any()):
                    leaf.mul_(mask)
                self._clean[key] = leaf._version


class _Gate:
    """The hook of a layer; in copies of it, and in files, one that does nothing."""

    def __init__(self, guard: Guard | None = None) -> None:
        self._guard = guard

    def __call__(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._guard is not None and not torch.compiler.is_compiling():
            self._guard.enter(layer, args, kwargs)

    def __reduce__(self) -> tuple[type[_Gate], tuple[()]]:
        return _Gate, ()
