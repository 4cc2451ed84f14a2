"""How do channels leave a network for good? Slices of its tensors go, and its layers shrink.

A cut knows, for every tensor of every network, which places stay along which dimension. The same
cut serves parameters, buffers, averaged weights and an optimizer's moments.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tombola.errors import ConfigError, TicketError
from tombola.sparsity.names import own_tensors, walk

Inputs = tuple[Tensor, ...]
"""What a network is called with."""


@dataclass(frozen=True)
class Slice:
    """Where the channels of a group lie in one tensor."""

    tensor: str
    """``network.name``."""
    dim: int
    size: int
    """Length of that dimension before any cut."""
    positions: Tensor
    """(channels, places of each) along the dimension."""


@dataclass(frozen=True)
class Cut:
    """Which places of every tensor stay: ``network.name`` -> dimension -> bool, True = kept."""

    keep: dict[str, dict[int, Tensor]] = field(default_factory=dict)

    @staticmethod
    def of(groups: Iterable[tuple[Sequence[Slice], Tensor]]) -> Cut:
        """The cut that takes away, of each group, the channels whose bit is False."""
        keep: dict[str, dict[int, Tensor]] = {}
        for slices, kept in groups:
            for place in slices if not bool(kept.all()) else ():
                along = keep.setdefault(place.tensor, {})
                whole = along.setdefault(
                    place.dim, torch.ones(place.size, dtype=torch.bool, device="cpu")
                )
                whole[place.positions[~kept].flatten()] = False
        return Cut(keep)

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """What is left of a tensor of the shape of ``network.name``; a copy if anything goes."""
        for dim, kept in self.keep.get(name, {}).items():
            tensor = tensor.index_select(dim, kept.nonzero().flatten().to(tensor.device))
        return tensor

    def mask(self, name: str, shape: Sequence[int]) -> Tensor:
        """The places of a tensor that stay, as a bool tensor of its shape."""
        mask = torch.ones(tuple(shape), dtype=torch.bool, device="cpu")
        for dim, kept in self.keep.get(name, {}).items():
            mask.index_fill_(dim, (~kept).nonzero().flatten(), False)
        return mask

    def masks(self, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """Masks of every parameter that loses something, for training the zeroed network."""
        return {
            name: self.mask(name, leaf.shape)
            for name, leaf in _leaves(networks)
            if isinstance(leaf, nn.Parameter) and name in self.keep
        }

    @torch.no_grad()
    def zero(self, networks: Mapping[str, nn.Module]) -> None:
        """Zero in place every parameter's places that would go."""
        for name, leaf in _leaves(networks):
            if isinstance(leaf, nn.Parameter) and name in self.keep:
                leaf.masked_fill_(~self.mask(name, leaf.shape).to(leaf.device), 0.0)


def shrink(networks: Mapping[str, nn.Module], cut: Cut) -> None:
    """Take the places that go out of the networks' tensors, in place; layers learn their sizes.

    Parameters stay the same objects, without their gradients.
    """
    _replace(networks, {name: cut.apply(name, leaf.detach()) for name, leaf in _leaves(networks)})


def resize(networks: Mapping[str, nn.Module], shapes: Mapping[str, Sequence[int]]) -> None:
    """Give every tensor the shape that a smaller network has, in place; what changes is zero.

    ``shapes`` by ``network.name``. TicketError for a missing or unknown name, for a shape that is
    no smaller version of the network's, or for a layer whose own sizes do not fit together; whether
    the layers fit each other shows when the network is called.
    """
    leaves = dict(_leaves(networks))
    for name in [*leaves, *shapes]:
        if name not in leaves or name not in shapes:
            raise TicketError(
                f"tensor {name!r} is {'not in the file' if name in leaves else 'of no network'}; "
                "give the file and the task that belong together"
            )
        new, old = tuple(shapes[name]), tuple(leaves[name].shape)
        fits = len(new) == len(old) and all(map(_is_smaller, new, old))
        if not fits:
            raise TicketError(
                f"tensor {name!r} is {list(new)} in the file, which is no smaller version of the "
                f"network's {list(old)}; give the task that the file was made with"
            )
    changed = {name for name, leaf in leaves.items() if tuple(leaf.shape) != tuple(shapes[name])}
    if changed:
        _replace(
            networks,
            {name: leaf.new_zeros(tuple(shapes[name])) for name, leaf in leaves.items()},
        )
        _check_layers(networks, changed)


def _is_smaller(new: int, old: int) -> bool:
    return new == old or 1 <= new < old


