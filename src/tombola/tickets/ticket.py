"""What is a ticket, how does it begin a training, and how do tensors get into files and back?

A ticket is a mask and the weights and buffers to start from, with its lineage. Files hold no code:
safetensors and JSON (``container.py`` reads and writes the bytes, ``layout.py`` has the rules).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tombola.errors import ConfigError, TicketError, escape
from tombola.sparsity.compact import cut_of
from tombola.sparsity.guard import Guard
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import Masks
from tombola.sparsity.names import (
    kind_of,
    load_plain_state,
    networks_of,
    plain_parameters,
    plain_state,
)
from tombola.store.container import Raw, Source, open_file, write_file
from tombola.store.format import MANIFEST_KEYS, MODEL_FORMAT, TICKET_FORMAT, expect, numel, unsound
from tombola.store.tensors import (
    read_tensor,
    to_raw,
    with_complex,
    without_complex,
)
from tombola.tickets.hub import resolve
from tombola.tickets.mask_file import read_mask

Weights = dict[str, Tensor]
"""``network.name`` -> parameter or buffer, dense, on the CPU."""
Optimizers = Optimizer | Iterable[Optimizer] | Mapping[str, Optimizer]


@dataclass
class Ticket:
    """A mask, the weights and buffers to start from, and where they come from.

    ``masks``: "network.parameter" -> bool, True = kept. ``weights``: every parameter and buffer of
    every network, "network.name" -> dense tensor; the object holds its own copies on the CPU, with
    +0.0 at pruned positions. ``manifest``: the keys of design 3.5, as far as known. TicketError for
    a mask that is not boolean or does not have the shape of its weight.
    """

    masks: Masks
    weights: Weights
    manifest: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.masks = {key: _own_copy(mask) for key, mask in self.masks.items()}
        for key, mask in self.masks.items():
            _check_mask(key, mask, self.weights.get(key))
        self.weights = {
            key: _masked(weight, self.masks.get(key)) for key, weight in self.weights.items()
        }

    def start(self, networks: Mapping[str, nn.Module]) -> None:
        """Load the start weights and buffers into the caller's modules, in place.

        Wrappers and parametrizations are resolved. All of it or nothing: TicketError naming the
        network or tensor that is missing, too many, or of another shape.
        """
        _start(networks, self.weights)
        # Of a parameter that two networks share, the later one's copy was loaded last.
        networks = networks_of(networks)
        state = {f"{n}.{k}": v for n, net in networks.items() for k, v in plain_state(net).items()}
        Hold(networks, self.masks).mask_state(state)

    def held(self, networks: Mapping[str, nn.Module]) -> Masks:
        """The masks of all that must stay zero; of a channel ticket more than its own bits.

        Raises as :func:`tombola.compact` for a channel ticket of other networks.
        """
        if self.manifest.get("granularity") != "channel":
            return self.masks
        return cut_of(networks, self.masks, self.manifest).masks(networks)

    @contextlib.contextmanager
    def enforce(self, networks: Mapping[str, nn.Module], optimizers: Optimizers) -> Iterator[Hold]:
        """Hold the masks inside the ``with``: at once, and after each step of the optimizers.

        Gradients of pruned weights are zero, and so are the weights in every closure and call.
        A channel ticket's channels are zeroed with all that belongs to them.
        Moments that an optimizer already has are zeroed at pruned positions. Hooks are removed at
        the end, also after an exception. TicketError if a mask fits no parameter, ConfigError for
        what is no optimizer, and for a layer in whose product a pruned weight is not zero.
        """
        networks, several = networks_of(networks), _as_list(optimizers)
        masks = self.held(networks)
        hold, guard = Hold(networks, masks), Guard(networks, masks)
        guard.fit(hold)
        guard.apply(hold)
        for optimizer in several:
            hold.mask_optimizer(optimizer)
            guard.watch(optimizer, hold)

        leaves = [p for module in networks.values() for p in plain_parameters(module).values()]
        parts: dict[int, tuple[list[int], Hold]] = {}

        def before_step(optimizer: Optimizer, args: Any, kwargs: Any) -> Any:
            return guard.held(part_of(optimizer), args, kwargs)

        def part_of(optimizer: Optimizer) -> Hold:
            # Nothing that another one steps: a graph through those weights may still be open.
            sizes = [len(group["params"]) for each in several for group in each.param_groups]
            if parts.get(id(optimizer), ([], hold))[0] != sizes:
                others = set().union(*(_ids(o) for o in several if o is not optimizer))
                others -= _ids(optimizer)
                parts[id(optimizer)] = sizes, hold.part(p for p in leaves if id(p) not in others)
            return parts[id(optimizer)][1]

        def after_step(optimizer: Optimizer, *_: Any) -> None:
            guard.apply(part_of(optimizer))

        hooks = [optimizer.register_step_pre_hook(before_step) for optimizer in several]
        hooks += [optimizer.register_step_post_hook(after_step) for optimizer in several]
        try:
            yield hold
        finally:
            guard.close()
            for hook in hooks:
                hook.remove()


@dataclass
class Model:
    """Trained weights and buffers of every network ("network.name" -> dense), and the manifest."""

    weights: Weights
    manifest: dict[str, Any] = field(default_factory=dict)

    def start(self, networks: Mapping[str, nn.Module]) -> None:
        """Load the trained weights into the caller's modules, as ``Ticket.start`` does."""
        _start(networks, self.weights)


