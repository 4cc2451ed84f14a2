"""What of a ticket fits the networks of another task? Matched by role, then by shape and order.

A decoder is a generator by another name, and an encoder is a discriminator's; a network of the same
role is matched with itself. Two networks are compared block by block: a block is a layer with
weights of two or more axes, and what follows it up to the next (its normalisation). Blocks match if
their weights have the same shapes, in order: the longest such sequence. In a matched block every
tensor with a namesake of its shape goes over; whatever has none stays as the target was drawn.

Images may be grey here and colour there. Then the first block of an encoder or discriminator, or
the last of a decoder or generator, differs in that one axis, and is resized so that the network
does what the data's own adaptation does (colour averaged to grey, grey repeated to colour):

- grey to colour: what is made is repeated; what is read is repeated and divided by three.
- colour to grey: what is made is the mean of the colours; what is read is their sum. A weight is
  kept if it is kept in any of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from tombola.errors import ConfigError
from tombola.sparsity.masks import Masks
from tombola.tickets.ticket import Ticket, Weights

COUNTERPART = {
    "decoder": "generator",
    "generator": "decoder",
    "encoder": "discriminator",
    "discriminator": "encoder",
}
GENERATING = ("decoder", "generator")
COLOURS = 3
_MORE, _LESS = "no such layer in the source", "no such layer in the target"
Shapes = Mapping[str, Sequence[int]]
"""``main.0.weight`` -> its shape, in the order of the network."""


@dataclass(frozen=True, kw_only=True)
class Sketch:
    """What is known of a task's networks before any is made: roles and shapes, by network."""

    task: str
    roles: Mapping[str, str]
    shapes: Mapping[str, Shapes]
    data: str = ""
    """Name of the images, for people."""


@dataclass(frozen=True)
class LayerMatch:
    """What became of one layer: a line of the report."""

    target: str
    """``generator.main.0``; empty for a layer that only the source has."""
    source: str
    state: str
    """matched, resized or skipped."""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Which tensors of one network go into which of another, and how."""

    source: str
    """Name of the source's network."""
    target: str
    layers: tuple[LayerMatch, ...]
    tensors: Mapping[str, tuple[str, str]]
    """``generator.main.0.weight`` -> (``decoder.main.0.weight``, copy, repeat, share, mean, sum)"""

    def count(self, state: str) -> int:
        """How many layers are matched, resized or skipped."""
        return sum(layer.state == state for layer in self.layers)


