"""Users' modules: what is cut answers as with zeros, and what is not cut says why; never wrong."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from helpers import stir
from tombola.errors import ConfigError
from tombola.sparsity import tracing
from tombola.sparsity.channels import TOO_FAR, Group, channel_groups
from tombola.sparsity.cutting import Cut, copied, floating_tensors, shrink
from tombola.sparsity.names import plain_state
from tombola.sparsity.proof import prove

IMAGE, VECTOR, LABELS = (3, 8, 8), (4,), ()
OUTPUT = "makes the network's output"
ReLU, BN = nn.ReLU, nn.BatchNorm2d
Up = nn.ConvTranspose2d


class Net(nn.Module):
    """Layers by name, and a forward of them."""

    def __init__(self, forward: Callable, **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.call = forward

    def forward(self, *inputs: Tensor):
        return self.call(self, *inputs)


class Const(nn.Module):
    """StyleGAN's learnt input."""

    def __init__(self) -> None:
        super().__init__()
        self.const = nn.Parameter(torch.randn(1, 6, 4, 4))
        self.style, self.conv, self.out = nn.Linear(4, 6), conv(6, 5), conv(5, 3)

    def forward(self, z: Tensor) -> Tensor:
        x = self.const.expand(len(z), -1, -1, -1) * self.style(z)[:, :, None, None]
        return self.out(F.relu(self.conv(F.relu(x))))


class ConditionalNorm(nn.Module):
    """BatchNorm whose scales and shifts depend on a label (or, linearly, on a vector)."""

    def __init__(self, n: int, kind: str) -> None:
        super().__init__()
        self.bn, self.kind = nn.BatchNorm2d(n, affine=False), kind
        if kind == "chunk":
            self.both = nn.Embedding(5, 2 * n)
        else:
            make = (lambda: nn.Embedding(5, n)) if kind == "tables" else (lambda: nn.Linear(4, n))
            self.scale, self.shift = make(), make()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        both = self.both(y).chunk(2, 1) if self.kind == "chunk" else (self.scale(y), self.shift(y))
        scale, shift = (each[:, :, None, None] for each in both)
        return self.bn(x) * (1 + scale) + shift


def conditional(kind: str) -> nn.Module:
    def forward(s: Net, z: Tensor, y: Tensor) -> Tensor:
        x = F.relu(s.n1(s.first(z).view(len(z), -1, 2, 2), y))
        return torch.tanh(s.out(F.relu(s.n2(s.up(x), y))))

    return Net(
        forward,
        first=nn.Linear(4, 24),
        n1=ConditionalNorm(6, kind),
        up=Up(6, 5, 4, 2, 1),
        n2=ConditionalNorm(5, kind),
        out=Up(5, 3, 4, 2, 1),
    )


