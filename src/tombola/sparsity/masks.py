"""Which weights can be pruned, how many are kept at a level, and what can be asked of a mask?

A mask is a boolean CPU tensor by name ``network.parameter``; True = kept. Counts are exact: they
are computed with fractions, never with floats, and never from the previous count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from tombola.config.runtime import rng
from tombola.errors import ConfigError, unknown
from tombola.sparsity.effective import check_layers, masked_tensor
from tombola.sparsity.names import plain_parameters, walk

Masks = dict[str, Tensor]
"""``network.parameter`` -> bool CPU tensor of the parameter's shape."""

MAX_DECIMALS = 20
"""Decimal places that a rate may have; more would only cost time."""
MAX_LEVEL = 1000
"""Highest level; the numbers grow by the decimals of the rate with each level."""


def prunable(
    networks: Mapping[str, nn.Module],
    prune: Sequence[str] = ("all",),
    exclude: Sequence[str] = (),
) -> dict[str, nn.Parameter]:
    """The prunable weights of the pruned networks by ``network.parameter``, networks in order.

    Prunable are the weights of convolution, transposed convolution and linear layers, first and
    last included; under spectral norm the raw tensor, under weight norm the direction. A weight
    that is shared counts once.
    ``prune``: network names, or ``all``. ``exclude``: ``first``, ``last`` (the first and last
    prunable layer of each network) or names ``network.parameter``. ConfigError for unknown names,
    for a network named in ``prune`` that has no prunable weight, and if nothing is left.
    """
    everything = "all" in prune
    for name in prune:
        if name != "all" and name not in networks:
            raise unknown("network", name, networks, "or all")
    check_real(networks)
    layers = {
        network: _layer_weights(network, module)
        for network, module in networks.items()
        if everything or network in prune
    }
    for network, weights in layers.items():
        if not weights and not everything:
            raise ConfigError(
                f"network {network!r} has no convolution or linear layer to prune; "
                "prune another network"
            )
    excluded = _excluded(layers, exclude)
    left = [
        {name: each for name, each in weights.items() if _identity(each) not in excluded}
        for weights in layers.values()
    ]
    check_layers({name: each for weights in left for name, each in weights.items()})
    found: dict[str, nn.Parameter] = {}
    for network, weights in zip(layers, left, strict=True):
        # By the one name that its state has: that of whatever module holds it first.
        own = {id(leaf): name for name, leaf in plain_parameters(networks[network]).items()}
        for _, weight in weights.values():
            assert weight is not None
            if id(weight) not in excluded:
                found[f"{network}.{own[id(weight)]}"] = weight
                excluded.add(id(weight))
    if not found:
        raise ConfigError(
            f"no weight is left to prune (prune={','.join(prune)}, exclude={','.join(exclude)}); "
            "exclude less or prune another network"
        )
    return found


def check_real(networks: Mapping[str, nn.Module]) -> None:
    """ConfigError that names a complex parameter: masks, averages and ranks are of real ones."""
    for network, module in networks.items():
        for name, leaf in plain_parameters(module).items():
            if leaf.is_complex():
                raise ConfigError(
                    f"'{network}.{name}' is a complex parameter, and those cannot be pruned, "
                    "averaged or kept; hold it as pairs of real numbers (torch.view_as_real), or "
                    "as a buffer if it does not learn"
                )


def as_fraction(value: object, noun: str = "rate") -> Fraction:
    """A rate or sparsity strictly between 0 and 1 as an exact fraction; ConfigError otherwise.

    Takes text (``"0.2"``), Decimal, Fraction, or a float, which stands for the decimal it prints.
    """
    problem = ConfigError(
        f"{noun} got {value!r}; it takes a decimal number between 0 and 1, both excluded, like 0.2"
    )
    if isinstance(value, Fraction):
        number = value
    else:
        if isinstance(value, bool) or not isinstance(value, str | Decimal | float | int):
            raise problem
        try:
            decimal = Decimal(str(value))
        except InvalidOperation:
            raise problem from None
        if not decimal.is_finite() or not 0 < decimal < 1:
            raise problem
        exponent = decimal.as_tuple().exponent
        if not isinstance(exponent, int) or exponent < -MAX_DECIMALS:
            raise ConfigError(
                f"{noun} got {value!r}; it takes at most {MAX_DECIMALS} decimal places"
            )
        number = Fraction(decimal)
    if not 0 < number < 1:
        raise problem
    return number


