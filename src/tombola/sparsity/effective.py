"""Is what a mask prunes zero in what the layer computes with? Asked before any training.

A mask acts on a leaf tensor w. What enters the product may be another one, f(w): a parametrization,
a hook, or a layer's own ``forward`` stands between. The mask prunes only where f keeps every zero
in its place: w_i = 0 implies f(w)_i = 0. Spectral norm, w / sigma(w), does; of weight norm,
g v / |v| (Salimans & Kingma 2016, equation 2), the direction v is masked. Softplus, orthogonal maps
and weight standardisation do not: those are refused by name.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from tombola.errors import ConfigError
from tombola.sparsity.cutting import copied
from tombola.sparsity.names import own_tensors, walk

LEAVE_OUT = "or leave the layer out (exclude=, --exclude, --set prune.exclude)"
MOST_NAMED = 3
"""Layers that one refusal names."""
_SECOND = frozenset(
    getattr(place, name)
    for place in (torch, F)
    for name in (
        "linear", "bilinear", "conv1d", "conv2d", "conv3d",
        "conv_transpose1d", "conv_transpose2d", "conv_transpose3d",
    )
    if hasattr(place, name)
)  # fmt: skip
"""Products whose second argument is the weight."""
_ANY = frozenset(
    getattr(place, name)
    for place in (torch, Tensor)
    for name in ("matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "__matmul__", "__rmatmul__",
                 "einsum", "tensordot")
    if hasattr(place, name)
)  # fmt: skip
"""Products of which any argument may be the weight."""
_PRODUCT = re.compile("mm|Mv|Mm|Convolution|Linear")
"""Nodes of autograd's graph at which a weight meets what it is multiplied by."""


def masked_tensor(layer: nn.Module) -> Tensor | None:
    """The leaf that a mask of a layer's weight acts on: of weight norm the direction; else None."""
    own = dict(own_tensors(layer))
    for name in ("weight", *_direction(layer)):
        if name in own:
            return own[name]
    return None


def why_no_zeros(layer: nn.Module, leaf: Tensor | None) -> str:
    """Why a zero of a layer's leaf tensor is none in what it computes with; empty if it is one."""
    if leaf is None:
        return "it is computed from several tensors; remove that parametrization"
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod) and leaf is getattr(
            layer, f"{hook._tensor_name}_orig", None
        ):
            return (
                "torch.nn.utils.prune holds a mask on it, whose dead weights would count as kept; "
                f"call torch.nn.utils.prune.remove(module, {hook._tensor_name!r}) first"
            )
    for chain in _chains(layer):
        if any(leaf is raw for raw in chain._parameters.values()):
            return _why_not_through(chain, leaf)
    return ""


def check_layers(layers: Mapping[str, tuple[nn.Module, Tensor | None]]) -> None:
    """ConfigError that names the weights ``network.name`` whose zeros are lost, and says why."""
    found = {name: why_no_zeros(*each) for name, each in layers.items()}
    refused = {name: reason for name, reason in found.items() if reason}
    if refused:
        first, *others = refused
        so_too = f" (so too {', '.join(others[: MOST_NAMED - 1])})" if others else ""
        raise ConfigError(f"{first!r} cannot be pruned{so_too}: {refused[first]}, {LEAVE_OUT}")


def check_masks(networks: Mapping[str, nn.Module], masks: Mapping[int, tuple[str, Tensor]]) -> None:
    """ConfigError if a mask does not prune what its layer computes with, or leaves no direction.

    ``masks``: identity of a leaf -> its name and mask. Looked at are layers with parametrizations
    or hooks; what a layer's own ``forward`` computes shows when it is called.
    """
    for network in networks.values():
        for _, part in walk(network):
            if not (part._forward_pre_hooks or parametrize.is_parametrized(part)):
                continue
            for own, leaf in own_tensors(part):
                if id(leaf) not in masks:
                    continue
                name, mask = masks[id(leaf)]
                check_layers({name: (part, leaf)})
                if own in _direction(part) and not _keeps_each(mask, _direction(part)[own]):
                    raise ConfigError(
                        f"the mask of {name!r} leaves nothing of some outputs, and weight norm "
                        "divides by the norm of what is left; ask for fewer rounds or a lower "
                        f"sparsity, {LEAVE_OUT}"
                    )


def _chains(layer: nn.Module) -> Iterator[nn.Module]:
    if parametrize.is_parametrized(layer):
        yield from layer.parametrizations.children()  # type: ignore[union-attr]


def _direction(layer: nn.Module) -> dict[str, int | None]:
    """Own name of the direction under weight norm, of either API -> the axis of its outputs."""
    found: dict[str, int | None] = {
        f"{hook.name}_v": hook.dim
        for hook in layer._forward_pre_hooks.values()
        if isinstance(hook, WeightNorm)
    }
    if parametrize.is_parametrized(layer):
        for name, chain in layer.parametrizations.items():  # type: ignore[operator, union-attr]
            first = next(iter(chain.children()))
            if isinstance(first, _WeightNorm):
                found[f"{name}_original1"] = first.dim
    return {name: None if axis in (None, -1) else axis for name, axis in found.items()}


def _keeps_each(mask: Tensor, axis: int | None) -> bool:
    """Whether a mask keeps something of each output; of the whole tensor without an axis."""
    whole = mask.reshape(1, -1) if axis is None else mask.movedim(axis, 0).flatten(1)
    return bool((whole != 0).any(1).all())


