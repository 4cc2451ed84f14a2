"""How is a mask learnt while the weights are? A gate for each weight, or pruning by a schedule.

Gates (concrete masks: Louizos, Welling, Kingma 2018, "Learning sparse neural networks through L0
regularization"; continuous sparsification: Savarese, Silva, Maire 2020, "Winning the lottery with
continuous sparsification"; learnt with the weights from a rewind point, and rewound: ours). At
step i of n, with w of P weights of which ``keep`` are wanted:

    z = sigmoid(beta (a + b))                    the weight in the forward pass is w z
    a = logit((rank of |w| + 1/2) / P)           at first; rank 0 is the pool's smallest weight
    k = P (keep / P)^x,  x = min(1, i / 0.6 n)
    b = -(k-th largest a)                        so that exactly k gates lie at 1/2 or above
    beta = 20^(i / n)
    rate of a = 0.001 + 0.019 (1 + cos(pi i / n)) / 2

and at the end the largest |w| sigmoid(beta (a + b)) are kept. Gradual pruning (Zhu, Gupta 2017, "To
prune, or not to prune", equation 1, which begins here at once and from a dense network):

    k = keep + (P - keep) (1 - x)^3,  x = min(1, i / 0.8 n)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

OFFSET_STEPS = 20
"""Steps between two settings of b."""
PRUNE_STEPS = 37
"""Steps between two prunings of gradual."""
SHARPEST = 20.0
"""beta at the end."""
RATES = 0.02, 0.001
"""Adam's rate for the gates, first and last."""
EPSILON = 1e-11
"""Adam's epsilon for the gates, whose gradients are tiny."""


def gates_count(pool: int, keep: int, step: int, steps: int) -> int:
    """How many of ``pool`` gates lie at 1/2 or above at a step of ``steps``; at last ``keep``."""
    if 5 * step >= 3 * steps:
        return keep
    return int(pool * math.pow(keep / pool, 5 * step / (3 * steps)) + 0.5)


def gradual_count(pool: int, keep: int, step: int, steps: int) -> int:
    """How many of ``pool`` weights gradual pruning leaves at a step of ``steps``; exact."""
    left = 1 - min(Fraction(1), Fraction(5 * step, 4 * steps))
    return math.floor(keep + (pool - keep) * left**3 + Fraction(1, 2))


def first_gates(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gates a of weights before anything is learnt: the logits of the ranks of |w|.

    Like the weights in name, shape, device and strides. Of equal weights the earlier ranks higher,
    as it would be kept first.
    """
    flat = torch.cat([value.detach().reshape(-1).abs() for value in weights.values()])
    order = torch.argsort(flat, descending=True, stable=True)
    size = len(flat)
    share = torch.empty(size, dtype=torch.float64, device=flat.device)
    share[order] = (torch.arange(size, 0, -1, dtype=torch.float64, device=flat.device) - 0.5) / size
    parts = torch.split(torch.logit(share), [value.numel() for value in weights.values()])
    return {
        name: torch.empty_like(value, requires_grad=False).copy_(part.view(value.shape))
        for (name, value), part in zip(weights.items(), parts, strict=True)
    }


def offset(gates: Mapping[str, Tensor], count: int) -> float:
    """b: with it exactly ``count`` of the gates, or more where some are equal, lie at 1/2 or above.

    NaN if a gate is NaN.
    """
    flat = torch.cat([value.detach().reshape(-1) for value in gates.values()])
    return -float(flat.kthvalue(len(flat) - count + 1).values)


def sharpness(step: int, steps: int) -> float:
    """How steep the gates are at a step: beta."""
    return float(SHARPEST ** (step / steps))


def gates_rate(step: int, steps: int) -> float:
    """Adam's rate for the gates at a step."""
    first, last = RATES
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * step / steps))


def opened(gate: Tensor, beta: float, b: float) -> Tensor:
    """z: what a weight is multiplied by, each in [0, 1]."""
    return torch.sigmoid(beta * (gate + b))


def gated_scores(
    weights: Mapping[str, Tensor], gates: Mapping[str, Tensor], b: float
) -> dict[str, Tensor]:
    """Scores |w| z at the end, in float64: there no gate that is nearly shut becomes zero."""
    return {
        name: weight.detach().abs().double() * opened(gates[name].detach().double(), SHARPEST, b)
        for name, weight in weights.items()
    }