def kept_count(n: int, rate: str | Decimal | float | Fraction, level: int) -> int:
    """How many of ``n`` weights are kept after ``level`` rounds: floor(n (1 - rate)^level + 1/2).

    Exact. Level 0 keeps all. ConfigError for a rate outside (0, 1), a level below 0, or a level
    that keeps no weight, naming the last one that does.
    """
    kept = 1 - as_fraction(rate)
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= MAX_LEVEL:
        raise ConfigError(f"level got {level!r}; it takes a whole number from 0 to {MAX_LEVEL}")
    _check_pool(n)
    count = _rounded(n * kept**level)
    if count < 1:
        last, gone = 0, level
        while gone - last > 1:
            middle = (last + gone) // 2
            if _rounded(n * kept**middle) < 1:
                gone = middle
            else:
                last = middle
        raise ConfigError(
            f"level {level} at rate {rate} keeps none of {n} weights; "
            f"level {last} is the last that keeps one: ask for at most {last} rounds"
        )
    return count


def kept_at(n: int, sparsity: str | Decimal | float | Fraction) -> int:
    """How many of ``n`` weights are kept at a sparsity: floor(n (1 - sparsity) + 1/2), exact.

    ConfigError for a sparsity outside (0, 1) or one that keeps no weight.
    """
    kept = 1 - as_fraction(sparsity, "sparsity")
    _check_pool(n)
    count = _rounded(n * kept)
    if count < 1:
        raise ConfigError(
            f"sparsity {sparsity} keeps none of {n} weights; ask for a lower sparsity"
        )
    return count


def ones(params: Mapping[str, Tensor]) -> Masks:
    """Masks that keep everything."""
    return {
        name: torch.ones(value.shape, dtype=torch.bool, device="cpu")
        for name, value in params.items()
    }


def count(masks: Mapping[str, Tensor]) -> tuple[int, int]:
    """(kept, total) over all masks."""
    kept = sum(int(torch.count_nonzero(mask)) for mask in masks.values())
    return kept, sum(mask.numel() for mask in masks.values())


def sparsity(masks: Mapping[str, Tensor]) -> float:
    """1 - kept / prunable over the masked parameters, in [0, 1]; 0 without masks."""
    kept, total = count(masks)
    return (total - kept) / total if total else 0.0


def sparsity_all(networks: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> float:
    """1 - kept parameters / all parameters of all networks, in [0, 1]; buffers never count.

    A parameter that is shared, within a network or between two, counts once.
    """
    sizes = {
        id(leaf): leaf.numel()
        for module in networks.values()
        for leaf in plain_parameters(module).values()
    }
    total = sum(sizes.values())
    kept, masked = count(masks)
    return (masked - kept) / total if total else 0.0


def nested(inner: Mapping[str, Tensor], outer: Mapping[str, Tensor]) -> bool:
    """Whether two masks have the same names and shapes and ``outer`` keeps all that inner keeps."""
    return inner.keys() == outer.keys() and all(
        mask.shape == outer[name].shape and not bool((mask & ~outer[name]).any())
        for name, mask in inner.items()
    )


def collapsed(masks: Mapping[str, Tensor]) -> list[str]:
    """Names of the layers that have no weight left."""
    return [name for name, mask in masks.items() if not bool(mask.any())]


def shuffle(masks: Mapping[str, Tensor], seed: int) -> Masks:
    """Each mask permuted within its tensor: the same count per layer at random positions."""
    shuffled: Masks = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=rng(seed, f"shuffle-{name}"), device="cpu")
        shuffled[name] = mask.reshape(-1)[order].reshape(mask.shape)
    return shuffled


