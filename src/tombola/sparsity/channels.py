"""Which channels of a network go together, and where in its tensors does each of them lie?

A channel can leave only with all that belongs to it: the filter that makes it, its bias, its
normalisation, and what every later layer learnt of it; across a residual sum the channels of all
branches. What belongs together is traced (``tracing.py``), and believed only where a probe proves
it: after half of a group's channels are cut from a copy with random weights, the outputs must be
those of the copy in which they were zeroed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from tombola.sparsity.cutting import Cut, Inputs, Slice, copied
from tombola.sparsity.names import own_tensors, plain_state, walk, without_spectral_norm
from tombola.sparsity.proof import MAKES_OUTPUT, prove
from tombola.sparsity.tracing import NORMS, Item, TooFarError, coupled, trace

MAKERS = (*NORMS, _ConvNd, nn.Linear, nn.Embedding)
"""Layers that are asked for their channels."""
TOO_FAR = (
    "its channels reach too far to be followed, as where a weight is computed from activations"
)


@dataclass(frozen=True, kw_only=True)
class Group:
    """Channels of one network that can leave one by one, each with all that belongs to it."""

    name: str
    """``network.layer``: its first normalisation layer, else the first layer that makes it."""
    n: int
    """How many channels it has; where some can only leave together, how many such sets."""
    slices: tuple[Slice, ...]
    """Every place in parameters and buffers that belongs to a channel."""
    scales: tuple[str, ...]
    """The weights of its normalisation layers but GroupNorms, ``network.layer.weight``."""
    filters: tuple[Slice, ...]
    """The places among ``slices`` that make a channel: filters of weights, else table columns."""
    reason: str = ""
    """Why it cannot be cut; empty if it can."""


def channel_groups(network: str, module: nn.Module, inputs: Inputs) -> list[Group]:
    """Every group of channels of a network, in its modules' order, with why some cannot be cut.

    ``inputs``: what the network is called with, a small batch of any values. Inputs and outputs
    keep their sizes, so the latent vector and the image do. ConfigError if the network cannot be
    traced at all.
    """
    # Without wrappers: a compiled network would be compiled for a trace, and again for each probe.
    module = next(walk(module))[1]
    bare = copied({network: module})[network].cpu().eval()
    for part in list(bare.modules()):
        without_spectral_norm(part)
    for parameter in bare.parameters():
        parameter.requires_grad_(True)
    graph, names = trace(network, bare, inputs), _Names(network, module, bare)
    parts = [part for part in names.parts if isinstance(part, MAKERS)]
    seen: set[int] = set()
    found: list[Group] = []
    for part in sorted(parts, key=lambda each: not isinstance(each, NORMS)):
        if id(part) in seen:
            continue
        name = f"{network}.{names.prefixes[id(part)]}".rstrip(".")
        try:
            items = coupled(graph, part) if part in graph.module2node else []
        except TooFarError:
            seen.add(id(part))
            found.append(Group(name=name, n=0, slices=(), scales=(), filters=(), reason=TOO_FAR))
            continue
        seen |= {id(item.module) for item in items if item.makes} | {id(part)}
        found.append(_Reader(names).group(name, items))
    order = [f"{network}.{prefix}".rstrip(".") for prefix in names.prefixes.values()]
    found.sort(key=lambda group: order.index(group.name))
    return [_probed(group, network, module, inputs) for group in found]


class _Names:
    """The plain names of a network's layers and tensors, by the parts of its copy for the trace."""

    def __init__(self, network: str, module: nn.Module, bare: nn.Module) -> None:
        self.network = network
        self.parts: list[nn.Module] = []
        self.prefixes: dict[int, str] = {}
        self.parameters: dict[int, str] = {}
        for prefix, part in walk(bare):
            if id(part) in self.prefixes:  # a module in two places has the first one's name
                continue
            self.parts.append(part)
            self.prefixes[id(part)] = prefix
            for name, tensor in own_tensors(part):
                self.parameters.setdefault(id(tensor), f"{prefix}{name}")
        self.shapes = {k: tuple(v.shape) for k, v in plain_state(module).items()}
        self.shared: dict[str, str] = {}
        """Names of tensors that several layers hold -> another name of the same."""
        owners: dict[int, dict[int, str]] = {}
        for prefix, part in walk(module):
            for name, tensor in own_tensors(part):
                owners.setdefault(id(tensor), {}).setdefault(id(part), f"{prefix}{name}")
        for several in owners.values():
            first, *others = several.values()
            for other in others:
                self.shared |= {first: other, other: first}


