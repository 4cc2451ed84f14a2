"""What do the paper's two autoencoders look like: the linear and the convolutional one.

Layer tables: the first author's public code (autoencoder-pytorch, 7b31cca).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from tombola.models.blocks import check_at_least, check_multiple

Shape = tuple[int, int, int]


def _perceptron(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers of the given widths with ReLU between them and none after the last."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        # In place saves an allocation per layer: a linear layer does not need its own output.
        layers += [nn.Linear(inputs, outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-1])


class LinearEncoder(nn.Module):
    """Images (N, C, H, W) -> codes (N, code) by linear layers CHW-w-w/2-12-code.

    No activation on the code: a ReLU on three numbers would soon leave one of them zero for good.
    """

    def __init__(self, shape: Shape, width: int = 128, code: int = 3) -> None:
        super().__init__()
        check_at_least(width=(width, 2), code=(code, 1))
        channels, height, across = shape
        self.main = _perceptron((channels * height * across, width, width // 2, 12, code))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [-1, 1] -> codes (N, code)."""
        return cast(Tensor, self.main(images.flatten(1)))


class LinearDecoder(nn.Module):
    """Codes (N, code) -> images (N, C, H, W) by linear layers code-12-w/2-w-CHW and tanh."""

    def __init__(self, shape: Shape, width: int = 128, code: int = 3) -> None:
        super().__init__()
        check_at_least(width=(width, 2), code=(code, 1))
        channels, self.height, self.across = shape
        pixels = channels * self.height * self.across
        self.main = _perceptron((code, 12, width // 2, width, pixels))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (N, code) -> images (N, C, H, W) in [-1, 1]."""
        images: Tensor = self.main(codes).tanh_()
        return images.view(len(images), -1, self.height, self.across)


def draw_he(network: nn.Module) -> None:
    """Draw convolution weights from N(0, 2 / inputs), inputs = values that one output sums.

    He et al., "Delving deep into rectifiers", 2015, equation 10; biases zero. The authors' code
    keeps PyTorch's default, with a sixth of that variance: over ten layers without normalisation
    the signal dies, and on MNIST (Adam 1e-3, widths 8 and 32) the tanh saturated before any image
    came through.
    """
    for module in network.modules():
        # On the meta device a normal draw imports 800 modules: a second, for nothing.
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or module.weight.is_meta:
            continue
        inputs = module.in_channels * math.prod(module.kernel_size)
        if isinstance(module, nn.ConvTranspose2d):  # an output sees one in stride^2 kernel entries
            inputs //= math.prod(module.stride)
        nn.init.normal_(module.weight, 0.0, math.sqrt(2 / inputs))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class ConvEncoder(nn.Module):
    """Images (N, C, S, S) -> codes (N, 16 width, S/16, S/16), S a multiple of 16.

    Layers as kernel/stride/padding; height at S = 32 behind each: 3/1/1 (32), 4/2/1 (16),
    2/2/2 (10), 3/1/1 (10), pool 2/2 (5), 3/2/1 (3), pool 2/1 (2); ReLU, no normalisation.
    """

    def __init__(self, shape: Shape, width: int = 32) -> None:
        super().__init__()
        check_at_least(width=(width, 1))
        check_multiple(shape[1], 16)
        n = width
        self.main = nn.Sequential(
            nn.Conv2d(shape[0], n, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(n, 2 * n, 4, 2, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * n, 4 * n, 2, 2, 2),
            nn.ReLU(inplace=True),
            nn.Conv2d(4 * n, 8 * n, 3, 1, 1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 2),
            nn.Conv2d(8 * n, 16 * n, 3, 2, 1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2, 1),
        )
        draw_he(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, S, S) in [-1, 1] -> codes (N, 16 width, S/16, S/16), not negative."""
        return cast(Tensor, self.main(images))


class ConvDecoder(nn.Module):
    """Codes (N, 16 width, S/16, S/16) -> images (N, C, S, S).

    Transposed convolutions as kernel/stride/padding; height at S = 32 behind each: 3/2/0 (5),
    2/2/0 (10), 2/2/1 (18), 5/1/1 (20), 2/2/4 (32); ReLU between, tanh at the end.
    """

    def __init__(self, shape: Shape, width: int = 32) -> None:
        super().__init__()
        check_at_least(width=(width, 1))
        check_multiple(shape[1], 16)
        n = width
        self.main = nn.Sequential(
            nn.ConvTranspose2d(16 * n, 8 * n, 3, 2, 0),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(8 * n, 4 * n, 2, 2, 0),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(4 * n, 2 * n, 2, 2, 1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * n, n, 5, 1, 1),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(n, shape[0], 2, 2, 4),
            nn.Tanh(),
        )
        draw_he(self)

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (N, 16 width, S/16, S/16) -> images (N, C, S, S) in [-1, 1]."""
        return cast(Tensor, self.main(codes))