class Attention(nn.Module):
    """A layer, SAGAN's self-attention with its scale at 0, a layer."""

    def __init__(self, wrap: Callable, hard: bool = False, scale: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.first, self.bn, self.last, self.hard = wrap(conv(3, 8)), BN(8), wrap(conv(8, 2)), hard
        sizes = {"q": (8, 2), "k": (8, 2), "v": (8, 4), "o": (4, 8)}
        for name, (inputs, outputs) in sizes.items():
            setattr(self, name, wrap(nn.Conv2d(inputs, outputs, 1, bias=False)))
        self.gamma = nn.Parameter(torch.zeros(scale))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.first(x)))
        n, c, h, w = x.shape
        if self.hard:  # as published: the widths of the branches follow that of the stream
            q = self.q(x).view(n, c // 4, h * w)
        else:
            q = self.q(x).flatten(2)
        k, v = (F.max_pool2d(layer(x), 2).flatten(2) for layer in (self.k, self.v))
        weights = torch.softmax(q.transpose(1, 2) @ k, -1)
        return self.last(x + self.gamma * self.o((v @ weights.transpose(1, 2)).view(n, -1, h, w)))


def conv(inputs: int, outputs: int, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2, **options)


def seq(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers)


def normed(norm: nn.Module) -> nn.Sequential:
    return seq(conv(3, 6), norm, ReLU(), conv(6, 3))


def plain() -> nn.Sequential:
    return normed(BN(6))


def mixed(norm: Callable = BN) -> nn.Module:
    """A U-Net: one level down and up, the features concatenated."""

    def forward(s: Net, x: Tensor) -> Tensor:
        a = F.relu(s.n1(s.c1(x)))
        b = F.relu(s.n2(s.c2(F.avg_pool2d(a, 2))))
        return s.out(torch.cat([F.relu(s.n3(s.up(b))), a], 1))

    layers = {"c1": conv(3, 4), "c2": conv(4, 6), "up": Up(6, 5, 4, 2, 1), "out": conv(9, 3)}
    return Net(forward, **layers, n1=norm(4), n2=norm(6), n3=norm(5))


def dense_block() -> nn.Module:
    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.c1(x)
        return s.out(F.relu(s.n2(torch.cat([h, s.c2(F.relu(s.n1(h)))], 1))))

    return Net(forward, c1=conv(3, 4), n1=BN(4), c2=conv(4, 3), n2=BN(7), out=conv(7, 2))


def residual(skip: bool) -> nn.Module:
    """A residual block with an identity skip, or one of a 1x1 convolution of the raw stream."""

    def forward(s: Net, x: Tensor) -> Tensor:
        h = s.stem(x)
        y = s.n2(s.c2(F.relu(s.n1(s.c1(h)))))
        return s.out(F.relu(y + (s.skip(h) if skip else h)))

    n = 4 if skip else 6
    parts = {"skip": conv(6, n, 1)} if skip else {}
    return Net(
        forward, stem=conv(3, 6), c1=conv(6, 5), n1=BN(5), c2=conv(5, n), n2=BN(n),
        out=conv(n, 2), **parts,
    )  # fmt: skip


def spectral(wrap: Callable) -> nn.Module:
    return seq(
        wrap(conv(3, 6)), nn.LeakyReLU(0.1), wrap(Up(6, 5, 4, 2, 1)), nn.LeakyReLU(0.1),
        wrap(conv(5, 4)), nn.Flatten(), nn.LeakyReLU(0.1), wrap(nn.Linear(1024, 7)),
        nn.LeakyReLU(0.1), wrap(nn.Linear(7, 2)),
    )  # fmt: skip


def two(forward: Callable, n: int = 6, **parts) -> nn.Module:
    """A layer ``c`` of n channels, and ``o``, which reads them as the forward says."""
    return Net(forward, **{"c": conv(3, n), "o": conv(n, 2), **parts})


def tied() -> nn.Module:
    net = seq(conv(3, 6), ReLU(), conv(6, 6), BN(6), ReLU(), conv(6, 6), ReLU(), conv(6, 2))
    net[5].weight = net[2].weight
    return net


def in_two_places() -> nn.Module:
    net = plain()
    net.add_module("again", net[0])
    return Net(lambda s, x: s.net[3](F.relu(s.net[1](s.net[0](x)))), net=net)


def view_of(shape: Callable[[Tensor], tuple[int, ...]], norm: nn.Module | None = None) -> nn.Module:
    """Linear, seen as an image; with a BatchNorm in front of that or behind."""
    norm = norm or nn.BatchNorm1d(24)
    before = isinstance(norm, nn.BatchNorm1d)

    def forward(s: Net, z: Tensor) -> Tensor:
        h = s.b(s.l(z)) if before else s.l(z)
        h = h.view(*shape(z))
        return s.o(F.relu(h if before else s.b(h)))

    return Net(forward, l=nn.Linear(4, 24), b=norm, o=Up(6, 3, 4, 2, 1))


def inside(dtype: torch.dtype) -> nn.Module:
    """A network that computes in a type of its own between two layers, so not in float64."""
    back = torch.float32
    return two(lambda s, x: s.o(F.relu(s.b(s.c(x))).to(dtype).to(back)), b=BN(6))


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    cut: dict[str, int]
    """Layer -> channels that can be cut there."""
    left: dict[str, str] = field(default_factory=dict)
    """Layer -> why it is not cut."""
    inputs: tuple[tuple[int, ...], ...] = (IMAGE,)
    train: bool = True
    """Whether the two also agree in training."""
    dtype: torch.dtype = torch.float64


def fails(words: str) -> str:
    return rf"the smaller network fails \(.*{re.escape(words)}"


def differs() -> str:
    return r"outputs differ by [0-9.e-]+ of their size"


OTHER_WIDTH = "expected input"
ATTENTION = {"q": "o.weight has 4 places, fewer than its channels need", "last": OUTPUT}
CASES: dict[str, Case] = {
    "U-Net": Case(mixed, {"n1": 4, "n2": 6, "n3": 5}, {"out": OUTPUT}),
    "U-Net, InstanceNorm": Case(
        lambda: mixed(nn.InstanceNorm2d), {"n1": 4, "n2": 6, "n3": 5}, {"out": OUTPUT}
    ),
    "dense block": Case(dense_block, {"n1": 4, "c2": 3}, {"out": OUTPUT}),
    "norm of a concatenation": Case(
        lambda: Net(
            lambda s, x: s.o(F.relu(s.b(torch.cat([F.relu(s.a(x)), F.relu(s.c(x))], 1)))),
            a=conv(3, 4), c=conv(3, 6), b=BN(10), o=conv(10, 2),
        ), {"b": 4, "c": 6}, {"o": OUTPUT}),
    "two norms of a concatenation": Case(
        lambda: Net(
            lambda s, x: s.o(s.b2(F.relu(s.b(torch.cat([s.a(x), s.c(x)], 1))))),
            a=conv(3, 4), c=conv(3, 6), b=BN(10), b2=BN(10), o=conv(10, 2),
        ), {"b": 4, "c": 6}, {"o": OUTPUT}),
    "concatenated with the input": Case(
        lambda: Net(
            lambda s, x, y: s.o(torch.cat([x, F.relu(s.b(s.c(x))), y], 1)),
            c=conv(3, 6), b=BN(6), o=conv(12, 2),
        ), {"b": 6}, {"o": OUTPUT}, (IMAGE, IMAGE)),
    "added to the input": Case(
        lambda: two(lambda s, x: s.o(F.relu(s.c(x) + x)), 3), {},
        {"c": "goes with the network's input", "o": OUTPUT}),
    "attention": Case(lambda: Attention(lambda m: m), {"bn": 8}, ATTENTION),
    "attention, hard-coded": Case(
        lambda: Attention(lambda m: m, hard=True), {},
        {"bn": fails("shape '[3, 1, 64]' is invalid"), **ATTENTION}),
    "attention, scale a channel": Case(
        lambda: Attention(lambda m: m, scale=(1, 8, 1, 1)), {"bn": 8}, ATTENTION),
    "attention, new spectral norm": Case(lambda: Attention(spectral_norm), {"bn": 8}, ATTENTION),
    "attention, old spectral norm": Case(
        lambda: Attention(old_spectral_norm), {"bn": 8}, ATTENTION),
    "new spectral norm": Case(
        lambda: spectral(spectral_norm), {"0": 6, "2": 5, "4": 4, "7": 7}, {"9": OUTPUT}),
    "old spectral norm": Case(
        lambda: spectral(old_spectral_norm), {"0": 6, "2": 5, "4": 4, "7": 7}, {"9": OUTPUT}),
    "residual, identity": Case(lambda: residual(False), {"n1": 5, "n2": 6}, {"out": OUTPUT}),
    "residual, 1x1": Case(
        lambda: residual(True), {"stem": 6, "n1": 5, "n2": 4}, {"out": OUTPUT}),
    "squeeze and excite": Case(
        lambda: Net(
            lambda s, x: s.o((h := s.c(x)) * torch.sigmoid(
                s.f(F.relu(s.e(h.mean((2, 3))))))[:, :, None, None]),
            c=conv(3, 6), e=nn.Linear(6, 3), f=nn.Linear(3, 6), o=conv(6, 2),
        ), {"c": 6, "e": 3}, {"o": OUTPUT}),
    "conditional, one table": Case(
        lambda: conditional("chunk"), {"n1.bn": 6, "n2.bn": 5}, {"out": OUTPUT}, (VECTOR, LABELS)),
    "conditional, two tables": Case(
        lambda: conditional("tables"), {"n1.bn": 6, "n2.bn": 5}, {"out": OUTPUT}, (VECTOR, LABELS)),
    "conditional, linear": Case(
        lambda: conditional("linear"), {"n1.bn": 6, "n2.bn": 5}, {"out": OUTPUT}, (VECTOR, VECTOR)),
    "table of labels": Case(
        lambda: Net(
            lambda s, z, y: s.o(F.relu(s.l(torch.cat([z, s.e(y)], 1)))),
            e=nn.Embedding(5, 3), l=nn.Linear(7, 6), o=nn.Linear(6, 2),
        ), {"e": 3, "l": 6}, {"o": OUTPUT}, (VECTOR, LABELS)),
    "projection discriminator": Case(
        lambda: Net(
            lambda s, x, y: s.l(h := F.relu(s.c(x)).sum((2, 3))) + (s.e(y) * h).sum(1, True),
            c=conv(3, 6), l=nn.Linear(6, 1), e=nn.Embedding(5, 6),
        ), {}, {"c": OUTPUT}, (IMAGE, LABELS)),
    "GroupNorm of 3": Case(lambda: normed(nn.GroupNorm(2, 6)), {"1": 2}, {"3": OUTPUT}),
    "GroupNorms of 2 and 3": Case(
        lambda: seq(conv(3, 6), nn.GroupNorm(3, 6), ReLU(), conv(6, 12), nn.GroupNorm(4, 12),
                    nn.GroupNorm(6, 12), conv(12, 2)), {"1": 3, "4": 2}, {"6": OUTPUT}),
    "GroupNorm of one group": Case(
        lambda: normed(nn.GroupNorm(1, 6)), {}, {"1": "only leave all together", "3": OUTPUT}),
    "GroupNorm, not affine": Case(
        lambda: normed(nn.GroupNorm(3, 6, affine=False)), {},
        {"1": "1 is a GroupNorm without scales", "3": OUTPUT}),
    "BatchNorm, not affine": Case(lambda: normed(BN(6, affine=False)), {"1": 6}, {"3": OUTPUT}),
    "BatchNorm, untracked": Case(
        lambda: normed(BN(6, track_running_stats=False)), {"1": 6}, {"3": OUTPUT}),
    "InstanceNorm": Case(lambda: normed(nn.InstanceNorm2d(6)), {"1": 6}, {"3": OUTPUT}),
    "InstanceNorm, affine, tracked": Case(
        lambda: normed(nn.InstanceNorm2d(6, affine=True, track_running_stats=True)), {"1": 6},
        {"3": OUTPUT}),
    "LayerNorm": Case(
        lambda: normed(nn.LayerNorm([6, 8, 8])), {}, {"0": "1 is a LayerNorm", "3": OUTPUT}),
    "RMSNorm": Case(
        lambda: seq(nn.Linear(4, 6), nn.RMSNorm(6), nn.Linear(6, 2)), {},
        {"0": fails("normalized_shape"), "2": OUTPUT}, (VECTOR,)),
    "PReLU": Case(
        lambda: seq(conv(3, 6), BN(6), nn.PReLU(6), conv(6, 5), nn.PReLU(), conv(5, 2)),
        {"1": 6, "3": 5}, {"5": OUTPUT}),
    "softmax over channels": Case(
        lambda: seq(conv(3, 6), nn.Softmax(1), conv(6, 2)), {}, {"0": differs(), "2": OUTPUT}),
    "mean over channels": Case(
        lambda: two(lambda s, x: s.o((h := s.c(x)) - h.mean(1, True))), {},
        {"c": differs(), "o": OUTPUT}),
    "sum over channels": Case(
        lambda: two(lambda s, x: s.o(F.normalize(s.c(x)))), {"c": 6}, {"o": OUTPUT}),
    "channels in another order": Case(
        lambda: two(lambda s, x: s.o(s.c(x).flip(1))), {}, {"c": differs(), "o": OUTPUT}),
    "maxout": Case(
        lambda: two(lambda s, x: s.o(torch.maximum(*s.c(x).chunk(2, 1))), c=conv(3, 12)), {"c": 6},
        {"o": OUTPUT}),
    "gated unit": Case(
        lambda: seq(conv(3, 8), nn.GLU(1), conv(4, 2)), {},
        {"0": "2.weight has 4 places, fewer than its channels need", "2": OUTPUT}),
    "latent drawn inside": Case(
        lambda: Net(lambda s, x: s.d((h := s.e(x).chunk(2, 1))[0] + torch.randn_like(h[0]) * h[1]),
                    e=nn.Linear(4, 6), d=nn.Linear(3, 4)), {}, {"e": differs(), "d": OUTPUT},
        (VECTOR,)),
    "depthwise": Case(
        lambda: seq(conv(3, 6), BN(6), ReLU(), conv(6, 6, groups=6), BN(6), conv(6, 4, 1), ReLU(),
                    Up(4, 4, 4, 2, 1, groups=4), conv(4, 2)), {"1": 6, "5": 4}, {"8": OUTPUT}),
    "depthwise, spectral norm": Case(
        lambda: seq(conv(3, 6), ReLU(), spectral_norm(conv(6, 6, groups=6)), ReLU(), conv(6, 4),
                    old_spectral_norm(Up(4, 4, 4, 2, 1, groups=4)), conv(4, 2)), {"0": 6},
        {"4": "5.weight_u has 1 places", "6": OUTPUT}),
    "grouped": Case(
        lambda: seq(conv(3, 6), BN(6), ReLU(), conv(6, 6, groups=2), ReLU(), conv(6, 4), ReLU(),
                    conv(4, 2)), {"5": 4},
        {"1": "3 is a convolution in 2 groups", "3": "3 is a convolution in 2 groups", "7": OUTPUT}
    ),
    "depthwise, two each": Case(
        lambda: seq(conv(3, 6), ReLU(), conv(6, 12, groups=6), ReLU(), conv(12, 2)), {},
        {"0": "2 is a convolution in 6 groups", "2": "2 is a convolution in 6", "4": OUTPUT}),
    "pixel shuffle": Case(
        lambda: seq(conv(3, 8), BN(8), nn.PixelShuffle(2), conv(2, 4), ReLU(), conv(4, 2)),
        {"3": 4}, {"1": "3.weight has 2 places", "5": OUTPUT}),
    "view, hard-coded": Case(
        lambda: view_of(lambda z: (len(z), 6, 2, 2), BN(6)), {},
        {"b": fails("shape '[3, 6, 2, 2]' is invalid"), "o": OUTPUT}, (VECTOR,)),
    "view of any batch, hard-coded": Case(
        lambda: view_of(lambda z: (-1, 6, 2, 2), BN(6)), {},
        {"b": fails("shape '[-1, 6, 2, 2]' is invalid"), "o": OUTPUT}, (VECTOR,)),
    "view, derived": Case(
        lambda: view_of(lambda z: (len(z), -1, 2, 2), BN(6)), {"b": 6}, {"o": OUTPUT}, (VECTOR,)),
    "view at once": Case(
        lambda: seq(nn.Linear(4, 8), nn.Unflatten(1, (-1, 2, 2)), Up(2, 3, 4, 2, 1)), {"0": 2},
        {"2": OUTPUT}, (VECTOR,)),
    "view behind a BatchNorm": Case(
        lambda: view_of(lambda z: (len(z), -1, 2, 2)), {"b": 6}, {"o": OUTPUT}, (VECTOR,)),
    "view by x.shape": Case(
        lambda: Net(
            lambda s, x: s.l((h := F.relu(s.c(x))).view(h.shape[0], h.shape[1] * h.shape[2] ** 2)),
            c=conv(3, 6), l=nn.Linear(384, 2),
        ), {"c": 6}, {"l": OUTPUT}),
    "BatchNorm behind a flatten": Case(
        lambda: seq(conv(3, 4), nn.AvgPool2d(4), nn.Flatten(), nn.BatchNorm1d(16),
                    nn.Linear(16, 2)), {"3": 4}, {"4": OUTPUT}),
    "3d": Case(
        lambda: seq(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3, 1, 1), nn.BatchNorm3d(4),
                    nn.Flatten(), nn.Linear(768, 2)), {"2": 4}, {"4": OUTPUT}),
    "a layer used twice": Case(
        lambda: two(lambda s, x: s.o(F.relu(s.b2(s.m(F.relu(s.b1(s.m(s.c(x)))))))),
                    m=conv(6, 6), b1=BN(6), b2=BN(6)), {"b1": 6}, {"o": OUTPUT}),
    "a network used twice": Case(
        lambda: Net(lambda s, x: torch.cat([s.g(x), s.g(s.g(x))], 1), g=plain()), {"g.1": 6},
        {"g.3": OUTPUT}),
    "a layer in two places": Case(in_two_places, {"net.1": 6}, {"net.3": OUTPUT}),
    "a shared weight": Case(
        tied, {},
        {"0": "2.weight is the same tensor as 5.weight", "3": "2.weight is the same tensor",
         "5": "5.weight is the same tensor as 2.weight", "7": OUTPUT}),
    "an output layer inside": Case(
        lambda: Net(lambda s, x: s.o(F.relu(s.c(F.relu(s.o(x))))), o=conv(3, 3), c=conv(3, 3)),
        {}, {"o": OUTPUT, "c": "input|output|fails"}),
    "decoder of the encoder's weight": Case(
        lambda: Net(
            lambda s, x: F.linear(F.relu(s.l(x)), s.l.weight.t(), s.b),
            l=nn.Linear(4, 5), b=nn.Parameter(torch.zeros(4)),
        ), {}, {"l": OUTPUT}, (VECTOR,)),
    "constant input": Case(Const, {"style": 6, "conv": 5}, {"out": OUTPUT}, (VECTOR,)),
    "scales outside of layers": Case(
        lambda: two(lambda s, x: s.o(F.relu(s.c(x) * s.g * s.h + s.i)),
                    g=nn.Parameter(torch.rand(6, 1, 1)), h=nn.Parameter(torch.ones(1)),
                    i=nn.Parameter(torch.rand(1, 1, 8, 8))), {"c": 6}, {"o": OUTPUT}),
    "functional convolution": Case(
        lambda: two(lambda s, x: s.o(F.conv2d(s.c(x), s.w, padding=1)),
                    w=nn.Parameter(torch.randn(5, 6, 3, 3)), o=conv(5, 2)), {},
        {"c": "o.weight has 5 places", "o": OUTPUT}),
    "new weight norm": Case(
        lambda: seq(weight_norm(conv(3, 6)), ReLU(), conv(6, 5), ReLU(), weight_norm(conv(5, 2))),
        {}, {"0": "0's weight is computed from", "2": "4's weight is comp", "4": OUTPUT}),
    "old weight norm": Case(
        lambda: seq(old_weight_norm(conv(3, 6)), ReLU(), conv(6, 5), ReLU(), conv(5, 2)),
        {"2": 5}, {"0": "0's weight is computed from", "4": OUTPUT}),
    "dropout": Case(
        lambda: seq(conv(3, 6), BN(6), nn.Dropout2d(0.5), conv(6, 5), nn.Dropout(0.5), conv(5, 2)),
        {"1": 6, "3": 5}, {"5": OUTPUT}, train=False),
    "Sequentials": Case(
        lambda: seq(seq(seq(conv(3, 6), BN(6)), ReLU()), seq(conv(6, 2))), {"0.0.1": 6},
        {"1.0": OUTPUT}),
    "noise of one channel": Case(
        lambda: two(lambda s, x: s.o(F.relu(s.c(x) + torch.randn_like(x[:, :1])))), {"c": 6},
        {"o": OUTPUT}),
    "noise of each channel": Case(
        lambda: two(lambda s, x: s.o(F.relu((h := s.c(x)) + torch.randn_like(h)))), {},
        {"c": differs(), "o": OUTPUT}),
    "two inputs": Case(
        lambda: two(lambda s, x, y: s.o(F.relu(s.c(x) + s.d(y)[:, :, None, None])),
                    d=nn.Linear(4, 6)), {"c": 6}, {"o": OUTPUT}, (IMAGE, VECTOR)),
    "outputs by name": Case(
        lambda: two(lambda s, x: {"a": s.o(h := F.relu(s.c(x))), "b": [s.p(h), 3, None]},
                    p=conv(6, 3)), {"c": 6}, {"o": OUTPUT, "p": OUTPUT}),
    "features among the outputs": Case(
        lambda: two(lambda s, x: {"a": s.o(h := F.relu(s.c(x))), "features": h}), {},
        {"c": OUTPUT, "o": OUTPUT}),
    "complex output": Case(
        lambda: two(lambda s, x: torch.fft.fft2(s.o(F.relu(s.c(x))))), {"c": 6}, {"o": OUTPUT}),
    "bfloat16": Case(
        lambda: plain().to(torch.bfloat16), {"1": 6}, {"3": OUTPUT}),
    "float32 inside": Case(
        lambda: inside(torch.float32), {"b": 6}, {"o": OUTPUT}, dtype=torch.float32),
    "channels last": Case(
        lambda: plain().to(memory_format=torch.channels_last), {"1": 6}, {"3": OUTPUT}),
    "DataParallel": Case(lambda: nn.DataParallel(plain()), {"1": 6}, {"3": OUTPUT}),
    "compiled": Case(
        lambda: torch.compile(plain(), backend="eager"), {"1": 6}, {"3": OUTPUT}),
    "frozen": Case(lambda: plain().requires_grad_(False), {"1": 6}, {"3": OUTPUT}),
    "a layer that is never called": Case(
        lambda: two(lambda s, x: s.o(s.c(x)), unused=conv(3, 4)), {"c": 6},
        {"o": OUTPUT, "unused": "no output depends on it"}),
    "recurrent": Case(
        lambda: Net(lambda s, x: s.o(s.r(s.i(x))[0]), i=nn.Linear(4, 6), r=nn.LSTM(6, 5),
                    o=nn.Linear(5, 2)), {}, {"i": "r is a LSTM", "o": OUTPUT}, ((5, 4),)),
    "attention over tokens": Case(
        lambda: Net(lambda s, x: s.o(s.a(h := s.i(x), h, h, need_weights=False)[0] + h),
                    i=nn.Linear(4, 6), a=nn.MultiheadAttention(6, 2), o=nn.Linear(6, 2)), {},
        {"i": "a is a MultiheadAttention", "a.out_proj": "not called as a layer", "o": OUTPUT},
        ((5, 4),)),
}  # fmt: skip


