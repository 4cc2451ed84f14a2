"""What does each channel of a layer reach in a network? Traced by torch-pruning, here alone.

Its answers are not believed: ``channels.py`` has each of them proven.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from tombola.errors import ConfigError
from tombola.sparsity.cutting import Inputs, floating_tensors

NORMS = (_NormBase, nn.GroupNorm)
"""Normalisation layers with a scale a channel (or, without affine, at least statistics of it)."""
_GATES = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
"""Layers that stand for an input in the trace, by its number of dimensions: torch-pruning follows
only what comes out of a layer, and would take what is concatenated to an input for all there is."""
MOST_PLACES, FEWEST_PLACES = 1 << 19, 1 << 15
"""Places that one question to torch-pruning may go through: half as many after each question that
went too far, but no fewer than the second. Where a convolution's weight is computed from the
network's own activations (StyleGAN2's modulation) its lists of places double on every way round,
without end; a linear layer that makes as many pixels as the first is not met."""


class TooFarError(Exception):
    """The channels of a layer reach more places than can be followed."""


class _Meter:
    """How many places the question under way may still go through."""

    def __init__(self) -> None:
        self.most = self.left = MOST_PLACES

    def count(self, places: list[Any]) -> list[Any]:
        """The places, counted; TooFarError if they are too many."""
        self.left -= len(places)
        if self.left < 0:
            self.most = max(self.most // 2, min(self.most, FEWEST_PLACES))
            raise TooFarError
        return places


class _Metered(list[Any]):
    """The index mappings of one dependency, whose places are counted."""

    def __init__(self, mappings: Sequence[Any], meter: _Meter) -> None:
        super().__init__(mappings)
        self._meter = meter

    def __iter__(self) -> Iterator[Any]:
        for mapping in super().__iter__():
            if mapping is None:
                yield None
            else:
                yield lambda places, mapping=mapping: self._meter.count(mapping(places))


class _Gated(nn.Module):
    """A network behind a layer for each of its inputs."""

    def __init__(self, network: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.network = network
        self.gates = nn.ModuleList()
        for x in inputs:
            gate = _GATES.get(x.dim()) if x.is_floating_point() else None
            self.gates.append(gate(x.shape[1], dtype=x.dtype) if gate else nn.Identity())

    def forward(self, *inputs: Tensor) -> Any:
        """The network's answer."""
        return self.network(*(gate(x) for gate, x in zip(self.gates, inputs, strict=True)))


def trace(network: str, bare: nn.Module, inputs: Inputs) -> Any:
    """torch-pruning's graph of a network, its questions metered; ConfigError if there is none."""
    import torch_pruning

    own = next((p.dtype for p in bare.parameters() if p.is_floating_point()), torch.float32)
    try:
        with (
            warnings.catch_warnings(),
            torch.enable_grad(),
            torch.random.fork_rng(devices=[]),
        ):
            warnings.simplefilter("ignore")
            given = tuple(x.detach().cpu() for x in inputs)
            given = tuple(x.to(own) if x.is_floating_point() else x for x in given)
            gated = _Gated(bare, given).eval()
            gated(*given)  # torch-pruning would hide this one's error behind its own
            graph = torch_pruning.DependencyGraph()
            graph.build_dependency(
                gated, example_inputs=given, output_transform=_ends, verbose=False
            )
    except Exception as error:
        text = (str(error).strip() or "no message").splitlines()[0]
        raise ConfigError(
            f"network {network!r} cannot be followed channel by channel{_where(error, bare)} "
            f"({type(error).__name__}: {text}); where forward() has a width as a number, take it "
            "from x.shape; or prune the others, or single weights"
        ) from error
    graph.meter = _Meter()
    for node in graph.module2node.values():
        for dep in node.dependencies:
            dep.index_mapping = _Metered(dep.index_mapping, graph.meter)
    return graph


def _where(error: BaseException, bare: nn.Module) -> str:
    """`` at layer 'main.0'``: the innermost that the error's frames know of; empty if none."""
    names = {id(module): name for name, module in bare.named_modules() if name}
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        for local in (*frame.f_locals.values(),):
            node = type(local).__module__.startswith("torch_pruning.")  # torch-pruning's of a layer
            found = names.get(id(getattr(local, "module", None) if node else local), found)
    return f" at layer {found!r}" if found else ""


def _ends(made: Any) -> list[Tensor]:
    """The outputs behind one more operation, which torch-pruning then knows for an output."""
    return [1 * x for x in floating_tensors(made) if x.requires_grad]


@dataclass(frozen=True)
class Item:
    """One place that a group reaches: a module, by its filters or by what it reads."""

    module: Any
    makes: bool
    """Whether its outputs are meant (filters), else its inputs."""
    positions: dict[int, list[int]]
    """Channel of the root -> positions in this module's dimension."""

    @property
    def places(self) -> int:
        """How many places it has there."""
        return sum(map(len, self.positions.values()))

    @property
    def is_operation(self) -> bool:
        """Whether it is a sum, a reshape or the like, which has nothing to cut."""
        return type(self.module).__module__.startswith("torch_pruning.")

    @property
    def is_output(self) -> bool:
        """Whether it is one of the network's outputs."""
        return self.is_operation and type(self.module).__name__ == "_OutputOp"


def coupled(graph: Any, part: nn.Module) -> list[Item]:
    """What goes with the channels of a layer, counted from the member that has the fewest.

    Behind a concatenation a layer has the channels of several groups, and those of one are meant.
    TooFarError where they reach more places than can be followed.
    """
    items = _items(graph, part, [0])
    if any(item.is_output for item in items):
        # Behind a reshape torch-pruning's time is the square of the channels: a minute for the
        # pixels that a linear layer makes, which cannot be cut anyway.
        return items
    items = _items(graph, part, range(graph.get_out_channels(part)))
    makers = [i for i in items if i.makes and isinstance(i.module, (*NORMS, _ConvNd, nn.Linear))]
    fewest = min(makers, key=lambda item: item.places, default=None)
    if fewest is not None and fewest.places < graph.get_out_channels(part):
        part = fewest.module
        items = _items(graph, part, range(graph.get_out_channels(part)))
    n = graph.get_out_channels(part)
    if any(len(item.positions) < n for item in items if not item.is_operation):
        # Where channels share a place, torch-pruning keeps one of them: each is asked for itself.
        items = _joined([item for each in range(n) for item in _items(graph, part, [each])])
    return items


def _items(graph: Any, root: nn.Module, channels: Sequence[int]) -> list[Item]:
    pruner = graph.get_pruner_of_module(root)
    graph.meter.left = graph.meter.most
    found = []
    for entry in graph.get_pruning_group(root, pruner.prune_out_channels, list(channels)):
        positions: dict[int, list[int]] = {}
        for place, channel in zip(entry.idxs, entry.root_idxs, strict=True):
            positions.setdefault(channel, []).append(place)
        makes = "out_channels" in entry.dep.handler.__name__
        found.append(Item(entry.dep.target.module, makes, positions))
    return found


def _joined(items: Sequence[Item]) -> list[Item]:
    """Items of single channels as one for each module and each side of it."""
    found: dict[tuple[int, bool], Item] = {}
    for item in items:
        had = found.setdefault((id(item.module), item.makes), Item(item.module, item.makes, {}))
        for channel, places in item.positions.items():
            had.positions.setdefault(channel, []).extend(places)
    return list(found.values())