@dataclass(frozen=True)
class _Block:
    """A layer with weights and what follows it, each as name -> {tensor -> shape}."""

    layers: Mapping[str, Mapping[str, tuple[int, ...]]]

    @property
    def head(self) -> str:
        return next(iter(self.layers))

    @property
    def key(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        tensors = self.layers[self.head]
        return tuple((name, shape) for name, shape in sorted(tensors.items()) if len(shape) > 1)


def match(source: Sketch, target: Sketch, network: str | None = None) -> Matching:
    """What goes from one task's network into another's.

    ``network``: the source's; by default its decoder or generator, else whichever has a
    counterpart. ConfigError if there is no such network, no counterpart, or no layer that fits.
    """
    partners = {
        name: other
        for name, role in source.roles.items()
        for other, its_role in target.roles.items()
        if its_role in (COUNTERPART.get(role), role)
    }
    if network is not None and network not in source.roles:
        raise ConfigError(
            f"task {source.task} has no network {network!r} to transfer; "
            f"it has: {', '.join(source.roles)}"
        )
    able = [name for name in partners if network in (None, name)]
    able.sort(key=lambda name: source.roles[name] not in GENERATING)
    if not able:
        raise ConfigError(
            f"nothing of {source.task} ({_named_roles(source, network)}) has its counterpart in "
            f"{target.task} ({_named_roles(target)}); a decoder goes with a generator, an encoder "
            "with a discriminator"
        )
    found = matching(source, target, able[0], partners[able[0]])
    shapes = target.shapes[found.target]
    if not any(len(shapes[name.partition(".")[2]]) > 1 for name in found.tensors):
        why = next((layer.note for layer in found.layers if layer.note), "")
        raise ConfigError(
            f"no layer of {source.task}'s {found.source} fits {target.task}'s {found.target} "
            f"({why}); give both the same size, such as --preset shared for vae and dcgan"
        )
    return found


def matching(source: Sketch, target: Sketch, network: str, other: str) -> Matching:
    """The layers of two networks beside each other; all of them may be skipped."""
    mine, theirs = _blocks(source, network), _blocks(target, other)
    makes = target.roles[other] in GENERATING
    edge = theirs[-1 if makes else 0]
    layers: list[LayerMatch] = []
    tensors: dict[str, tuple[str, str]] = {}
    for ours, block in _aligned(mine, theirs):
        lines, ways = _compared(ours, block, makes if block is edge else None)
        layers += lines
        tensors |= ways
    return Matching(source=network, target=other, layers=tuple(layers), tensors=tensors)


def lines(found: Matching, source: str, target: str) -> list[str]:
    """The report of a matching as text: a heading and a line a layer."""
    counts = ", ".join(f"{found.count(state)} {state}" for state in ("matched", "resized",
                                                                     "skipped"))  # fmt: skip
    text = [f"transfer {source}.{found.source} -> {target}.{found.target}: {counts}"]
    wide = max(len(layer.target) for layer in found.layers)
    far = max(len(layer.source) for layer in found.layers)
    for layer in found.layers:
        names = f"{layer.target or '-':<{wide}} <- {layer.source or '-':<{far}}"
        text.append(f"  {names}  {layer.state:<7}  {layer.note}".rstrip())
    return text


def carried(ticket: Ticket, start: Weights, tensors: Mapping[str, Sequence[str]]) -> Ticket:
    """A ticket in another task's networks: its masks and weights where they match.

    ``start``: the target's own start weights and buffers, which all others keep, unmasked.
    ``tensors``: as :class:`Matching` has them.
    """
    masks: Masks = {}
    for name, (source, how) in tensors.items():
        if source in ticket.masks:
            masks[name] = _resized_mask(ticket.masks[source], how, start[name].shape)
    return Ticket(masks, grafted(ticket.weights, start, tensors))


def grafted(weights: Weights, start: Weights, tensors: Mapping[str, Sequence[str]]) -> Weights:
    """The target's start weights and buffers with the source's in their place where they match."""
    made = dict(start)
    for name, (source, how) in tensors.items():
        made[name] = _resized(weights[source], how, start[name].shape).to(start[name].dtype)
    return made


def _blocks(sketch: Sketch, network: str) -> list[_Block]:
    """The blocks of a network, in order; what comes before any weights is a block of its own."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in sketch.shapes[network].items():
        layer, _, tensor = f"{network}.{name}".rpartition(".")
        layers.setdefault(layer, {})[tensor] = tuple(shape)
    blocks: list[dict[str, dict[str, tuple[int, ...]]]] = []
    for layer, tensors in layers.items():
        if not blocks or any(len(shape) > 1 for shape in tensors.values()):
            blocks.append({})
        blocks[-1][layer] = tensors
    return [_Block(block) for block in blocks]


def _aligned(
    mine: Sequence[_Block], theirs: Sequence[_Block]
) -> Iterator[tuple[_Block | None, _Block | None]]:
    """Blocks of source and target beside each other, in the target's order.

    Those of the longest common sequence of keys are pairs; between two of them the others are
    paired in order, first with first.
    """
    n, m = len(mine), len(theirs)
    best = [[0] * (m + 1) for _ in range(n + 1)]
    for i, j in itertools.product(reversed(range(n)), reversed(range(m))):
        same = mine[i].key == theirs[j].key
        best[i][j] = best[i + 1][j + 1] + 1 if same else max(best[i + 1][j], best[i][j + 1])
    i = j = 0
    left: tuple[list[_Block], list[_Block]] = ([], [])
    while i < n and j < m:
        if mine[i].key == theirs[j].key:
            yield from itertools.zip_longest(*left)
            left = ([], [])
            yield mine[i], theirs[j]
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            left[0].append(mine[i])
            i += 1
        else:
            left[1].append(theirs[j])
            j += 1
    yield from itertools.zip_longest([*left[0], *mine[i:]], [*left[1], *theirs[j:]])


def _compared(
    ours: _Block | None, block: _Block | None, makes: bool | None
) -> tuple[list[LayerMatch], dict[str, tuple[str, str]]]:
    """What goes from a block to the one beside it: lines of the report, and ways of tensors.

    ``makes``: whether the block makes the colours of images (True) or reads them (False).
    """
    if ours is None or block is None:
        alone = [LayerMatch("", name, "skipped", _LESS) for name in (ours.layers if ours else ())]
        more = [LayerMatch(name, "", "skipped", _MORE) for name in (block.layers if block else ())]
        return alone + more, {}
    if ours.key != block.key and (makes is None or not _recoloured(ours, block)):
        note = f"{_shown(ours.key)} in the source, {_shown(block.key)} in the target"
        return [LayerMatch(block.head, ours.head, "skipped", note)], {}
    lines: list[LayerMatch] = []
    ways: dict[str, tuple[str, str]] = {}
    rest = dict(ours.layers)
    for name, tensors in block.layers.items():
        partner = ours.head if name == block.head else _same(rest, tensors)
        if partner is None:
            lines.append(LayerMatch(name, "", "skipped", _MORE))
            continue
        theirs = rest.pop(partner)
        found = {key: _way(theirs.get(key), shape, makes) for key, shape in tensors.items()}
        ways |= {
            f"{name}.{key}": (f"{partner}.{key}", how)
            for key, how in found.items()
            if how is not None
        }
        own = [key for key, how in found.items() if how is None]
        notes = [_shown(block.key)] if name == block.head else []
        notes += [f"{', '.join(own)} as drawn: the source has none"] if own else []
        state = "resized" if {*found.values()} - {None, "copy"} else "matched"
        lines.append(LayerMatch(name, partner, state, "; ".join(notes)))
    return lines + [LayerMatch("", name, "skipped", _LESS) for name in rest], ways


def _same(
    rest: Mapping[str, Mapping[str, tuple[int, ...]]], tensors: Mapping[str, tuple[int, ...]]
) -> str | None:
    """The first of the layers that has the same tensors of the same shapes."""
    return next((name for name, others in rest.items() if dict(others) == dict(tensors)), None)


def _recoloured(ours: _Block, block: _Block) -> bool:
    """Whether two blocks' weights differ in nothing but one axis of one against three."""
    here, there = dict(block.key), dict(ours.key)
    return here.keys() == there.keys() and all(
        there[name] == shape or _differing(there[name], shape) is not None
        for name, shape in here.items()
    )


def _differing(a: Sequence[int], b: Sequence[int]) -> int | None:
    """The one axis in which two shapes differ, if they are of one colour and of three there."""
    if len(a) != len(b):
        return None
    axes = [axis for axis, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
    one = len(axes) == 1 and {a[axes[0]], b[axes[0]]} == {1, COLOURS}
    return axes[0] if one else None


def _way(there: Sequence[int] | None, here: Sequence[int], makes: bool | None) -> str | None:
    """How a tensor of one shape goes into one of another; None where it does not."""
    if there is None:
        return None
    if tuple(there) == tuple(here):
        return "copy"
    axis = _differing(there, here)
    if axis is None or makes is None:
        return None
    if here[axis] > there[axis]:
        return "repeat" if makes else "share"
    return "mean" if makes else "sum"


def _resized(tensor: Tensor, how: str, shape: Sequence[int]) -> Tensor:
    """A tensor as it goes over; of a shape that differs in one axis unless it is copied."""
    if how == "copy":
        return tensor
    axis = _differing(tensor.shape, shape)
    assert axis is not None
    if how in ("repeat", "share"):
        again = tensor.repeat_interleave(COLOURS, axis)
        return again / COLOURS if how == "share" else again
    return tensor.mean(axis, keepdim=True) if how == "mean" else tensor.sum(axis, keepdim=True)


def _resized_mask(mask: Tensor, how: str, shape: Sequence[int]) -> Tensor:
    if how in ("mean", "sum"):
        axis = _differing(mask.shape, shape)
        assert axis is not None
        return mask.any(axis, keepdim=True)
    return _resized(mask, "repeat" if how == "share" else how, shape)


def _shown(key: Sequence[tuple[str, Sequence[int]]]) -> str:
    """Shapes for people: ``64x128x4x4``."""
    return ", ".join("x".join(map(str, shape)) for _, shape in key) or "no weights"


def _named_roles(sketch: Sketch, network: str | None = None) -> str:
    names = sketch.roles if network is None else (network,)
    return ", ".join(names)
