"""Which weights matter before any training? SNIP, GraSP and SynFlow, and random as their measure.

The first two look at the loss of the turn in which a network learns, each network at its own;
SynFlow at the network alone. Scores are higher for what is kept. No layer is left without a weight.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tombola.errors import ConfigError
from tombola.sparsity.cutting import Inputs, floating_tensors
from tombola.sparsity.masks import Masks, count
from tombola.sparsity.names import plain_parameters, without_spectral_norm
from tombola.sparsity.select import top

Losses = Callable[[], Iterator[Tensor]]
"""The scalar losses of a network's turn, batch by batch, each with a graph of its own; the same
ones whenever called."""
SATURATING = frozenset(
    getattr(place, name)
    for place in (torch, torch.Tensor, nn.functional)
    for name in ("tanh", "tanh_", "sigmoid", "sigmoid_", "softmax", "hardtanh", "hardtanh_")
    if hasattr(place, name)
)
"""Activations that stop SynFlow's flow, under every name by which a network may call them."""
SYNFLOW_STEPS = 100
"""Steps in which SynFlow reaches a level (Tanaka et al. 2020, section 6)."""


def snip(weights: Mapping[str, Tensor], losses: Losses) -> dict[str, Tensor]:
    """Scores |w dL/dw| of one network's weights by name, L averaged over the batches.

    Lee, Ajanthan, Torr 2019, "SNIP", equation 5, not divided by its sum, which is one number for
    all weights that compete.
    """
    slopes = _slopes(weights, losses)
    return {
        name: (weight.detach() * slope).abs()
        for (name, weight), slope in zip(weights.items(), slopes, strict=True)
    }


def grasp(weights: Mapping[str, Tensor], losses: Losses) -> dict[str, Tensor]:
    """Scores w (H g) of one network's weights by name, g = dL/dw, H its derivative.

    Wang, Zhang, Grosse 2020, "Picking winning tickets before training by preserving gradient flow",
    equation 8: removed are the weights of the largest -w (H g), whose loss costs the gradient's
    norm least. Both g and H are averaged over the batches.
    """
    slopes = [slope.detach() for slope in _slopes(weights, losses)]
    leaves = list(weights.values())
    flow = [torch.zeros_like(leaf) for leaf in leaves]
    batches = 0
    for loss in losses():
        own = torch.autograd.grad(loss, leaves, create_graph=True, allow_unused=True)
        along = [(g * s).sum() for g, s in zip(own, slopes, strict=True) if g is not None]
        curved = torch.autograd.grad(torch.stack(along).sum(), leaves, allow_unused=True)
        for total, part in zip(flow, curved, strict=True):
            if part is not None:
                total += part
        batches += 1
    return {
        name: weight.detach() * part / batches
        for (name, weight), part in zip(weights.items(), flow, strict=True)
    }


def _slopes(weights: Mapping[str, Tensor], losses: Losses) -> list[Tensor]:
    """The gradient of the mean loss by each weight; zeros where there is none."""
    leaves = list(weights.values())
    totals = [torch.zeros_like(leaf) for leaf in leaves]
    batches = 0
    for loss in losses():
        for total, part in zip(
            totals, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True
        ):
            if part is not None:
                total += part
        batches += 1
    return [total / batches for total in totals]


def guarded(scores: Mapping[str, Tensor], among: Masks | None = None) -> dict[str, Tensor]:
    """The scores, in float64, with the best of each layer raised above all: no layer collapses.

    With ``among`` the best of what it keeps. Ties go to the earlier position.
    """
    raised = {}
    for name, value in scores.items():
        # A copy whose strides are those of C order: the place of the best counts in it.
        best = value.detach().to("cpu", torch.float64).clone(memory_format=torch.contiguous_format)
        flat = best.view(-1)
        rivals = flat
        if among is not None:
            rivals = torch.where(among[name].reshape(-1), flat, -math.inf)
        if not bool(torch.isnan(rivals).any()):
            flat[int(rivals.argmax())] = math.inf
        raised[name] = best
    return raised


