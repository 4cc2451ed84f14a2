"""Which channels would be cut now, and has that answer settled? The early-bird rule.

You et al. 2020, "Drawing early-bird tickets": channels are ranked by the scales of their
BatchNorm, a mask is drawn at intervals, and the ticket is found when the newest of five masks is
near to the four before it. Kalibhat et al. 2021 rank the channels of a generative model's networks
in one pool. Nothing is trained or cut here.

A mask set is a boolean CPU tensor (n,) by name ``network.layer``, one entry a channel, True = kept.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tombola.errors import ConfigError
from tombola.sparsity.masks import Masks, as_fraction, count, kept_at
from tombola.sparsity.select import top

Share = str | Decimal | float | Fraction
DELTA = 0.1
"""Masks nearer than this count as the same (You et al. 2020)."""
LOOK_BACK = 5
"""Masks that are compared: the newest with the four before it (there)."""


def removed_count(n: int, compress: Share) -> int:
    """How many of ``n`` channels are removed: n - floor(n (1 - compress) + 1/2), exact.

    ConfigError for a share outside (0, 1) or one that keeps no channel.
    """
    as_fraction(compress, "compress")
    return n - kept_at(n, compress)


def channel_masks(
    scores: Mapping[str, Tensor],
    compress: Share,
    *,
    apart: bool = False,
    floor: int = 1,
    by_position: bool = False,
) -> Masks | None:
    """The channels of the highest scores, in exact number; None while the scores do not decide.

    Scores (n,) by ``network.layer``, any real dtype, of either sign -> masks (n,) of the same
    names. Of all channels together, or of each network's own if ``apart``, ``compress`` are
    removed. Each layer keeps its own best ``floor`` channels, or all if it has no more; the others
    compete for what is left of the exact number. Ties go to the earlier position, but no mask is
    drawn while the lowest score that won the competition equals the highest that lost it, as at
    step 0, when every scale is 1: such a mask would say nothing of the training, and would be the
    same each time. Where the floors take the whole number, those two scores are looked at within
    each layer. With ``apart`` there are masks of all networks or of none. With ``by_position``
    there always are: for a cut that cannot wait.

    ConfigError for a share outside (0, 1), a floor below 1, floors that are more than the number to
    keep, no scores or ones that are no rows of numbers, and a NaN.
    """
    if isinstance(floor, bool) or not isinstance(floor, int) or floor < 1:
        raise ConfigError(f"floor got {floor!r}; it takes a whole number from 1")
    if not scores:
        raise ConfigError("no channels came in; prune a network that has BatchNorm layers")
    for name, value in scores.items():
        if value.ndim != 1 or not len(value):
            raise ConfigError(
                f"the scores of {name!r} have shape {tuple(value.shape)}; "
                "give one row of one score a channel"
            )
    pools = _by_network(scores) if apart else {"all networks": dict(scores)}
    masks: Masks = {}
    for where, pool in pools.items():
        drawn, tied = _drawn(pool, compress, floor, where)
        if tied and not by_position:
            return None
        masks.update(drawn)
    return {name: masks[name] for name in scores}


def pooled_masks(
    scores: Mapping[str, Tensor],
    by_scale: Collection[str],
    compress: Share,
    *,
    apart: bool = False,
    floor: int = 1,
    by_position: bool = False,
) -> Masks | None:
    """Masks as :func:`channel_masks`, of one pool of networks that are ranked by their scales.

    Each of the others, whose scores are norms of filters, is a pool of its own. ``by_scale``: the
    names of the former. None, and errors, as there.
    """
    names = {name.partition(".")[0] for name in scores}
    found: Masks = {}
    for pool in (set(by_scale), *({name} for name in sorted(names - set(by_scale)))):
        own = {name: v for name, v in scores.items() if name.partition(".")[0] in pool}
        if own:
            masks = channel_masks(own, compress, apart=apart, floor=floor, by_position=by_position)
            if masks is None:
                return None
            found |= masks
    return {name: found[name] for name in scores}


def _drawn(
    pool: Mapping[str, Tensor], compress: Share, floor: int, where: str
) -> tuple[Masks, bool]:
    """The masks of one pool, and whether a tie had to be settled by position."""
    n = sum(len(value) for value in pool.values())
    keep = n - removed_count(n, compress)
    floors = {name: min(floor, len(value)) for name, value in pool.items()}
    left = keep - sum(floors.values())
    if left < 0:
        raise ConfigError(
            f"compress {compress} keeps {keep} of {n} channels of {where}, but a floor of {floor} "
            f"in each of {len(pool)} layers takes {keep - left}; compress less or lower the floor"
        )
    masks = {name: top({name: value}, floors[name])[name] for name, value in pool.items()}
    if not left:
        return masks, any(_tied([value], [masks[name]]) for name, value in pool.items())
    rivals = {name: ~mask for name, mask in masks.items()}
    won = top(pool, left, rivals)
    rows = [value.cpu()[rivals[name]] for name, value in pool.items()]
    tied = _tied(rows, [won[name][rivals[name]] for name in pool])
    return {name: mask | won[name] for name, mask in masks.items()}, tied


def _tied(scores: list[Tensor], kept: list[Tensor]) -> bool:
    """Whether the lowest kept score equals the highest removed one; False if none is removed."""
    row, chosen = torch.cat([s.detach().cpu().double() for s in scores]), torch.cat(kept)
    return not bool(chosen.all()) and bool(row[chosen].min() == row[~chosen].max())


def distance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """By network, the share of channels in which two mask sets differ, from 0 to 1.

    The normalised Hamming distance of You et al. 2020, "mask distance". ConfigError if the two sets
    differ in names or shapes.
    """
    return {network: differ / size for network, (differ, size, _, _) in _counts(a, b).items()}


def chance(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """By network, the expected distance of two random masks that keep as many as these, 0 to 1.

    p (1 - q) + q (1 - p), with p and q the shares that the two keep of the network's channels: the
    exact mean for independent uniform masks of these counts. The counts are the network's and not
    each layer's, because how many channels a layer keeps is drawn from the scores too, and so is
    part of what has to settle; by layer, one that is kept or removed whole would leave nothing to
    divide by. So agreement that comes from the layers' counts alone is not taken for chance.
    ConfigError as :func:`distance`.
    """
    return {
        network: _by_chance(size, p, q) / size**2
        for network, (_, size, p, q) in _counts(a, b).items()
    }


def corrected(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> dict[str, float]:
    """By network, distance over chance: 0 = equal, 1 = as far apart as random masks; 0/0 = 0.

    Ours, not the paper's: 1 - kappa of Cohen 1960, "A coefficient of agreement for nominal scales",
    equation 1. ConfigError as :func:`distance`.
    """
    found = {}
    for network, (differ, size, p, q) in _counts(a, b).items():
        expected = _by_chance(size, p, q)
        found[network] = differ * size / expected if expected else 0.0
    return found


def overlap(
    found: Mapping[str, Tensor], final: Mapping[str, Tensor]
) -> dict[str, tuple[float, float]]:
    """By network, (share of the found mask's channels that the final mask keeps, by chance).

    By chance it is the share of all channels that the final mask keeps. A network of which nothing
    was kept has share 0. ConfigError as :func:`distance`.
    """
    shares = {}
    for network, (differ, size, p, q) in _counts(found, final).items():
        both = (p + q - differ) // 2
        shares[network] = (both / p if p else 0.0, q / size)
    return shares


class Watch:
    """The masks drawn in one training at one compress value, and when each network settled.

    A network settles at the first draw whose mask is nearer than ``delta`` to each of the
    ``look_back - 1`` masks before it: by the distance, the paper's rule, or by the corrected
    distance. Settling is sticky: what comes later does not undo it. The ticket is found when the
    last network settles, and the cut of all is by the masks of that draw, so by the newest mask
    also of a network that settled before. Every mask is kept, one byte a channel.
    """

    def __init__(
        self, delta: float = DELTA, corrected: bool = False, look_back: int = LOOK_BACK
    ) -> None:
        if not 0 < delta <= 1:
            raise ConfigError(f"delta got {delta!r}; it takes a number above 0, at most 1")
        if look_back < 2:
            raise ConfigError(f"look_back got {look_back!r}; it takes a whole number from 2")
        self.delta, self.corrected, self.look_back = delta, corrected, look_back
        self.steps: list[int] = []
        """The step of each draw."""
        self.largest: list[dict[str, float] | None] = []
        """Of each draw, by network, the largest distance that the rule compares with delta; None
        before there are ``look_back`` masks."""
        self.settled: dict[str, int | None] = {}
        """By network, the step of the draw at which it settled."""
        self._drawn: list[Masks] = []

    def add(self, step: int, masks: Mapping[str, Tensor]) -> None:
        """Take the mask set drawn at a step; ConfigError for other channels or a step not later."""
        if self.steps and step <= self.steps[-1]:
            raise ConfigError(
                f"a mask of step {step} came after that of step {self.steps[-1]}; add them in order"
            )
        compare = corrected if self.corrected else distance
        newest = {name: mask.clone() for name, mask in masks.items()}
        before = self._drawn[-(self.look_back - 1) :]
        distances = [compare(newest, older) for older in before]
        self.settled = self.settled or dict.fromkeys(_by_network(newest))
        self.steps.append(step)
        self._drawn.append(newest)
        if len(distances) < self.look_back - 1:
            self.largest.append(None)
            return
        worst = {name: max(each[name] for each in distances) for name in self.settled}
        self.largest.append(worst)
        for network, value in worst.items():
            if self.settled[network] is None and value < self.delta:
                self.settled[network] = step

    @property
    def found(self) -> int | None:
        """The step at which the last network settled; None while one has not."""
        steps = [step for step in self.settled.values() if step is not None]
        return max(steps) if steps and len(steps) == len(self.settled) else None

    @property
    def masks(self) -> Masks | None:
        """The mask set of the draw at which the ticket was found: the cut. None before."""
        return None if self.found is None else dict(self._drawn[self.steps.index(self.found)])

    def matrix(self) -> tuple[list[int], dict[str, Tensor]]:
        """(steps, by network the distances of all draws from each other, float64 (draws, draws)).

        Never corrected: the pairwise mask distances that You et al. 2020 draw as a square.
        """
        found = {}
        for network, layers in _by_network(self._drawn[0] if self._drawn else {}).items():
            rows = torch.stack([torch.cat([m[k] for k in layers]) for m in self._drawn]).double()
            differ = rows @ (1 - rows).T
            found[network] = (differ + differ.T) / rows.shape[1]
        return list(self.steps), found

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """(tensors by name, JSON): all that :meth:`load` needs, bit for bit."""
        layers = list(self._drawn[0]) if self._drawn else []
        tensors = {name: torch.stack([m[name] for m in self._drawn]) for name in layers}
        rule = {"delta": self.delta, "corrected": self.corrected, "look_back": self.look_back}
        return tensors, {**rule, "layers": layers, "steps": list(self.steps)}

    @classmethod
    def load(cls, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Watch:
        """The watch whose :meth:`state` this is: the draws are added once more, in order."""
        watch = cls(state["delta"], state["corrected"], state["look_back"])
        for index, step in enumerate(state["steps"]):
            watch.add(step, {name: tensors[name][index] for name in state["layers"]})
        return watch


def _by_network(named: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Network -> its entries by full name; a network's name ends at the first dot."""
    networks: dict[str, dict[str, Tensor]] = {}
    for name, value in named.items():
        networks.setdefault(name.partition(".")[0], {})[name] = value
    return networks


def _counts(
    a: Mapping[str, Tensor], b: Mapping[str, Tensor]
) -> dict[str, tuple[int, int, int, int]]:
    """By network: channels that differ, all channels, kept by a, kept by b."""
    shapes = [{name: tuple(mask.shape) for name, mask in masks.items()} for masks in (a, b)]
    if shapes[0] != shapes[1]:
        first, second = (dict(s) for s in shapes)
        odd = next(k for k in [*first, *second] if first.get(k) != second.get(k))
        raise ConfigError(
            f"the masks of {odd!r} have shapes {first.get(odd)} and {second.get(odd)} "
            "(None = not there); compare masks of the same networks"
        )
    found = {}
    for network, own in _by_network(a).items():
        differ = count({name: mask ^ b[name] for name, mask in own.items()})[0]
        kept_a, size = count(own)
        kept_b, _ = count({name: b[name] for name in own})
        found[network] = (differ, size, kept_a, kept_b)
    return found


def _by_chance(size: int, p: int, q: int) -> int:
    """Differing pairs of one channel of each mask, among size^2 pairs, if p and q are kept."""
    return p * (size - q) + q * (size - p)