def _why_not_through(chain: nn.Module, leaf: Tensor) -> str:
    """Why zeros of a raw tensor are lost on the way through its parametrizations, or ""."""
    kinds = [type(part) for part in chain.children()]
    if all(kind is _SpectralNorm for kind in kinds) or kinds == [_WeightNorm]:
        return ""
    names = ", ".join(kind.__name__.removeprefix("_") for kind in kinds)
    tried = halved(leaf)
    made: Any = [tried if raw is leaf else raw for raw in chain._parameters.values()]
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            for part in chain.children():
                part = copy.deepcopy(part).eval()
                made = part(*made) if isinstance(made, list) else part(made)
            kept = made.shape == tried.shape and not bool((made[tried == 0] != 0).any())
    except Exception as error:
        return f"{names} cannot be tried on a tensor with zeros ({type(error).__name__}); remove it"
    remove = "torch.nn.utils.parametrize.remove_parametrizations"
    lost = f"where it is zero, the weight that {names} makes of it is not; remove that by {remove}"
    return "" if kept else lost


def halved(leaf: Tensor) -> Tensor:
    """Random values of a leaf's shape, type and device, of which half are zero."""
    generator = torch.Generator("cpu").manual_seed(0)
    drawn = torch.randn(leaf.shape, generator=generator, device="cpu")
    drawn *= torch.rand(leaf.shape, generator=generator, device="cpu") < 0.5
    return drawn.to(leaf)


class Look:
    """Looks at what a layer of its own ``forward`` multiplies by, when it is first called.

    A copy of the layer is called with the same inputs, half of its weights zero; the original and
    the random numbers stay as they are.
    """

    def __init__(self, networks: Mapping[str, nn.Module], names: Iterable[str]) -> None:
        chosen = set(names)
        self.waiting: dict[int, tuple[str, nn.Module, str]] = {}
        """Identity of a layer -> name of its weight, itself, the weight's own name."""
        for network, module in networks.items():
            for prefix, part in walk(module):
                for own, leaf in own_tensors(part):
                    name = f"{network}.{prefix}{own}"
                    if name in chosen and not _is_plain(part, leaf):
                        self.waiting[id(part)] = name, part, own

    def at(self, layer: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The layer is about to be called; ConfigError if zeros of its weight are none there."""
        name, _, own = self.waiting.pop(id(layer))
        lost = _is_lost(layer, own, args, kwargs)
        if lost:
            raise ConfigError(
                f"{name!r} cannot be pruned: where it is zero, the weight that "
                f"{type(layer).__name__}.forward computes with is not; let the layer multiply by "
                f"its weight or by what is zero where that is, {LEAVE_OUT}"
            )


def _is_plain(layer: nn.Module, leaf: Tensor) -> bool:
    """Whether a layer is known to compute with its leaf, or was asked by :func:`check_layers`."""
    kind = type(layer)
    calls = [kind.forward, getattr(kind, "_conv_forward", kind.forward)]
    if "forward" in vars(layer) or not isinstance(layer, _ConvNd | nn.Linear):
        return False
    if any(not call.__module__.startswith("torch.nn.modules.") for call in calls):
        return False
    hooked = "weight" in vars(layer) and any(leaf is p for p in layer._parameters.values())
    known = any(
        type(hook).__module__.startswith("torch.nn.utils.")
        for hook in layer._forward_pre_hooks.values()
    )
    return not hooked or known


def _is_lost(layer: nn.Module, own: str, args: Any, kwargs: Any) -> bool:
    """Whether more enters a layer's products than is left of its weight; False if it fails."""
    inputs: set[int] = set()

    def fresh(x: Tensor) -> Tensor:
        made = x.detach().clone()
        if made.is_floating_point():
            inputs.add(id(made.requires_grad_()))
        return made

    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]), _Products() as seen:
            twin = copied({"layer": layer})["layer"]
            twin._forward_hooks.clear()
            leaf = dict(own_tensors(twin))[own].requires_grad_()
            with torch.no_grad():
                leaf.copy_(halved(leaf))
            args, kwargs = tree_map_only(Tensor, fresh, (args, dict(kwargs)))
            with torch.enable_grad():
                twin(*args, **kwargs)
    except Exception:  # the layer's own call will tell
        return False
    left = int(torch.count_nonzero(leaf))
    return any(
        int(torch.count_nonzero(weight)) > left * max(1.0, weight.numel() / leaf.numel())
        for weight in seen.weights
        if weight is not leaf and _is_made_of(weight, leaf, inputs)
    )


class _Products(TorchFunctionMode):
    """In its block notes what enters products in the place of a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        given: list[Any] = []
        if func in _SECOND:
            given = [args[1] if len(args) > 1 else named.get("weight")]
        elif func in _ANY:
            given = [
                x for part in args for x in (part if isinstance(part, list | tuple) else [part])
            ]
        self.weights += [x for x in given if isinstance(x, Tensor) and x.requires_grad]
        return func(*args, **named)


def _is_made_of(weight: Tensor, leaf: Tensor, inputs: set[int]) -> bool:
    """Whether a tensor is a leaf gone through some function, and no activation.

    Made elementwise of it, though other things scale it (a modulated weight); or by products too
    (an orthogonal one), but then of nothing that the layer was given.
    """
    everything = _reached(weight, through_products=True)
    if id(leaf) not in everything:
        return False
    return not inputs & everything or id(leaf) in _reached(weight, through_products=False)


def _reached(tensor: Tensor, *, through_products: bool) -> set[int]:
    """Identities of the leaves that a tensor's graph leads to."""
    found: set[int] = set()
    seen: set[Any] = set()
    stack: list[Any] = [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen or (
            not through_products and _PRODUCT.search(node.name())
        ):  # fmt: skip
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        stack += [following for following, _ in node.next_functions]
    return found