def select(scores: Mapping[str, Tensor], keep: int, among: Masks | None = None) -> Masks:
    """Exactly ``keep`` weights of the highest scores, at least one of each layer.

    ConfigError if there are more layers than weights to keep, or for a NaN among the scores.
    """
    if keep < len(scores):
        raise ConfigError(
            f"cannot keep {keep} weights of {len(scores)} layers, of which each keeps at least "
            "one; ask for a lower sparsity"
        )
    return top(guarded(scores, among), keep, among)


def synflow(
    networks: Mapping[str, nn.Module],
    inputs: Mapping[str, Inputs],
    keep: int,
    among: Masks,
) -> Masks:
    """Masks of exactly ``keep`` weights by iterative synaptic flow; no data are seen.

    ``inputs``: what each network is called with, of any batch size; ones take the place of floating
    numbers, and the first of whole ones (labels) stays.
    ``among``: the masks so far; only what they keep competes. Tanaka, Kunin, Yamins, Ganguli 2020,
    "Pruning neural networks without any data by iteratively conserving synaptic flow", algorithm
    1: in 100 steps of equal ratios, scores |w| dR/d|w| / R with R the sum of the outputs for ones
    and all parameters replaced by their absolute values. One network needs no division; of several
    that compete the one of the smaller R would be emptied before the other lost anything. Left out
    are saturating activations, which would stop the flow, and spectral norms, which divide all of
    a network's flow by one number. BatchNorm uses its running statistics; all is in float64.
    """
    left, _ = count(among)
    masks = among
    for step in range(1, SYNFLOW_STEPS + 1):
        share = (keep / left) ** (step / SYNFLOW_STEPS)
        wanted = keep if step == SYNFLOW_STEPS else max(keep, round(left * share))
        if wanted < count(masks)[0]:
            masks = select(_synaptic_flow(networks, inputs, masks), wanted, masks)
    return masks


def _synaptic_flow(
    networks: Mapping[str, nn.Module], inputs: Mapping[str, Inputs], masks: Masks
) -> dict[str, Tensor]:
    scores: dict[str, Tensor] = {}
    for name, network in networks.items():
        own = {k: m for k, m in masks.items() if k.startswith(f"{name}.")}
        if not own:
            continue
        linear = _copied(network)
        leaves = {f"{name}.{k}": leaf for k, leaf in plain_parameters(linear).items()}
        with torch.no_grad():
            for key, leaf in leaves.items():
                leaf.abs_()
                if key in own:
                    leaf.mul_(own[key])
        asked = [
            torch.ones_like(x[:1], dtype=torch.float64) if x.is_floating_point() else x[:1]
            for x in inputs[name]
        ]
        with _Unbounded():
            flow = torch.stack([part.sum() for part in floating_tensors(linear(*asked))]).sum()
        chosen = [leaves[key] for key in own]
        slopes = torch.autograd.grad(flow, chosen, allow_unused=True)
        whole = flow.detach()
        whole = whole if float(whole) > 0 else torch.ones_like(whole)
        for key, leaf, slope in zip(own, chosen, slopes, strict=True):
            zero = torch.zeros_like(leaf)
            scores[key] = (leaf * slope).detach() / whole if slope is not None else zero
    return {key: scores[key] for key in masks}


class _Unbounded(TorchFunctionMode):
    """In its block saturating activations, modules or functions, hand on what they are given."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func in SATURATING:
            return args[0] if args else named["input"]
        return func(*args, **named)


def _copied(network: nn.Module) -> nn.Module:
    """A copy in float64 and eval mode, without spectral norms, all of whose parameters learn."""
    made = copy.deepcopy(network).double().eval()
    for module in list(made.modules()):
        without_spectral_norm(module)
    for parameter in made.parameters():
        parameter.requires_grad_(True)
    return made