def erk(shapes: Mapping[str, Sequence[int]], keep: int, seed: int) -> Masks:
    """Random masks with Erdos-Renyi-kernel layer budgets that sum exactly to ``keep``.

    Shapes by name -> masks. A layer's density is proportional to (sum of its dimensions) /
    (product of its dimensions) and at most 1 (Evci et al., "Rigging the Lottery", 2020, section
    3). Fractions of a weight go to the largest remainders, ties by position. ConfigError if
    ``keep`` is not from 1 to the number of weights.
    """
    masks: Masks = {}
    for name, budget in erk_budgets(shapes, keep).items():
        size = math.prod(shapes[name])
        mask = torch.zeros(size, dtype=torch.bool, device="cpu")
        mask[torch.randperm(size, generator=rng(seed, f"erk-{name}"), device="cpu")[:budget]] = True
        masks[name] = mask.reshape(tuple(shapes[name]))
    return masks


def erk_budgets(shapes: Mapping[str, Sequence[int]], keep: int) -> dict[str, int]:
    """Kept weights per layer of :func:`erk`; ConfigError as there."""
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    if not 1 <= keep <= sum(sizes.values()):
        raise ConfigError(
            f"cannot keep {keep} of {sum(sizes.values())} weights; "
            f"keep from 1 to {sum(sizes.values())}"
        )
    shares = {name: sum(shape) for name, shape in shapes.items()}
    open_layers = list(shapes)
    left = keep
    while True:
        # A layer whose share exceeds its size is kept whole; the rest is shared out again.
        scale = Fraction(left, sum(shares[name] for name in open_layers))
        full = [name for name in open_layers if scale * shares[name] > sizes[name]]
        if not full:
            break
        left -= sum(sizes[name] for name in full)
        open_layers = [name for name in open_layers if name not in full]
    exact = {name: scale * shares[name] for name in open_layers}
    budgets = {name: int(exact.get(name, sizes[name])) for name in shapes}
    by_remainder = sorted(open_layers, key=lambda name: budgets[name] - exact[name])
    for name in by_remainder[: keep - sum(budgets.values())]:
        budgets[name] += 1
    return budgets


def _rounded(value: Fraction) -> int:
    return math.floor(value + Fraction(1, 2))


def _check_pool(n: int) -> None:
    if n < 1:
        raise ConfigError(f"there are {n} prunable weights; prune a network that has some")


Layers = dict[str, tuple[nn.Module, nn.Parameter | None]]
"""``network.layer.weight`` -> the layer and the leaf that is masked, if there is one."""


def _layer_weights(network: str, module: nn.Module) -> Layers:
    """The layers of one network that have a weight, in module order; a shared one in each place."""
    weights: Layers = {}
    for prefix, part in walk(module):
        if not isinstance(part, _ConvNd | nn.Linear):
            continue
        leaf = masked_tensor(part)
        name = f"{network}.{prefix}weight"
        if isinstance(leaf, UninitializedParameter):
            raise ConfigError(f"{name!r} has no shape yet; run the network once, then prune it")
        weights[name] = part, leaf if isinstance(leaf, nn.Parameter) else None
    return weights


def _identity(weight: tuple[nn.Module, nn.Parameter | None]) -> int:
    """Of the leaf, which two layers may share; of the layer where it has none."""
    layer, leaf = weight
    return id(layer if leaf is None else leaf)


def _excluded(layers: Mapping[str, Layers], exclude: Sequence[str]) -> set[int]:
    """Identities of what is excluded, under whatever name."""
    by_name = {name: weight for weights in layers.values() for name, weight in weights.items()}
    excluded: set[int] = set()
    for word in exclude:
        if word in ("first", "last"):
            end = 0 if word == "first" else -1
            excluded.update(
                _identity(list(weights.values())[end]) for weights in layers.values() if weights
            )
        elif word in by_name:
            excluded.add(_identity(by_name[word]))
        else:
            raise unknown("prunable parameter", word, by_name, "or first, last")
    return excluded