def given(shapes: tuple[tuple[int, ...], ...], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(3, *shape, generator=generator)
        if shape
        else torch.randint(0, 5, (3,), generator=generator)
        for shape in shapes
    )


def made(name: str) -> tuple[Case, nn.Module, list[Group]]:
    case = CASES[name]
    torch.manual_seed(0)
    network = stir(case.make(), 1)
    return case, network, channel_groups("n", network, given(case.inputs, 2))


def off(some, others) -> float:
    """The largest difference of two answers, as a share of the first one's largest number."""
    pairs = list(zip(floating_tensors(some), floating_tensors(others), strict=True))
    assert pairs
    scale = max(float(a.detach().abs().max()) for a, _ in pairs)
    return max(float((a - b).detach().abs().max()) for a, b in pairs) / scale


def answer(network: nn.Module, inputs: tuple[Tensor, ...]):
    torch.manual_seed(5)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "input's size at dim=1 does not match num_features")
        return network(*inputs)


@pytest.mark.parametrize("name", CASES)
def test_what_is_cut_answers_as_with_zeros_and_what_is_not_says_why(name: str) -> None:
    case, network, groups = made(name)
    fine = [group for group in groups if not group.reason]
    assert {group.name: group.n for group in fine} == {f"n.{k}": n for k, n in case.cut.items()}
    left = {group.name.removeprefix("n."): group.reason for group in groups if group.reason}
    assert left.keys() == case.left.keys(), left
    for layer, why in case.left.items():
        assert re.search(why, left[layer]), left[layer]
    if not fine:
        return
    generator = torch.Generator().manual_seed(4)
    for seed, training in enumerate((False, True, False)):
        if training and not case.train:
            continue
        kept = {group.name: torch.rand(group.n, generator=generator) < 0.6 for group in fine}
        for bits in kept.values():
            bits[:2] = torch.tensor([True, False]) if seed else torch.tensor([False, True])
        cut = Cut.of([(group.slices, kept[group.name]) for group in fine])
        dense = copied({"n": network})["n"].to(case.dtype).train(training)
        masked, small = copied({"n": dense}), copied({"n": dense})
        cut.zero(masked)
        shrink(small, cut)
        inputs = tuple(
            x.to(case.dtype) if x.is_floating_point() else x for x in given(case.inputs, 10 + seed)
        )
        tolerance = 1e-9 if case.dtype == torch.float64 else 1e-5
        wanted = answer(masked["n"], inputs)
        assert off(wanted, answer(small["n"], inputs)) < tolerance
        assert off(wanted, answer(dense, inputs)) > 1e-4, "the cut changes nothing"
        own, before = plain_state(small["n"]), plain_state(network)
        for group in fine:
            for place in group.slices:
                size = int(cut.keep[place.tensor][place.dim].sum())
                assert own[place.tensor[2:]].shape[place.dim] == size < place.size
        assert own.keys() == before.keys()


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (Net(lambda s, x: s.c(x)[0, 99], c=conv(3, 6)), "IndexError: index 99"),
        (seq(conv(4, 6)), "RuntimeError: Given groups=1, weight of size"),
        (Net(lambda s, x: s.missing(x), c=conv(3, 6)), "AttributeError: 'Net' object"),
        (seq(conv(3, 6), conv(5, 6)), "channel by channel at layer '1' (RuntimeError: Given"),
    ],
)
def test_a_network_that_cannot_be_called_is_one_clear_error(network, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        channel_groups("n", network, given((IMAGE,), 0))
    assert "network 'n' cannot be followed channel by channel" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_torch_pruning_raises_is_one_clear_error(monkeypatch) -> None:
    import torch_pruning
    from torch_pruning.dependency import Node

    def fail(graph, model, **_):
        node = Node(next(p for p in model.network.modules() if isinstance(p, nn.Conv2d)), None)
        raise AssertionError(f"first line\nsecond line of {node}")

    monkeypatch.setattr(torch_pruning.DependencyGraph, "build_dependency", fail)
    told = r"at layer '\w+' \(AssertionError: first line\); where .* or prune the others"
    with pytest.raises(ConfigError, match=told):
        channel_groups("n", plain(), given((IMAGE,), 0))


def test_nothing_is_printed_or_warned(recwarn, capsys) -> None:
    channel_groups("n", CASES["scales outside of layers"].make(), given((IMAGE,), 0))
    channel_groups("n", CASES["InstanceNorm"].make(), given((IMAGE,), 0))
    assert not recwarn.list
    assert capsys.readouterr() == ("", "")


def test_a_network_that_cannot_be_copied_is_named() -> None:
    network = plain()
    network.lock = (i for i in range(3))
    with pytest.raises(ConfigError, match=r"network n cannot be copied .*generator"):
        channel_groups("n", network, given((IMAGE,), 0))


# --- the original and the surroundings -----------------------------------------------------------


@pytest.mark.parametrize("wrap", [old_spectral_norm, spectral_norm, old_weight_norm])
def test_a_network_in_the_middle_of_training_is_read_and_left_alone(wrap) -> None:
    """The older norms keep the last weight with its graph: plain deepcopy refuses that."""
    network = seq(wrap(conv(3, 6)), ReLU(), conv(6, 5), ReLU(), conv(5, 2)).train()
    network(torch.randn(2, 3, 8, 8)).sum().backward()
    before = {k: v.clone() for k, v in plain_state(network).items()}
    gradients = [p.grad.clone() for p in network.parameters()]
    random = torch.random.get_rng_state()
    groups = channel_groups("n", network, given((IMAGE,), 0))
    assert "n.2" in {group.name for group in groups if not group.reason}
    assert torch.equal(random, torch.random.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in plain_state(network).items())
    assert all(torch.equal(p.grad, g) for p, g in zip(network.parameters(), gradients, strict=True))
    assert all(module.training for module in network.modules())


def test_noise_of_a_trace_is_not_taken_from_the_callers_random_numbers() -> None:
    random = torch.random.get_rng_state()
    channel_groups("n", CASES["noise of one channel"].make().eval(), given((IMAGE,), 0))
    made = torch.random.get_rng_state()
    torch.random.set_rng_state(random)
    CASES["noise of one channel"].make()
    assert torch.equal(made, torch.random.get_rng_state())


def test_copies_share_what_the_networks_share() -> None:
    shared = conv(3, 3)
    both = copied({"a": seq(shared), "b": seq(shared, ReLU())})
    assert both["a"][0] is both["b"][0]
    assert both["a"][0] is not shared


def test_outputs_of_any_kind_are_found() -> None:
    @dataclass
    class Out:
        image: Tensor
        more: tuple

    x = torch.zeros(2)
    found = list(
        floating_tensors([Out(x, (x + 1, 3)), {"a": x + 2}, torch.ones(2, dtype=int), "b"])
    )
    assert [float(t[0]) for t in found] == [0, 1, 2]
    assert next(floating_tensors(torch.zeros(2, dtype=torch.complex64))).shape == (2, 2)


# --- the proof -----------------------------------------------------------------------------------


def half(network: nn.Module, *, wrong: bool = False) -> Cut:
    """Half of six channels away; if wrong, others in the reading layer than in the making one."""
    (group,) = [g for g in channel_groups("n", network, given((IMAGE,), 0)) if not g.reason]
    cut = Cut.of([(group.slices, torch.arange(6) < 3)])
    if wrong:
        cut.keep["n.3.weight"][1] = torch.arange(6) >= 3
    return cut


def test_the_proof_believes_what_is_right_and_refuses_what_is_wrong() -> None:
    network, inputs = stir(plain(), 0), given((IMAGE,), 0)
    for random in (False, True):
        assert prove("n", network, half(network), inputs, random=random) == ""
        why = prove("n", network, half(network, wrong=True), inputs, random=random)
        assert re.search(differs(), why)


def test_the_proof_is_not_fooled_by_a_network_whose_weights_are_zero() -> None:
    network, inputs = plain(), given((IMAGE,), 0)
    wrong = half(network, wrong=True)
    nn.init.zeros_(network[1].weight)
    nn.init.zeros_(network[1].bias)
    assert prove("n", network, wrong, inputs, random=False) == ""
    assert re.search(differs(), prove("n", network, wrong, inputs, random=True))


def test_the_proof_is_not_fooled_by_outputs_that_never_change() -> None:
    network = Net(lambda s, x: s.o(s.c(x)) * 0 + 1, c=conv(3, 6), o=conv(6, 2))
    (group, _) = channel_groups("n", network, given((IMAGE,), 0))
    assert group.reason == "its channels do not reach the outputs"


def test_a_channel_that_one_draw_of_weights_kills_is_not_refused() -> None:
    """With two channels behind a ReLU, one that is cut was often zero anyway."""
    for seed in range(12):
        torch.manual_seed(seed)
        layers = [nn.Linear(8, 2), ReLU(), nn.Linear(2, 2), ReLU(), nn.Linear(2, 2), ReLU()]
        network = seq(*layers, nn.Linear(2, 3))
        x = torch.zeros(1, 8)
        reasons = [g.reason for g in channel_groups("n", network, (x,))]
        assert reasons == ["", "", "", "it " + OUTPUT]


def test_a_linear_layer_of_many_pixels_is_read_in_no_time() -> None:
    """torch-pruning takes the square of their number: a minute, for what cannot be cut."""
    network = seq(
        nn.Linear(4, 5), ReLU(), nn.Linear(5, 6144), nn.Unflatten(1, (6, 32, 32)), nn.Tanh()
    )
    start = time.process_time()
    groups = channel_groups("n", network, given((VECTOR,), 0))
    assert time.process_time() - start < 5
    assert [group.reason for group in groups] == ["", "it " + OUTPUT]


def test_a_nan_is_no_proof() -> None:
    network = Net(lambda s, x: s.o(s.c(x)) / 0 * 0, c=conv(3, 6), o=conv(6, 2))
    (group, _) = channel_groups("n", network, given((IMAGE,), 0))
    assert "differ by nan" in group.reason


def test_outside_float64_the_tolerance_is_wider_but_there() -> None:
    network = inside(torch.float32)
    group = next(g for g in channel_groups("n", network, given((IMAGE,), 0)) if g.name == "n.b")
    cut = Cut.of([(group.slices, torch.arange(6) < 3)])
    assert prove("n", network, cut, given((IMAGE,), 0), random=True) == ""
    cut.keep["n.o.weight"][1] = torch.arange(6) >= 3
    assert re.search(differs(), prove("n", network, cut, given((IMAGE,), 0), random=True))


def test_a_network_too_coarse_to_prove_is_refused_for_its_differences_at_most() -> None:
    groups = channel_groups("n", inside(torch.bfloat16), given((IMAGE,), 0))
    reasons = {group.name: group.reason for group in groups}
    assert reasons.keys() == {"n.b", "n.o"}
    assert not reasons["n.b"] or re.search(differs(), reasons["n.b"])


def test_a_compiled_network_is_not_compiled_for_its_probes() -> None:
    calls = []

    def backend(graph, _):
        calls.append(graph)
        return graph

    network = torch.compile(plain(), backend=backend)
    channel_groups("n", network, given((IMAGE,), 0))
    assert prove("n", network, half(network), given((IMAGE,), 0), random=True) == ""
    assert not calls


def test_a_cut_of_the_outputs_is_no_cut() -> None:
    """One channel of an output would be compared with all of them, had it not another shape."""
    network = plain()
    keep = {"n.3.weight": {0: torch.arange(3) < 1}, "n.3.bias": {0: torch.arange(3) < 1}}
    with torch.no_grad():
        for tensor in (network[3].weight, network[3].bias):
            tensor.copy_(tensor[:1].expand_as(tensor).clone())
    for random in (True, False):
        why = prove("n", network, Cut(keep), given((IMAGE,), 0), random=random)
        assert why == "it " + OUTPUT


def test_a_group_of_a_table_alone_is_ranked_by_its_columns() -> None:
    _, _, groups = made("table of labels")
    table = next(group for group in groups if group.name == "n.e")
    assert [(p.tensor, p.dim) for p in table.filters] == [("n.e.weight", 1)]


class Modulated(nn.Module):
    """StyleGAN2's convolution: its weight is scaled by a style, the batch folded into groups."""

    def __init__(self, n: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.style = nn.Parameter(torch.randn(1, outputs, n, 3, 3)), nn.Linear(4, n)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        b, n, h, w = x.shape
        weight = self.weight * self.style(z).view(b, 1, n, 1, 1)
        weight = weight * (weight.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        made = F.conv2d(x.reshape(1, b * n, h, w), weight.flatten(0, 1), None, 1, 1, 1, b)
        return made.view(b, -1, h, w)


def test_weights_made_of_activations_are_left_by_name_not_followed_without_end(monkeypatch) -> None:
    def forward(s: Net, z: Tensor) -> Tensor:
        w = s.map(z)
        x = s.const.expand(len(z), -1, -1, -1)
        return s.c(F.leaky_relu(s.b(F.leaky_relu(s.a(x, w), 0.2), w), 0.2), w)

    torch.manual_seed(0)
    monkeypatch.setattr(tracing, "MOST_PLACES", 1 << 13)
    network = Net(
        forward,
        map=seq(nn.Linear(4, 8), ReLU(), nn.Linear(8, 4)),
        const=nn.Parameter(torch.randn(1, 16, 4, 4)),
        a=Modulated(16, 16),
        b=Modulated(16, 16),
        c=Modulated(16, 3),
    )
    groups = channel_groups("n", network, (torch.zeros(2, 4),))
    assert [group.name for group in groups if not group.reason] == ["n.map.0", "n.map.2"]
    left = {group.name: group.reason for group in groups if group.reason == TOO_FAR}
    assert left.keys() == {"n.a.style", "n.b.style", "n.c.style"}


def test_the_places_that_are_followed_are_counted_for_each_layer_anew(monkeypatch) -> None:
    layers = [nn.Linear(4, 3), ReLU(), nn.Linear(3, 32), nn.Unflatten(1, (2, 4, 4)), conv(2, 3)]
    network = seq(*layers, ReLU(), nn.Flatten(), nn.Linear(48, 5), ReLU(), nn.Linear(5, 2))
    reasons = [group.reason for group in channel_groups("n", network, (torch.zeros(2, 4),))]
    assert reasons.count(TOO_FAR) == 0
    monkeypatch.setattr(tracing, "MOST_PLACES", 40)
    monkeypatch.setattr(tracing, "FEWEST_PLACES", 1)
    groups = channel_groups("n", network, (torch.zeros(2, 4),))
    assert [g.name for g in groups if g.reason == TOO_FAR] == ["n.2", "n.4"]
    assert [g.name for g in groups if not g.reason] == ["n.0", "n.7"]
