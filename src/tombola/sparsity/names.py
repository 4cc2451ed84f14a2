"""What is a tensor of a network called, whatever wraps it? Plain names, and state by plain name.

A plain name is the one that the bare network would give: ``main.0.weight``. ``DataParallel``, DDP,
``torch.compile`` and ``AveragedModel`` add nothing to it, and the raw tensor under spectral norm
has the name of the weight that is computed from it (its vectors u and v: ``main.0.weight_u``,
``main.0.weight_v``, with either of torch's two implementations). A tensor that is shared has one
name, the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, remove_spectral_norm
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.optim.swa_utils import AveragedModel

from tombola.errors import ConfigError, TicketError

_WRAPPED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Attribute names under which wrappers hold the one network that they wrap."""


def networks_of(given: Any) -> dict[str, nn.Module]:
    """Networks by name, of a dict or a ModuleDict; ConfigError for anything else."""
    if isinstance(given, nn.ModuleDict):
        given = dict(given.items())
    if not isinstance(given, Mapping) or not given:
        what = "an empty dict" if isinstance(given, Mapping) else f"a {type(given).__name__}"
        raise ConfigError(
            f"networks is {what}; give a dict of name to torch.nn.Module, such as "
            '{"generator": G, "discriminator": D}'
        )
    for name, network in given.items():
        if not isinstance(network, nn.Module):
            raise ConfigError(
                f"network {name!r} is a {type(network).__name__}; give a torch.nn.Module"
            )
    return dict(given)


def walk(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """(plain prefix, module) for a network and all below it, parents first, wrappers left out.

    A prefix is empty or ends in a dot; a module used in two places comes twice.
    """
    module = _unwrapped(module)
    yield prefix, module
    for name, child in module._modules.items():
        if child is None or (name == "parametrizations" and parametrize.is_parametrized(module)):
            continue
        yield from walk(child, f"{prefix}{name}.")


def own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(plain name, leaf tensor) for what one module itself holds: parameters, persistent buffers.

    Raw tensors under a parametrization count as the module's own; children do not.
    """
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield _without_orig(module, name), parameter
    yield from _own_buffers(module)
    if parametrize.is_parametrized(module):
        chains = module.parametrizations
        assert isinstance(chains, nn.ModuleDict)
        for name, chain in chains.items():
            yield from _parametrized(name, chain)


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer by plain name, each once.

    The tensors share memory with the network and require no gradient. ConfigError if two tensors
    have one plain name.
    """
    return {name: tensor.detach() for name, tensor in _leaves(module).items()}


def plain_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Every leaf parameter (raw tensors under spectral norm) by plain name, each once."""
    return {name: leaf for name, leaf in _leaves(module).items() if isinstance(leaf, nn.Parameter)}


def load_plain_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a plain-named state into a network, in place; all of it or, on error, nothing.

    TicketError for a missing name, an extra name, a wrong shape or integers for floats.
    """
    own = plain_state(module)
    for name in own:
        if name not in state:
            raise TicketError(
                f"the state has no tensor {name!r}, which the network has; "
                "give a file made from the same network"
            )
    for name, value in state.items():
        if name not in own:
            raise TicketError(
                f"the state has a tensor {name!r}, which the network does not have; "
                "give a file made from the same network"
            )
        have, want = tuple(value.shape), tuple(own[name].shape)
        if have != want:
            raise TicketError(
                f"tensor {name!r} has shape {have}, but the network's has shape {want}; "
                "give a file made from a network of the same size"
            )
        if kind_of(value) != kind_of(own[name]):
            raise TicketError(
                f"tensor {name!r} is {value.dtype}, but the network's is {own[name].dtype}; "
                "give a file made from the same network"
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])


def kind_of(tensor: Tensor) -> str:
    """Whether a tensor holds real, complex or whole numbers (also bits)."""
    return "real" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"


def without_spectral_norm(module: nn.Module) -> None:
    """Put the raw tensors in the place of spectral-normed ones, in place: for a copy of a network.

    Of one module without its children, for either of torch's implementations. Other
    parametrizations stay.
    """
    if parametrize.is_parametrized(module):
        chains = module.parametrizations
        assert isinstance(chains, nn.ModuleDict)
        if all(isinstance(part, _SpectralNorm) for c in chains.values() for part in c.children()):
            raw = {name: chain._parameters["original"] for name, chain in chains.items()}
            # Removing them by torch's function changes the class, which a copy shares with its
            # original; here the copy alone gets another class.
            del module._modules["parametrizations"]
            module.__class__ = type(module).__mro__[1]
            module._parameters.update(raw)
    for hook in [h for h in module._forward_pre_hooks.values() if isinstance(h, SpectralNorm)]:
        weight = getattr(module, f"{hook.name}_orig").detach().clone()
        remove_spectral_norm(module, hook.name)
        setattr(module, hook.name, nn.Parameter(weight))


def _leaves(module: nn.Module) -> dict[str, Tensor]:
    """Leaf tensors by plain name; the second name of a shared tensor is left out."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for prefix, part in walk(module):
        for name, tensor in own_tensors(part):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if prefix + name in found:
                raise ConfigError(
                    f"two tensors of the network have the plain name {prefix + name!r}; "
                    "rename one of them in the network"
                )
            found[prefix + name] = tensor
    return found


def _unwrapped(module: nn.Module) -> nn.Module:
    """The network inside any number of wrappers."""
    while True:
        if isinstance(module, AveragedModel):
            module = module.module
            continue
        children = list(module._modules.items())
        bare = not any(value is not None for value in module._parameters.values())
        bare = bare and not any(value is not None for value in module._buffers.values())
        if not (bare and len(children) == 1 and children[0][0] in _WRAPPED):
            return module
        inner = children[0][1]
        if inner is None:
            return module
        module = inner


def _own_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in module._buffers.items():
        if buffer is not None and name not in module._non_persistent_buffers_set:
            yield name, buffer


def _without_orig(module: nn.Module, name: str) -> str:
    """``weight_orig`` -> ``weight`` where a hook (old spectral norm) computes weight from it."""
    base = name.removesuffix("_orig")
    return base if base != name and base in module.__dict__ else name


def _parametrized(name: str, chain: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The raw tensors of one parametrized tensor, and the state of its parametrizations."""
    for raw, tensor in [*chain._parameters.items(), *_own_buffers(chain)]:
        if tensor is not None:
            yield name if raw == "original" else f"{name}_{raw}", tensor
    for step, part in enumerate(chain.children()):
        number = f"_{step}" if step else ""
        for prefix, inner in walk(part):
            for key, tensor in own_tensors(inner):
                yield f"{name}{number}_{(prefix + key).removeprefix('_')}", tensor