def save_ticket(path: str | Path, ticket: Ticket) -> None:
    """Write a ticket, atomically; the manifest's ``shapes`` come from the tensors.

    Keys of the contract that the manifest lacks are written as null, ``sparsity`` as counted. -0.0
    is never stored for a pruned weight: files are made from the mask. TicketError for a ticket that
    could not be read back.
    """
    tensors: dict[str, Raw] = {}
    kept = total = 0
    for key, weight in ticket.weights.items():
        mask = ticket.masks.get(key)
        if mask is None:
            tensors[f"weight.{key}"] = to_raw(weight)
            continue
        _check_mask(key, mask, weight)
        flat = mask.reshape(-1)
        values = weight.reshape(-1)[flat]
        tensors[f"weight.{key}"] = to_raw(values)
        packed = np.packbits(flat.numpy())  # most significant bit first, zero-padded
        tensors[f"mask.{key}"] = Raw("U8", packed.shape, packed.data)
        kept, total = kept + values.numel(), total + flat.numel()
    if missing := [key for key in ticket.masks if key not in ticket.weights]:
        raise TicketError(f"mask {missing[0]!r} has no weight; add {missing[0]!r} to the weights")
    manifest = dict.fromkeys(MANIFEST_KEYS) | {
        "granularity": "weight",
        "sparsity": 1 - kept / total if total else 0.0,
    }
    manifest |= _filled(ticket.manifest, ticket.weights)
    write_file(path, tensors, manifest, format=TICKET_FORMAT)


def load_ticket(path: str | Path) -> Ticket:
    """Read a ticket after checking all of it; TicketError if unsound or not a ticket."""
    with open_file(path) as source:
        expect(source.header, TICKET_FORMAT)
        return _ticket(source)


def save_model(
    path: str | Path, weights: Weights, manifest: Mapping[str, Any], masks: Masks | None = None
) -> None:
    """Write trained weights and buffers, atomically, with the masks applied where given.

    Zeros are written as +0.0 throughout. ``shapes`` comes from the tensors; ``networks`` and
    ``created_with`` are added if they are missing.
    """
    for key, mask in (masks or {}).items():
        _check_mask(key, mask, weights.get(key))
    tensors = {}
    for key, weight in weights.items():
        value = _masked(weight, (masks or {}).get(key))
        # Training leaves mask * weight = -0.0 at pruned positions: no file shows that.
        tensors[f"weight.{key}"] = to_raw(value + 0.0 if value.is_floating_point() else value)
    write_file(path, tensors, _filled(manifest, weights), format=MODEL_FORMAT)


def load_model_file(path: str | Path) -> tuple[Weights, dict[str, Any]]:
    """Read (weights, manifest) of a model file; TicketError if unsound, or naming what to take."""
    with open_file(path) as source:
        expect(source.header, MODEL_FORMAT)
        model = _model(source)
    return model.weights, model.manifest


def load(path: str | Path) -> Ticket | Model:
    """Read a ticket or a model file, whichever it is; TicketError if unsound or neither.

    ``path``: a file on this disk, or ``hub:user/name[@revision][/file]`` (extra ``hub``).
    """
    with open_file(resolve(path)) as source:
        match source.header.format:
            case "tombola.ticket/1":
                return _ticket(source)
            case "tombola.model/1":
                return _model(source)
            case _:
                raise unsound(
                    source.header.path,
                    f"a {source.header.format} file of a run under way",
                    "give a ticket or model file",
                )


