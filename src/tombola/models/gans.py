"""What do the convolutional generator and discriminators look like: DCGAN's and SNGAN's.

A. Radford, L. Metz, S. Chintala, "Unsupervised representation learning with deep convolutional
generative adversarial networks", 2016. The four levels w-2w-4w-8w are its 64x64 networks; at 32x32
the generator's last layer keeps the size (3x3, stride 1) and the discriminator's sees 2x2. The
pruning paper's "6.5M" fits these (6,560,448 weights at w = 64, latent 128, colour); its authors'
public code has three levels only. Its "6.7M" of SNGAN fits Christian Cosgrove's PyTorch version of
Miyato et al. 2018, "Spectral normalization for generative adversarial networks" (6,741,572
parameters): the same generator, with biases, against a discriminator of seven convolutions.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from tombola.models.blocks import as_pixels, check_at_least, check_one_of, down, up

Shape = tuple[int, int, int]
SIZES = (32, 64)
"""Heights and widths of images that the two networks are made for, in pixels."""
INITIAL_DEVIATION = 0.02
LEAK = 0.2


def draw_weights(network: nn.Module) -> None:
    """Draw all convolution weights from N(0, 0.02^2) and zero their biases (DCGAN, section 4)."""
    for module in network.modules():
        # On the meta device a normal draw imports 800 modules: a second, for nothing.
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not module.weight.is_meta:
            nn.init.normal_(module.weight, 0.0, INITIAL_DEVIATION)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class Generator(nn.Module):
    """Latents (N, latent) -> images (N, C, S, S), S = 32 or 64.

    Transposed convolutions latent-8w 4/1/0, 8w-4w-2w-w 4/2/1, each with BatchNorm and ReLU; then to
    C with tanh: convolution 3/1/1 at S = 32, transposed convolution 4/2/1 at S = 64. ``bias``: also
    in front of a BatchNorm, where it does nothing but count.
    """

    def __init__(
        self, shape: Shape, width: int = 64, latent: int = 128, bias: bool = False
    ) -> None:
        super().__init__()
        check_at_least(width=(width, 1), latent=(latent, 1))
        check_one_of(shape[1], SIZES)
        w, channels = width, shape[0]
        last = (
            nn.Conv2d(w, channels, 3, 1, 1)
            if shape[1] == 32
            else nn.ConvTranspose2d(w, channels, 4, 2, 1)
        )
        self.main = nn.Sequential(
            *up(latent, 8 * w, from_vector=True, bias=bias),
            *up(8 * w, 4 * w, bias=bias),
            *up(4 * w, 2 * w, bias=bias),
            *up(2 * w, w, bias=bias),
            last,
            nn.Tanh(),
        )
        draw_weights(self)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, latent) -> images (N, C, S, S) in [-1, 1]."""
        return cast(Tensor, self.main(as_pixels(latents)))


class Discriminator(nn.Module):
    """Images (N, C, S, S) -> logits (N,) of being real, S = 32 or 64.

    Convolutions C-w-2w-4w-8w 4/2/1 with LeakyReLU 0.2, BatchNorm on all but the first (DCGAN,
    section 3: normalising the input destabilises), then one over all that is left: 2x2 or 4x4.
    Without ``norm`` no layer has a BatchNorm, as a penalty on each image's own gradient needs it.
    """

    def __init__(self, shape: Shape, width: int = 64, norm: bool = True) -> None:
        super().__init__()
        check_at_least(width=(width, 1))
        check_one_of(shape[1], SIZES)
        w = width
        self.main = nn.Sequential(
            *down(shape[0], w, norm=False, slope=LEAK),
            *down(w, 2 * w, norm=norm, slope=LEAK),
            *down(2 * w, 4 * w, norm=norm, slope=LEAK),
            *down(4 * w, 8 * w, norm=norm, slope=LEAK),
            nn.Conv2d(8 * w, 1, shape[1] // 16),
        )
        draw_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, S, S) in [-1, 1] -> logits (N,)."""
        return cast(Tensor, self.main(images).flatten())


class SpectralDiscriminator(nn.Module):
    """Images (N, C, S, S) -> logits (N,) of being real, S = 32 or 64; all layers spectral-normed.

    Convolutions C-w 3/1/1, w 4/2/1, 2w 3/1/1, 2w 4/2/1, 4w 3/1/1, 4w 4/2/1, 8w 3/1/1 with LeakyReLU
    0.1, then a linear layer over all that is left. No BatchNorm; PyTorch's own initial weights,
    whose scale the norm takes out.
    """

    def __init__(self, shape: Shape, width: int = 64) -> None:
        super().__init__()
        check_at_least(width=(width, 1))
        check_one_of(shape[1], SIZES)
        w = width
        layers: list[nn.Module] = []
        inputs = shape[0]
        for index, outputs in enumerate((w, w, 2 * w, 2 * w, 4 * w, 4 * w, 8 * w)):
            kernel, stride = (4, 2) if index % 2 else (3, 1)
            layers.append(spectral_norm(nn.Conv2d(inputs, outputs, kernel, stride, 1)))
            layers.append(nn.LeakyReLU(0.1, inplace=True))
            inputs = outputs
        left = (shape[1] // 8) ** 2
        self.main = nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(8 * w * left, 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, S, S) in [-1, 1] -> logits (N,)."""
        return cast(Tensor, self.main(images).flatten())