def _check_layers(networks: Mapping[str, nn.Module], changed: set[str]) -> None:
    """TicketError for a layer, of those that changed, whose own tensors differ in their length."""
    for network, module in networks.items():
        for prefix, part in walk(module):
            own = dict(own_tensors(part))
            lengths = {
                f"{network}.{prefix}{name}": len(own[name])
                for name in ("bias", "running_mean", "running_var", "weight_u")
                if own.get(name) is not None
            }
            makes = ("out_channels", "out_features", "num_features", "num_channels")
            width = next((getattr(part, name) for name in makes if hasattr(part, name)), None)
            if width is None or not {*lengths, f"{network}.{prefix}weight"} & changed:
                continue
            for name, length in lengths.items():
                if length != width:
                    raise TicketError(
                        f"tensor {name!r} has {length} channels in the file, but its layer makes "
                        f"{width}; get the file again"
                    )


def copied(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Deep copies of networks; what they share is shared by the copies.

    ConfigError for a network that cannot be copied.
    """
    memo: dict[int, Any] = {}
    for module in networks.values():
        for part in module.modules():
            for value in vars(part).values():
                # The older spectral norm and weight norm keep the last computed weight, with the
                # graph of its gradient, which torch refuses to copy: its value is enough.
                if isinstance(value, Tensor) and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(dict(networks), memo)
    except Exception as error:
        text = (str(error).strip() or "no message").splitlines()[0]
        raise ConfigError(
            f"network {', '.join(networks)} cannot be copied ({type(error).__name__}: {text}); "
            "take out of it what copy.deepcopy refuses"
        ) from error


def outputs_of(network: nn.Module, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Every floating tensor that a network returns, without gradients, from one seed."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(floating_tensors(network(*inputs)))


def floating_tensors(made: Any) -> Iterator[Tensor]:
    """Every floating tensor in what a network returned."""
    if isinstance(made, Tensor):
        if made.is_floating_point():
            yield made
        elif made.is_complex():
            yield torch.view_as_real(made)
    elif isinstance(made, Mapping):
        for part in made.values():
            yield from floating_tensors(part)
    elif isinstance(made, tuple | list):
        for part in made:
            yield from floating_tensors(part)
    elif is_dataclass(made):
        yield from floating_tensors(vars(made))


def _leaves(networks: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Every leaf tensor itself by ``network.name``, a shared one under its network's first name."""
    for network, module in networks.items():
        seen: set[int] = set()
        for prefix, part in walk(module):
            for name, leaf in own_tensors(part):
                if id(leaf) not in seen:
                    seen.add(id(leaf))
                    yield f"{network}.{prefix}{name}", leaf


def _replace(networks: Mapping[str, nn.Module], tensors: Mapping[str, Tensor]) -> None:
    """Put other tensors in the place of the leaves, and tell the layers their sizes."""
    before = {
        id(part): part.num_channels // part.num_groups
        for module in networks.values()
        for _, part in walk(module)
        if isinstance(part, nn.GroupNorm)
    }
    for name, leaf in _leaves(networks):
        leaf.grad = None
        if tensors[name].shape != leaf.shape:
            leaf.data = tensors[name].contiguous(memory_format=_layout(leaf))
    for module in networks.values():
        for _, part in walk(module):
            _tell(part, before.get(id(part), 1))


def _layout(leaf: Tensor) -> torch.memory_format:
    """The memory format that a tensor is in, which slicing would lose."""
    for dims, layout in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        channels_last = leaf.dim() == dims and leaf.is_contiguous(memory_format=layout)
        if channels_last and not leaf.is_contiguous():
            return layout
    return torch.contiguous_format


def _tell(part: nn.Module, tied: int) -> None:
    """A layer's own words for its sizes, from its tensors."""
    own = dict(own_tensors(part))
    weight = own.get("weight")
    if isinstance(part, _NormBase):
        some = next((t for t in own.values() if t.dim() == 1), None)
        if some is not None:
            part.num_features = len(some)
    elif weight is None:
        return
    elif isinstance(part, _ConvNd):
        first, second = weight.shape[:2]
        if part.groups > 1:  # of these only depthwise ones are cut
            if part.groups == part.in_channels == part.out_channels:
                part.groups = part.in_channels = part.out_channels = first
        elif isinstance(part, _ConvTransposeNd):
            part.in_channels, part.out_channels = first, second
        else:
            part.out_channels, part.in_channels = first, second
    elif isinstance(part, nn.Linear):
        part.out_features, part.in_features = weight.shape
    elif isinstance(part, nn.GroupNorm):
        part.num_channels = len(weight)
        part.num_groups = len(weight) // tied
    elif isinstance(part, nn.Embedding):
        part.embedding_dim = weight.shape[1]
    elif isinstance(part, nn.PReLU):
        part.num_parameters = len(weight)
