"""What do the residual networks look like: those of ResNet-VAE and of ResNet-DCGAN.

Layer tables: the VAE's from the first author's public code (vae-pytorch, 24d745a, resnet_vae.py),
the GAN's from the only public network that has the paper's 2.2M, Christian Cosgrove's PyTorch
version of Miyato et al. 2018, "Spectral normalization for generative adversarial networks". All
biases of the tables are kept, so that the counts are theirs: those in front of a BatchNorm do
nothing.
"""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tombola.models.blocks import check_at_least, check_multiple, check_one_of
from tombola.models.gans import SIZES

Shape = tuple[int, int, int]


class _Sum(nn.Module):
    """The sum of a main branch and a skip, and what comes after it.

    No branch may work in place on what it is given: the other one reads it too.
    """

    def __init__(self, main: nn.Module, skip: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.main, self.skip, self.after = main, skip, after or nn.Identity()

    def forward(self, values: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H', W')."""
        return cast(Tensor, self.after(self.main(values) + self.skip(values)))


class ResidualEncoder(nn.Module):
    """Images (N, C, S, S) -> mean and log-variance of q(z|x), each (N, latent); S = 32, 64, ...

    Convolution C-w 3/2/1, basic blocks w, 2w, 4w, 8w (all but the first halve the size), the mean
    over positions, a linear layer 8w-2 latent.
    """

    def __init__(self, shape: Shape, width: int = 32, latent: int = 32) -> None:
        super().__init__()
        check_at_least(width=(width, 1), latent=(latent, 1))
        check_multiple(shape[1], 32)
        w = width
        self.main = nn.Sequential(
            nn.Conv2d(shape[0], w, 3, 2, 1, bias=False),
            nn.BatchNorm2d(w),
            nn.ReLU(inplace=True),
            basic_block(w, w, 1),
            basic_block(w, 2 * w, 2),
            basic_block(2 * w, 4 * w, 2),
            basic_block(4 * w, 8 * w, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * w, 2 * latent),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, S, S) in [-1, 1] -> (mean, log-variance), each (N, latent)."""
        mean, log_variance = self.main(images).chunk(2, dim=1)
        return mean, log_variance


class ResidualDecoder(nn.Module):
    """Latents (N, latent) -> images (N, C, S, S), S = 32, 64, ...

    A linear layer latent-8w, repeated over S/8 x S/8 positions; blocks to 4w, 2w and w that double
    the size, one that keeps it; convolution 3/1/1 to C with tanh.
    """

    def __init__(self, shape: Shape, width: int = 32, latent: int = 32) -> None:
        super().__init__()
        check_at_least(width=(width, 1), latent=(latent, 1))
        check_multiple(shape[1], 32)
        w = width
        self.main = nn.Sequential(
            nn.Linear(latent, 8 * w),
            nn.Unflatten(1, (-1, 1, 1)),
            nn.Upsample(scale_factor=shape[1] // 8),
            _decoding(8 * w, 4 * w),
            _decoding(4 * w, 2 * w),
            _decoding(2 * w, w),
            basic_block(w, w, 1),
            nn.Conv2d(w, shape[0], 3, 1, 1),
            nn.Tanh(),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, latent) -> images (N, C, S, S) in [-1, 1]."""
        return cast(Tensor, self.main(latents))


class ResidualGenerator(nn.Module):
    """Latents (N, latent) -> images (N, C, S, S), S = 32 or 64.

    A linear layer to w channels at S/8 x S/8, three blocks that double the size, BatchNorm, ReLU
    and a convolution 3/1/1 to C with tanh. Xavier's uniform weights, times sqrt 2 inside blocks.
    """

    def __init__(self, shape: Shape, width: int = 128, latent: int = 128) -> None:
        super().__init__()
        check_at_least(width=(width, 1), latent=(latent, 1))
        check_one_of(shape[1], SIZES)
        side = shape[1] // 8
        self.main = nn.Sequential(
            _drawn(nn.Linear(latent, width * side * side)),
            nn.Unflatten(1, (-1, side, side)),
            *(_generating(width) for _ in range(3)),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            _drawn(nn.Conv2d(width, shape[0], 3, 1, 1)),
            nn.Tanh(),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, latent) -> images (N, C, S, S) in [-1, 1]."""
        return cast(Tensor, self.main(latents))


class _SumPool(nn.Module):
    """The sum over positions."""

    def forward(self, values: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C)."""
        return values.sum((2, 3))


class ResidualDiscriminator(nn.Module):
    """Images (N, C, S, S) -> logits (N,) of being real, S = 32 or 64; all layers spectral-normed.

    Four blocks of w channels, of which the first two halve the size, ReLU, the sum over positions
    and a linear layer. The sum as in table 4 of Miyato et al.: of a mean, the hinge loss of a
    network so smooth sees a 64th, its slope stays flat, and samples lose classes
    (docs/deviations.md).
    """

    def __init__(self, shape: Shape, width: int = 128) -> None:
        super().__init__()
        check_at_least(width=(width, 1))
        check_one_of(shape[1], SIZES)
        self.main = nn.Sequential(
            _seeing(shape[0], width),
            _judging(width, halve=True),
            _judging(width),
            _judging(width),
            nn.ReLU(inplace=True),
            _SumPool(),
            spectral_norm(_drawn(nn.Linear(width, 1))),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, S, S) in [-1, 1] -> logits (N,)."""
        return cast(Tensor, self.main(images).flatten())


def basic_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The basic block of He et al. 2016; a 1x1 convolution skips where the shape changes.

    Images (N, inputs, H, W) -> (N, outputs, H / stride, W / stride).
    """
    main = nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(outputs),
    )
    if stride == 1 and inputs == outputs:
        return _Sum(main, nn.Identity(), nn.ReLU(inplace=True))
    skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return _Sum(main, skip, nn.ReLU(inplace=True))


def _decoding(inputs: int, outputs: int) -> _Sum:
    """The basic block the other way: doubles the size by repetition, in both branches."""
    main = nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, 1, 1, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2),
        nn.Conv2d(inputs, outputs, 3, 1, 1),
        nn.BatchNorm2d(outputs),
    )
    skip = nn.Sequential(
        nn.Upsample(scale_factor=2),
        nn.Conv2d(inputs, outputs, 3, 1, 1),
        nn.BatchNorm2d(outputs),
    )
    return _Sum(main, skip, nn.ReLU(inplace=True))


def _generating(width: int) -> _Sum:
    """BatchNorm, ReLU, twice the size, 3x3, BatchNorm, ReLU, 3x3; the skip doubles the size."""
    main = nn.Sequential(
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2),
        _drawn(nn.Conv2d(width, width, 3, 1, 1), math.sqrt(2)),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        _drawn(nn.Conv2d(width, width, 3, 1, 1), math.sqrt(2)),
    )
    return _Sum(main, nn.Upsample(scale_factor=2))


def _seeing(channels: int, width: int) -> _Sum:
    """The first block of the discriminator: no ReLU in front, half the size."""
    main = nn.Sequential(
        _normed(channels, width, 3),
        nn.ReLU(inplace=True),
        _normed(width, width, 3),
        nn.AvgPool2d(2),
    )
    return _Sum(main, nn.Sequential(nn.AvgPool2d(2), _normed(channels, width, 1)))


def _judging(width: int, halve: bool = False) -> _Sum:
    """ReLU, 3x3, ReLU, 3x3; with ``halve`` half the size, and a 1x1 convolution in the skip."""
    layers: list[nn.Module] = [
        nn.ReLU(),
        _normed(width, width, 3),
        nn.ReLU(inplace=True),
        _normed(width, width, 3),
    ]
    if not halve:
        return _Sum(nn.Sequential(*layers), nn.Identity())
    skip = nn.Sequential(_normed(width, width, 1), nn.AvgPool2d(2))
    return _Sum(nn.Sequential(*layers, nn.AvgPool2d(2)), skip)


def _normed(inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution of the discriminator, its spectral norm held at 1."""
    gain = 1.0 if kernel == 1 else math.sqrt(2)
    return spectral_norm(_drawn(nn.Conv2d(inputs, outputs, kernel, 1, kernel // 2), gain))


def _drawn(layer: nn.Linear | nn.Conv2d, gain: float = 1.0) -> nn.Module:
    """A layer with Xavier's uniform weights."""
    nn.init.xavier_uniform_(layer.weight, gain)
    return layer
