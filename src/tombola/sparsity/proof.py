"""Does a network without some channels answer as it does with them at zero? Tried, not believed."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tombola.sparsity.cutting import Cut, Inputs, copied, outputs_of, shrink
from tombola.sparsity.names import plain_state, walk

TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-4}
"""Largest difference of outputs, as a share of the largest output, by the type that both compute
in; the second is for networks that do not run in the first."""
MAKES_OUTPUT = "it makes the network's output"
DRAWS = 3
"""Random weights tried until a cut is seen to change something: behind a ReLU a channel can be zero
for one draw of them."""


def prove(network: str, module: nn.Module, cut: Cut, inputs: Inputs, *, random: bool) -> str:
    """Why a network that is cut does not answer like the one with those channels zeroed, or "".

    In eval mode and float64 on random inputs; in float32 if it does not run in float64. With
    ``random`` weights in the place of its own nothing is hidden by a weight that is zero; then
    refused is also a cut that changes nothing.
    """
    for seed in range(1, 1 + DRAWS if random else 2):
        generator = torch.Generator().manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                off, moved, tolerance = _tried(network, module, cut, inputs, generator, random)
        except _OtherShapeError:
            return MAKES_OUTPUT
        except Exception as error:
            text = (str(error).strip() or "no message").splitlines()[0]
            return f"the smaller network fails ({type(error).__name__}: {text})"
        if not off <= tolerance:  # a NaN is refused too
            return f"the smaller network's outputs differ by {off:.2g} of their size"
        if not random or moved > 1e3 * tolerance:
            return ""
    return "its channels do not reach the outputs"


class _OtherShapeError(Exception):
    """The smaller network's outputs are of another shape."""


def _tried(
    network: str,
    module: nn.Module,
    cut: Cut,
    inputs: Inputs,
    generator: torch.Generator,
    random: bool,
) -> tuple[float, float, float]:
    """(by how much the smaller network is off, how much the cut changes, the tolerance)."""
    dense, given, whole, tolerance = _dense(network, module, inputs, generator, random)
    zeroed = copied({network: dense})
    cut.zero(zeroed)
    wanted = outputs_of(zeroed[network], given)
    small = copied({network: dense})
    shrink(small, cut)
    made = outputs_of(small[network], given)
    if [x.shape for x in made] != [x.shape for x in wanted]:
        raise _OtherShapeError
    scale = max((float(x.abs().max()) for x in wanted if x.numel()), default=0.0) + math.ulp(1.0)
    return _distance(made, wanted) / scale, _distance(whole, wanted) / scale, tolerance


def _dense(
    network: str, module: nn.Module, inputs: Inputs, generator: torch.Generator, random: bool
) -> tuple[nn.Module, Inputs, list[Tensor], float]:
    """(a copy to cut, what it is called with, its answer, the tolerance) in the best type it has.

    Without wrappers: a compiled network would be compiled anew for every size.
    """
    failed: Exception | None = None
    bare = next(walk(module))[1]
    for dtype, tolerance in TOLERANCES.items():
        dense = copied({network: bare})[network].cpu().eval()
        dense = dense.double() if dtype == torch.float64 else dense.float()  # not complex buffers
        if random:
            _randomise(dense, generator)
        given = tuple(
            torch.randn(x.shape, generator=generator, dtype=dtype, device="cpu")
            if x.is_floating_point()
            else x.detach().cpu()
            for x in inputs
        )
        try:
            return dense, given, outputs_of(dense, given), tolerance
        except Exception as error:
            failed = error
    assert failed is not None
    raise failed


def _distance(some: Sequence[Tensor], others: Sequence[Tensor]) -> float:
    return max(
        (float((a - b).abs().max()) for a, b in zip(some, others, strict=True) if a.numel()),
        default=0.0,
    )


@torch.no_grad()
def _randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Weights, scales and statistics that hide nothing: none is zero, none saturates."""

    def uniform(like: Tensor) -> Tensor:
        return torch.rand(like.shape, generator=generator, dtype=like.dtype, device="cpu") + 0.5

    for name, tensor in plain_state(module).items():
        if not tensor.is_floating_point():
            continue
        if tensor.dim() >= 2:
            fan = max(1, tensor.numel() // max(tensor.shape[:2]))
            drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device="cpu")
            tensor.copy_(drawn / math.sqrt(fan))
        elif not name.endswith("running_mean"):
            tensor.copy_(uniform(tensor))
