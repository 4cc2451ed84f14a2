"""What do DCGAN's generator and discriminator look like.

A. Radford, L. Metz, S. Chintala, "Unsupervised representation learning with deep convolutional
generative adversarial networks", 2016. The four levels w-2w-4w-8w are its 64x64 networks; at 32x32
the generator's last layer keeps the size (3x3, stride 1) and the discriminator's sees 2x2. The
pruning paper's "6.5M" fits these (6,560,448 weights at w = 64, latent 128, colour); its authors'
public code has three levels only.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

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
    C with tanh: convolution 3/1/1 at S = 32, transposed convolution 4/2/1 at S = 64.
    """

    def __init__(self, shape: Shape, width: int = 64, latent: int = 128) -> None:
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
            *up(latent, 8 * w, from_vector=True),
            *up(8 * w, 4 * w),
            *up(4 * w, 2 * w),
            *up(2 * w, w),
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
    """

    def __init__(self, shape: Shape, width: int = 64) -> None:
        super().__init__()
        check_at_least(width=(width, 1))
        check_one_of(shape[1], SIZES)
        w = width
        self.main = nn.Sequential(
            *down(shape[0], w, norm=False, slope=LEAK),
            *down(w, 2 * w, slope=LEAK),
            *down(2 * w, 4 * w, slope=LEAK),
            *down(4 * w, 8 * w, slope=LEAK),
            nn.Conv2d(8 * w, 1, shape[1] // 16),
        )
        draw_weights(self)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, S, S) in [-1, 1] -> logits (N,)."""
        return cast(Tensor, self.main(images).flatten())
