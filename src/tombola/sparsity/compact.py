"""How does a channel ticket become a smaller network? Rank, keep, cut, and prove.

Channels are ranked by the scales of their normalisation layers; in a network that has none, by the
norms of their filters. A channel ticket has one bit a channel on the normalisation layer, and on
the rows of the filters where there is none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tombola.config.runtime import rng
from tombola.errors import ConfigError, TicketError, escape
from tombola.sparsity.channels import Group, channel_groups
from tombola.sparsity.cutting import Cut, Inputs, Slice
from tombola.sparsity.masks import Masks
from tombola.sparsity.names import plain_parameters
from tombola.sparsity.proof import prove

Kept = dict[str, Tensor]
"""Group's name -> bool (n,), True = kept."""
MOST_INPUTS, MOST_DIMENSIONS, MOST_VALUES = 16, 8, 1 << 24
"""What a ticket may say that a network is called with: more is no batch of two to try it on."""


@dataclass(frozen=True)
class Channels:
    """The channels of networks that can be ranked and cut, and those that cannot, with why."""

    groups: tuple[Group, ...]
    left: dict[str, str] = field(default_factory=dict)
    by_scale: frozenset[str] = frozenset()
    """Networks ranked by the scales of their normalisation layers; the others by filter norms."""

    @staticmethod
    def of(
        networks: Mapping[str, nn.Module], inputs: Mapping[str, Inputs], prune: Sequence[str]
    ) -> Channels:
        """The channels of the networks named in ``prune`` (or ``all``).

        ``inputs``: what each network is called with. ConfigError if none of them can be cut, or if
        one of them shares a tensor with another network.
        """
        _check_apart(networks, prune)
        groups: list[Group] = []
        left: dict[str, str] = {}
        by_scale = set()
        for name, network in networks.items():
            if not _asked(name, prune):
                continue
            found = channel_groups(name, network, inputs[name])
            fine = [group for group in found if not group.reason]
            scaled = [group for group in fine if group.scales]
            if scaled:
                by_scale.add(name)
            groups += scaled or fine
            left |= {group.name: group.reason for group in found if group.reason}
            if scaled:
                unscaled = [group.name for group in fine if not group.scales]
                left |= dict.fromkeys(unscaled, "it has no normalisation layer to rank it by")
        if not groups:
            why = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            why = why or "none has a layer that makes channels"
            raise ConfigError(
                f"no channel of {', '.join(prune)} can be cut ({why}); prune another network, or "
                "single weights with --method imp"
            )
        return Channels(tuple(groups), left, frozenset(by_scale))

    def scores(self, networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
        """A score for every channel by group, (n,) on the CPU; higher is kept.

        The mean absolute scale of the normalisation layers that a channel passes (Liu et al. 2017,
        "Network slimming"); without any, the norm of its filters as a share of the layer's mean.
        """
        parameters = _parameters(networks)
        found = {}
        for group in self.groups:
            if group.scales:
                own = [place for place in group.slices if place.tensor in group.scales]
                parts = [parameters[p.tensor].detach().abs().cpu()[p.positions] for p in own]
                found[group.name] = torch.cat(parts, 1).mean(1)
                continue
            squares = torch.zeros(group.n, dtype=torch.float64, device="cpu")
            for place in group.filters:
                weight = parameters[place.tensor].detach().cpu().double()
                rows = weight.movedim(place.dim, 0).flatten(1).square().sum(1)
                squares += rows[place.positions].sum(1)
            norms = squares.sqrt()
            found[group.name] = (norms / norms.mean().clamp_min(1e-30)).float()
        return found

    def sizes(self) -> dict[str, int]:
        """Group -> channels of its ranked layer that go as one: several under GroupNorm."""
        return {group.name: _ranked(group)[0].positions.shape[1] for group in self.groups}

    def cut(self, kept: Mapping[str, Tensor]) -> Cut:
        """The cut that leaves what is kept."""
        return Cut.of([(g.slices, kept[g.name]) for g in self.groups if g.name in kept])

    def masks(self, kept: Mapping[str, Tensor], networks: Mapping[str, nn.Module]) -> Masks:
        """The masks of a channel ticket: a bit a channel on each of its normalisation layers."""
        parameters = _parameters(networks)
        # One cut of all groups: behind a concatenation several of them have a part of one tensor.
        cut = Cut.of([(_ranked(group), kept[group.name]) for group in self.groups])
        names = dict.fromkeys(place.tensor for group in self.groups for place in _ranked(group))
        return {name: cut.mask(name, parameters[name].shape) for name in names}

    def kept(self, masks: Mapping[str, Tensor]) -> Kept:
        """The bits of every group by a channel ticket's masks; TicketError if they do not fit."""
        found: Kept = {}
        for group in self.groups:
            for place in _ranked(group):
                if place.tensor in masks:
                    bits = _bits(masks[place.tensor], place)
                    if not torch.equal(found.setdefault(group.name, bits), bits):
                        raise _divided(place.tensor)
            if group.name in found and not bool(found[group.name].any()):
                raise TicketError(
                    f"the ticket takes away every channel of {escape(group.name)}; give a ticket "
                    "of method early-bird, which keeps at least one of each layer"
                )
        covered = {p.tensor for g in self.groups for p in _ranked(g)}
        strange = [name for name in masks if name not in covered]
        if strange:
            raise TicketError(
                f"the mask of {escape(strange[0])} is on no channels that can be cut from these "
                "networks; give the networks the ticket was made from"
            )
        return found


def _ranked(group: Group) -> Sequence[Slice]:
    """The places by which a group's channels are ranked, and which a ticket masks."""
    return [p for p in group.slices if p.tensor in group.scales] or group.filters


def _bits(mask: Tensor, place: Slice) -> Tensor:
    """Which channels a mask keeps at a place, (n,); TicketError if it does not fit there."""
    if mask.shape[place.dim : place.dim + 1] != (place.size,):
        raise TicketError(
            f"the mask of {escape(place.tensor)} is {list(mask.shape)}, but the network has "
            f"{place.size} channels there; give the networks it was made from"
        )
    rows = mask.movedim(place.dim, 0).flatten(1) if mask.dim() > 1 else mask[:, None]
    each = rows[place.positions].flatten(1)
    if not torch.equal(each.any(1), each.all(1)):
        raise _divided(place.tensor)
    return each.all(1)


def _divided(tensor: str) -> TicketError:
    return TicketError(
        f"the mask of {escape(tensor)} divides channels that go together; give a ticket of method "
        "early-bird for these networks"
    )


def rounded(
    scores: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    channels: int,
    sizes: Mapping[str, int],
) -> Kept:
    """What is kept, with the count of each layer brought to the nearest multiple, at least one.

    ``channels``: what their number becomes a multiple of; ``sizes``: how many of a group's stand or
    fall as one. More channels are the best of those that would go, fewer leave out the worst; a
    layer of fewer channels than the multiple is kept whole. Exact counts over all groups hold no
    longer.
    """
    found: Kept = {}
    for name, mask in kept.items():
        n, count = len(mask), int(mask.sum())
        multiple = channels // math.gcd(channels, sizes[name])
        wanted = min(n, max(multiple, multiple * ((count + multiple // 2) // multiple)))
        # Stable: ties go to the earlier position; what was kept comes before what was not.
        order = torch.argsort(scores[name].double(), descending=True, stable=True)
        first = torch.cat([order[mask[order]], order[~mask[order]]])
        found[name] = torch.zeros(n, dtype=torch.bool, device="cpu")
        found[name][first[:wanted]] = True
    return found


def random_like(kept: Mapping[str, Tensor], seed: int) -> Kept:
    """As many channels of each group, drawn at random."""
    found: Kept = {}
    for name, mask in kept.items():
        order = torch.randperm(
            len(mask), generator=rng(seed, f"random-channels-{name}"), device="cpu"
        )
        found[name] = torch.zeros(len(mask), dtype=torch.bool, device="cpu")
        found[name][order[: int(mask.sum())]] = True
    return found


def check_cut(
    networks: Mapping[str, nn.Module],
    inputs: Mapping[str, Inputs],
    cut: Cut,
    groups: Sequence[Group],
) -> None:
    """ConfigError unless every network that loses something answers as if that were zero.

    On random inputs, with its own weights and with random ones: in float64 differences of at most
    1e-8 of the largest output, in float32, for a network that does not run in float64, of 1e-4.
    ``groups``: those that are cut; named is the first that fails alone.
    """
    for name, network in networks.items():
        own = {k: v for k, v in cut.keep.items() if k.startswith(f"{name}.")}
        if not own:
            continue
        for random in (True, False):
            why = prove(name, network, Cut(own), inputs[name], random=random)
            if why:
                where = ", ".join(sorted({k.rpartition(".")[0] for k in own}))
                for layer, part in _parts(Cut(own), groups):
                    if reason := prove(name, network, part, inputs[name], random=random):
                        where, why = layer, reason
                        break
                raise ConfigError(
                    f"network {name!r} cannot be cut at {where}: {why}; leave it out of --prune"
                )


def _parts(cut: Cut, groups: Sequence[Group]) -> Iterator[tuple[str, Cut]]:
    """Each group that a cut takes something of, and what it takes of that group alone."""
    for group in groups:
        keep: dict[str, dict[int, Tensor]] = {}
        for place in group.slices:
            whole = cut.keep.get(place.tensor, {}).get(place.dim)
            if whole is not None and not bool(whole[place.positions].all()):
                along = keep.setdefault(place.tensor, {})
                own = along.setdefault(
                    place.dim, torch.ones(place.size, dtype=torch.bool, device="cpu")
                )
                own[place.positions] = whole[place.positions]
        if keep:
            yield group.name, Cut(keep)


def cut_of(
    networks: Mapping[str, nn.Module],
    masks: Masks,
    manifest: Mapping[str, Any],
    inputs: Mapping[str, Tensor | Inputs] | None = None,
) -> Cut:
    """What the masks of a channel ticket take out of networks, proven; errors as ``compact``."""
    if manifest.get("granularity") != "channel":
        raise TicketError(
            "the ticket prunes single weights, which leaves every layer its size; compact takes a "
            "ticket of whole channels, from tombola find --method early-bird"
        )
    pruned = sorted({name.partition(".")[0] for name in masks})
    if missing := [name for name in pruned if name not in networks]:
        raise TicketError(
            f"the ticket is of network {escape(missing[0])}, which was not given; "
            f"it was given {', '.join(networks)}"
        )
    asked = inputs_given(networks, pruned, inputs, manifest)
    channels = Channels.of(networks, asked, pruned)
    cut = channels.cut(channels.kept(masks))
    check_cut({name: networks[name] for name in pruned}, asked, cut, channels.groups)
    return cut


def inputs_given(
    networks: Mapping[str, nn.Module],
    pruned: Sequence[str],
    inputs: Mapping[str, Tensor | Inputs] | None,
    manifest: Mapping[str, Any],
) -> dict[str, Inputs]:
    """What each pruned network is called with: as given, else as the ticket says."""
    if inputs is not None and not isinstance(inputs, Mapping):
        raise ConfigError(
            f"inputs is a {type(inputs).__name__}; give a dict with a tensor, or a tuple of them, "
            f"for {', '.join(pruned)}"
        )
    found: dict[str, Inputs] = {}
    for name in pruned:
        one = (inputs or {}).get(name)
        if one is None:
            found[name] = _named(name, manifest.get("inputs"))
            continue
        several = (one,) if isinstance(one, Tensor) else one
        fine = isinstance(several, tuple | list) and several
        if not fine or not all(isinstance(x, Tensor) for x in several):
            raise ConfigError(
                f"inputs of {name!r} is a {type(one).__name__}; give a tensor or a tuple of them"
            )
        found[name] = tuple(several)
    return found


def _named(name: str, named: object) -> Inputs:
    """Zeros of the shapes that a ticket names for a network; two of a batch.

    TicketError for what is no list of shapes, or of far too large ones: nothing is allocated then.
    """
    if named is None or (isinstance(named, Mapping) and name not in named):
        raise ConfigError(
            f"the ticket does not say what network {name!r} is called with; give "
            f"inputs={{{name!r}: a small batch of any values}}"
        )
    shapes = named[name] if isinstance(named, Mapping) else None
    if isinstance(shapes, list) and 1 <= len(shapes) <= MOST_INPUTS:
        sizes = [_size(shape) for shape in shapes]
        if 0 not in sizes and sum(sizes) <= MOST_VALUES:
            return tuple(torch.zeros(2, *shape, device="cpu") for shape in shapes)
    raise TicketError(
        f"the ticket's inputs of {escape(name)} are {escape(shapes)}, which is no list of shapes "
        "of a sensible size; get the file again, or give inputs"
    )


def _size(shape: object) -> int:
    """How many values the shape of an input has, without the batch; 0 for what is no shape."""
    if not isinstance(shape, list) or len(shape) > MOST_DIMENSIONS:
        return 0
    fine = all(type(n) is int and 1 <= n <= MOST_VALUES for n in shape)
    return math.prod(shape) if fine else 0


def _asked(name: str, prune: Sequence[str]) -> bool:
    return "all" in prune or name in prune


def _check_apart(networks: Mapping[str, nn.Module], prune: Sequence[str]) -> None:
    """ConfigError for a network to cut that holds a tensor of another network too."""
    holder: dict[int, str] = {}
    for name, network in networks.items():
        for key, leaf in plain_parameters(network).items():
            other = holder.setdefault(id(leaf), name)
            if other != name and (_asked(name, prune) or _asked(other, prune)):
                raise ConfigError(
                    f"networks {other!r} and {name!r} share {key}, so that neither can be cut "
                    "without the other; prune networks that share nothing"
                )


def _parameters(networks: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{key}": leaf
        for name, network in networks.items()
        for key, leaf in plain_parameters(network).items()
    }