class _CannotError(Exception):
    """A layer or a place that cannot be cut, in words."""


class _Reader:
    """Turns what torch-pruning found into slices of plainly named tensors."""

    def __init__(self, names: _Names) -> None:
        self.names, self.network = names, names.network
        self.slices: dict[tuple[str, int], Slice] = {}
        self.scales: list[str] = []
        self.filters: list[Slice] = []
        self.tables: list[Slice] = []

    def group(self, name: str, items: Sequence[Item]) -> Group:
        """The group that some items make; with a reason if one of them cannot be cut."""
        reason, sets = "", _sets(items)
        try:
            if not items:
                raise _CannotError("no output depends on it, or it is not called as a layer")
            if any(item.is_output for item in items):
                raise _CannotError(MAKES_OUTPUT)
            for item in items:
                self._read(item, sets)
            if len(sets) < 2:
                raise _CannotError("its channels can only leave all together")
        except _CannotError as cannot:
            reason = str(cannot)
        return Group(
            name=name,
            n=len(sets),
            slices=tuple(self.slices.values()),
            scales=tuple(dict.fromkeys(self.scales)),
            filters=tuple(self.filters or self.tables),
            reason=reason,
        )

    def _read(self, item: Item, sets: Sequence[Sequence[int]]) -> None:
        module = item.module
        if item.is_operation:
            return
        if isinstance(module, nn.Parameter):
            self._parameter(module, item, sets)
            return
        prefix = self.names.prefixes.get(id(module))
        if prefix is None:
            raise _CannotError("it goes with the network's input")
        for own in ("weight", "bias"):
            if other := self.names.shared.get(f"{prefix}{own}"):
                raise _CannotError(f"{prefix}{own} is the same tensor as {other}")
        if not (isinstance(module, nn.PReLU) and module.num_parameters == 1):
            self._layer(prefix, module, item.makes, _rows(item, sets, prefix.rstrip(".")))

    def _parameter(
        self, parameter: nn.Parameter, item: Item, sets: Sequence[Sequence[int]]
    ) -> None:
        """The places of a parameter outside of any layer: where it is as long as the channels.

        One that is nowhere so long is the same for all channels, or the probe will tell.
        """
        name = self.names.parameters[id(parameter)]
        if item.places in parameter.shape:
            dim = parameter.shape.index(item.places)
            self._add(name, dim, _rows(item, sets, name), self.tables)

    def _layer(self, prefix: str, module: nn.Module, makes: bool, positions: Tensor) -> None:
        """The places of one layer's tensors."""
        if isinstance(module, nn.GroupNorm) and not module.affine:
            raise _CannotError(f"{prefix.rstrip('.')} is a GroupNorm without scales")
        if isinstance(module, (*NORMS, nn.PReLU)):
            # A GroupNorm's scale says little: channels come to it in sizes of their own.
            own_size = isinstance(module, NORMS) and not isinstance(module, nn.GroupNorm)
            if own_size and f"{prefix}weight" in self.names.shapes:
                self.scales.append(f"{self.network}.{prefix}weight")
            for own in ("weight", "bias", "running_mean", "running_var"):
                self._add(f"{prefix}{own}", 0, positions)
        elif isinstance(module, nn.Embedding) and makes:
            self._add(f"{prefix}weight", 1, positions, self.tables)
        elif isinstance(module, _ConvNd | nn.Linear):
            self._weight(prefix, module, makes, positions)
        else:
            raise _CannotError(f"{prefix.rstrip('.')} is a {type(module).__name__}")

    def _weight(self, prefix: str, module: nn.Module, makes: bool, positions: Tensor) -> None:
        """The places in a layer's weight, its bias, and the vectors of its spectral norm."""
        groups = getattr(module, "groups", 1)
        depthwise = groups > 1 and groups == module.in_channels == module.out_channels
        if groups > 1 and not depthwise:
            raise _CannotError(f"{prefix.rstrip('.')} is a convolution in {groups} groups")
        shape = self.names.shapes.get(f"{prefix}weight")
        if shape is None:
            raise _CannotError(f"{prefix.rstrip('.')}'s weight is computed from several tensors")
        turned = isinstance(module, _ConvTransposeNd) and not depthwise
        if makes or depthwise:
            self._add(f"{prefix}weight", int(turned), positions, self.filters)
            self._add(f"{prefix}bias", 0, positions)
            self._add(f"{prefix}weight_u", 0, positions)
            return
        self._add(f"{prefix}weight", int(not turned), positions)
        vector = self.names.shapes.get(f"{prefix}weight_v")
        if vector is not None:
            # v has an entry for every input and every place of the kernel, inputs first.
            each = vector[0] // shape[int(not turned)]
            spread = positions[:, :, None] * each + torch.arange(each, device="cpu")
            self._add(f"{prefix}weight_v", 0, spread.flatten(1))

    def _add(
        self, tensor: str, dim: int, positions: Tensor, kind: list[Slice] | None = None
    ) -> None:
        name, shape = f"{self.network}.{tensor}", self.names.shapes.get(tensor)
        if not shape:
            return
        if int(positions.max()) >= shape[dim]:
            raise _CannotError(
                f"{tensor} has {shape[dim]} places, fewer than its channels need: what comes "
                "between takes a fixed part of them; in a view write -1 or x.shape for a number"
            )
        place = Slice(name, dim, shape[dim], positions)
        had = self.slices.setdefault((name, dim), place)
        if had is not place and not torch.equal(had.positions, positions):
            joined = torch.cat([had.positions, positions], 1)
            if len(set(joined.flatten().tolist())) < joined.numel():
                raise _CannotError(f"{tensor} holds several channels in one place")
            self.slices[name, dim] = replace(place, positions=joined)
        if kind is not None:
            kind.append(place)


