"""Where are the averaged weights of a network, whatever keeps them? Named like the network's own.

A module of the same structure, ``torch.optim.swa_utils.AveragedModel`` around one, a module that
keeps one as ``ema_model`` (ema-pytorch), or an object with ``shadow_params`` (a list of tensors in
the order of the network's parameters, as several libraries have it).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tombola.errors import ConfigError
from tombola.sparsity.names import plain_parameters, plain_state

Averages = dict[str, Tensor]
"""``network.name`` -> the averaged tensor itself, to be read and written in place."""


def averages_of(ema: Any, networks: Mapping[str, nn.Module]) -> Averages:
    """The tensors behind ``ema``: None, one object, a list, or a dict network -> object.

    One object belongs to the network of its structure. ConfigError if that is none or not one
    alone, for an unknown network, or an object of another structure.
    """
    if ema is None:
        return {}
    if isinstance(ema, Mapping):
        pairs = list(ema.items())
    else:
        several = list(ema) if isinstance(ema, list | tuple) else [ema]
        pairs = [(_network_of(each, networks), each) for each in several]
    found: Averages = {}
    for network, each in pairs:
        if network not in networks:
            raise ConfigError(
                f"ema names network {network!r}; attach has {', '.join(networks)}: name one of them"
            )
        own = _named(each, networks[network])
        if own is None:
            raise ConfigError(
                f"ema of {network!r} is a {type(each).__name__} whose tensors are not the "
                "network's by name and shape; give its averaged copy"
            )
        found |= {f"{network}.{name}": tensor for name, tensor in own.items()}
    return found


def counters_of(ema: Any, averages: Averages) -> list[tuple[Tensor, Tensor]]:
    """What an average keeps besides weights, such as its count of updates, and a copy of it.

    It decides how the next update is weighed, so each training must find it as the first one did.
    """
    several = ema.values() if isinstance(ema, Mapping) else ema
    several = several if isinstance(ema, Mapping | list | tuple) else [ema]
    modules = [each for each in several if isinstance(each, nn.Module)]
    known = {tensor.data_ptr() for tensor in averages.values()}
    buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
    return [(each, each.detach().clone()) for each in buffers if each.data_ptr() not in known]


@torch.no_grad()
def begin(averages: Averages, networks: Mapping[str, nn.Module]) -> None:
    """Let averages begin at the weights that the networks have now, in place."""
    states = {name: plain_state(network) for name, network in networks.items()}
    for key, tensor in averages.items():
        network, _, name = key.partition(".")
        tensor.copy_(states[network][name])


def _network_of(ema: Any, networks: Mapping[str, nn.Module]) -> str:
    fitting = [name for name, network in networks.items() if _named(ema, network) is not None]
    if len(fitting) != 1:
        which = " and ".join(fitting) or f"none of {', '.join(networks)}"
        raise ConfigError(
            f"ema is a {type(ema).__name__} that fits {which}; give a dict of network name to its "
            "averaged copy"
        )
    return fitting[0]


def _named(ema: Any, network: nn.Module) -> dict[str, Tensor] | None:
    """The tensors of an averaged copy by the network's names; None if they do not fit."""
    state = plain_state(network)
    shadow = getattr(ema, "shadow_params", None)
    if isinstance(ema, nn.Module):
        own = plain_state(_model(ema))
    elif isinstance(shadow, list | tuple) and all(isinstance(each, Tensor) for each in shadow):
        names = _in_order(network, len(shadow))
        if len(names) != len(shadow):
            return None
        own = {name: each.detach() for name, each in zip(names, shadow, strict=True)}
        state = {name: state[name] for name in names}
    else:
        return None
    fits = {k: v.shape for k, v in own.items()} == {k: v.shape for k, v in state.items()}
    return own if fits else None


def _model(ema: nn.Module) -> nn.Module:
    """The module that has the averaged weights: ema-pytorch's is within its own."""
    inner = getattr(ema, "ema_model", None)
    return inner if isinstance(inner, nn.Module) else ema


def _in_order(network: nn.Module, count: int) -> list[str]:
    """Plain names in the order of ``parameters()``: of all, or of those that learn."""
    names = {id(leaf): name for name, leaf in plain_parameters(network).items()}
    every = list(network.parameters())
    chosen = every if len(every) == count else [leaf for leaf in every if leaf.requires_grad]
    return [names[id(leaf)] for leaf in chosen]