def _own_copy(tensor: Tensor) -> Tensor:
    """A copy on the CPU, C-contiguous, that shares nothing and needs no gradient."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def _masked(weight: Tensor, mask: Tensor | None) -> Tensor:
    """A copy of a weight with +0.0 at pruned positions; NaN and -0.0 there do not survive."""
    own = _own_copy(weight)
    return own if mask is None else own.masked_fill_(~mask.to("cpu"), 0.0)


def _check_mask(key: str, mask: Tensor, weight: Tensor | None) -> None:
    if weight is None:
        raise TicketError(f"mask {escape(key)!r} has no weight; add {escape(key)!r} to the weights")
    if mask.dtype != torch.bool or mask.shape != weight.shape:
        raise TicketError(
            f"mask {escape(key)!r} is {mask.dtype} {list(mask.shape)}; its weight needs a mask of "
            f"torch.bool {list(weight.shape)}"
        )


def _as_list(optimizers: Any) -> list[Optimizer]:
    if isinstance(optimizers, Optimizer):
        return [optimizers]
    several = optimizers.values() if isinstance(optimizers, Mapping) else optimizers
    several = list(several) if isinstance(several, Iterable) else [several]
    for optimizer in several:
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"enforce got a {type(optimizer).__name__} as optimizer; "
                "give one torch.optim.Optimizer, or a list or dict of them"
            )
    return several


def _ids(optimizer: Optimizer) -> set[int]:
    """Identities of the parameters that an optimizer steps."""
    return {id(leaf) for group in optimizer.param_groups for leaf in group["params"]}


def _start(networks: Mapping[str, nn.Module], weights: Weights) -> None:
    """Check every tensor of every network first, then copy, so that nothing is half loaded."""
    networks = networks_of(networks)
    have = sorted({key.partition(".")[0] for key in weights})
    if missing := [name for name in have if name not in networks]:
        raise TicketError(
            f"network {escape(missing[0])!r} is missing; the file has {escape(', '.join(have))}, "
            "and all of them must be given"
        )
    states = {name: plain_state(module) for name, module in networks.items()}
    for name, state in states.items():
        if state and name not in have:
            raise TicketError(
                f"network {name!r} is not in the file, which has {escape(', '.join(have))}; "
                "give only those"
            )
        _check_fit(name, state, weights)
    for name, module in networks.items():
        load_plain_state(module, {key: weights[f"{name}.{key}"] for key in states[name]})


def _check_fit(network: str, state: Mapping[str, Tensor], weights: Weights) -> None:
    """The file's tensors of one network against the network's own, by name, shape and kind."""
    stored = {key for key in weights if key.partition(".")[0] == network}
    own = {f"{network}.{name}": tensor for name, tensor in state.items()}
    for key in [*own, *sorted(stored)]:
        if key not in stored:
            raise TicketError(f"tensor {key!r} is missing in the file; give the network it is for")
        if key not in own:
            raise TicketError(
                f"tensor {escape(key)!r} of the file is not in the network; "
                "give the network it is for"
            )
        if own[key].shape != weights[key].shape:
            raise TicketError(
                f"tensor {key!r} is {list(weights[key].shape)} in the file, but "
                f"{list(own[key].shape)} in the network; give a network of that size"
            )
        if kind_of(own[key]) != kind_of(weights[key]):
            raise TicketError(
                f"tensor {key!r} is {weights[key].dtype} in the file, but {own[key].dtype} in the "
                "network; give the network it is for"
            )


def _filled(manifest: Mapping[str, Any], weights: Weights) -> dict[str, Any]:
    """The manifest with what the tensors say: shapes, and networks and versions if missing."""
    return {
        "networks": list(dict.fromkeys(key.partition(".")[0] for key in weights)),
        "created_with": _versions(),
        **with_complex(manifest, weights),
        "shapes": {key: list(weight.shape) for key, weight in weights.items()},
    }


def _versions() -> dict[str, str]:
    try:
        own = metadata.version("tombola")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return {"tombola": own, "torch": str(torch.__version__)}


def _ticket(source: Source) -> Ticket:
    source.check()
    header = source.header
    masks: Masks = {}
    weights: Weights = {}
    for key, shape in header.shapes.items():
        stored = read_tensor(source, f"weight.{key}", key)
        if f"mask.{key}" in header.entries:
            masks[key] = read_mask(source, key)
            dense = torch.zeros(numel(shape), dtype=stored.dtype, device="cpu")
            dense[masks[key].reshape(-1)] = stored
            stored = dense.reshape(shape)
        weights[key] = stored
    return Ticket(masks, weights, without_complex(header.manifest))


def _model(source: Source) -> Model:
    source.check()
    keys = source.header.shapes
    return Model(
        {key: read_tensor(source, f"weight.{key}", key) for key in keys},
        without_complex(source.header.manifest),
    )