def _sets(items: Sequence[Item]) -> list[list[int]]:
    """The root's channels in sets that can only leave whole, ordered by their first one.

    Together are those that share a place of a layer, as behind a Linear -> BatchNorm -> reshape,
    and those that a GroupNorm normalises by each other.
    """
    first = {channel: channel for item in items for channel in sorted(item.positions)}

    def root(channel: int) -> int:
        while first[channel] != channel:
            channel = first[channel]
        return channel

    for channel, other in _pairs(items):
        low, high = sorted((root(channel), root(other)))
        first[high] = low
    found: dict[int, list[int]] = {}
    for channel in sorted(first):
        found.setdefault(root(channel), []).append(channel)
    return list(found.values())


def _pairs(items: Sequence[Item]) -> Iterator[tuple[int, int]]:
    """Channels of which both are in one place of a layer."""
    for item in items:
        if item.is_operation or isinstance(item.module, nn.Parameter):
            continue
        size = 1
        if isinstance(item.module, nn.GroupNorm):
            size = item.module.num_channels // item.module.num_groups
        owner: dict[int, int] = {}
        for channel, places in item.positions.items():
            for place in places:
                yield channel, owner.setdefault(place // size, channel)


def _rows(item: Item, sets: Sequence[Sequence[int]], where: str) -> Tensor:
    """(sets, places of each) in one dimension of a layer."""
    rows = [sorted({p for c in each for p in item.positions.get(c, ())}) for each in sets]
    if not rows[0] or len({len(row) for row in rows}) > 1:
        raise _CannotError(f"{where} does not have it channel by channel")
    return torch.tensor(rows, device="cpu")


def _probed(group: Group, network: str, module: nn.Module, inputs: Inputs) -> Group:
    """The group, with a reason if cutting some of its channels is not zeroing them."""
    if group.reason:
        return group
    kept = torch.ones(group.n, dtype=torch.bool, device="cpu")
    gone = torch.randperm(group.n, generator=torch.Generator().manual_seed(0), device="cpu")[
        : group.n // 2
    ]
    kept[gone] = False
    cut = Cut.of([(group.slices, kept)])
    return replace(group, reason=prove(network, module, cut, inputs, random=True))
