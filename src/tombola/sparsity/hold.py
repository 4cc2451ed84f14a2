"""How do pruned weights stay zero while a network trains? One multiplication after each step.

The mask acts on the leaf parameters, in place: no hooks, no renamed keys, so deepcopy, averaging,
spectral norm, mixed precision and state dicts stay what they are. Under spectral norm the raw
tensor is masked, that is before normalising. Bit masks are kept as floats in the weights' dtype:
one ``torch._foreach_mul_`` then costs about a third of what boolean masks would.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from tombola.errors import TicketError
from tombola.sparsity.effective import check_masks
from tombola.sparsity.names import own_tensors, walk


class Hold:
    """Masks held on the parameters of networks, by name ``network.parameter``.

    Build it when the networks are on their device and in their dtype; the same parameter objects
    are held from then on. TicketError for a mask of an unknown parameter, of another shape, that
    is not boolean, or two different masks of one shared parameter; ConfigError for one whose zeros
    are none in what a layer computes with.
    """

    def __init__(self, networks: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> None:
        self.names: list[str] = []
        self._called: list[tuple[str, ...]] = []
        """All names of each: a module that two networks share has one in either."""
        self._leaves: list[Tensor] = []
        self._masks: list[Tensor] = []
        parameters = _parameters(networks)
        called: dict[int, list[str]] = {}
        for name, leaf in parameters.items():
            called.setdefault(id(leaf), []).append(name)
        held: dict[int, str] = {}
        for name, mask in masks.items():
            leaf = _checked(name, mask, parameters)
            if id(leaf) in held:
                if not torch.equal(masks[held[id(leaf)]], mask):
                    raise TicketError(
                        f"masks {held[id(leaf)]!r} and {name!r} differ, but the networks share "
                        "that parameter; give one mask for it"
                    )
                continue
            held[id(leaf)] = name
            self.names.append(name)
            self._called.append(tuple(called[id(leaf)]))
            self._leaves.append(leaf)
            # Same strides as the leaf (channels_last), so that the multiplication is elementwise.
            self._masks.append(torch.empty_like(leaf, requires_grad=False).copy_(mask))
        named = zip(self.names, self.pairs(), strict=True)
        check_masks(networks, {id(leaf): (name, mask) for name, (leaf, mask) in named})

    def part(self, leaves: Iterable[Tensor]) -> Hold:
        """The hold of some parameters alone, by identity; it shares the masks."""
        chosen = {id(leaf) for leaf in leaves}
        made = Hold({}, {})
        for index, leaf in enumerate(self._leaves):
            if id(leaf) in chosen:
                made.names.append(self.names[index])
                made._called.append(self._called[index])
                made._leaves.append(leaf)
                made._masks.append(self._masks[index])
        return made

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Every leaf and its mask, which is 0 or 1 in the leaf's own type."""
        return zip(self._leaves, self._masks, strict=True)

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the pruned weights, in place; call it after every optimizer step."""
        if self._leaves:
            torch._foreach_mul_(self._leaves, self._masks)

    def mask_gradients(self) -> None:
        """Zero the gradients of pruned weights: for an optimizer that looks at all of them."""
        for leaf, mask in self.pairs():
            if leaf.grad is not None:
                leaf.grad.mul_(mask)

    @torch.no_grad()
    def mask_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero an optimizer's moments (all state of a parameter's shape) at pruned positions."""
        for leaf, mask in self.pairs():
            for value in optimizer.state.get(leaf, {}).values():
                if isinstance(value, Tensor) and value.shape == leaf.shape:
                    value.masked_fill_((mask == 0).to(value.device), 0)

    @torch.no_grad()
    def mask_state(self, state: Mapping[str, Tensor]) -> None:
        """Zero the pruned positions (+0.0) of a state by name ``network.parameter``, in place.

        For averaged weights, whenever they are read: an average that began at dense weights keeps
        a share of them for thousands of steps. A parameter that is shared is masked under each of
        its names. Names without a mask are left alone, and masks without a name are skipped.
        TicketError for a tensor of another shape.
        """
        for names, mask in zip(self._called, self._masks, strict=True):
            for name in names:
                value = state.get(name)
                if value is None:
                    continue
                if value.shape != mask.shape:
                    raise TicketError(
                        f"tensor {name!r} has shape {tuple(value.shape)}, but its mask has shape "
                        f"{tuple(mask.shape)}; give the state of the masked networks"
                    )
                value.detach().masked_fill_((mask == 0).to(value.device), 0)

    @torch.no_grad()
    def leaks(self) -> list[str]:
        """Names of the parameters with a pruned entry that is not zero (NaN counts)."""
        return [
            name
            for name, (leaf, mask) in zip(self.names, self.pairs(), strict=True)
            if bool(((leaf != 0) & (mask == 0)).any())
        ]


def _parameters(networks: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Leaf parameters by ``network.parameter``; a shared one under each of its names."""
    return {
        f"{network}.{prefix}{name}": tensor
        for network, module in networks.items()
        for prefix, part in walk(module)
        for name, tensor in own_tensors(part)
        if isinstance(tensor, nn.Parameter)
    }


def _checked(name: str, mask: Tensor, parameters: Mapping[str, nn.Parameter]) -> nn.Parameter:
    """The parameter that a mask belongs to, or TicketError."""
    if name not in parameters:
        near = difflib.get_close_matches(name, parameters, n=1, cutoff=0.5)
        meant = f"; the nearest name is {near[0]!r}" if near else ""
        raise TicketError(
            f"the masks name a parameter {name!r} that the networks do not have{meant}; "
            "give the networks that the masks were made from"
        )
    leaf = parameters[name]
    if mask.dtype != torch.bool:
        raise TicketError(f"the mask of {name!r} is {mask.dtype}; give a torch.bool tensor")
    if mask.shape != leaf.shape:
        raise TicketError(
            f"the mask of {name!r} has shape {tuple(mask.shape)}, but the parameter has shape "
            f"{tuple(leaf.shape)}; give networks of the size that the masks were made from"
        )
    return leaf
