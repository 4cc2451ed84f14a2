"""What do the variational autoencoder's encoder and decoder look like.

Layer table: the first author's public code (vae-pytorch, 24d745a), with three deviations: the two
heads are not batch-normalised, layers in front of a BatchNorm have no bias, and at sizes beyond 32
the kernel between features and latent vector grows with the features.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from tombola.models.blocks import as_pixels, check_at_least, check_multiple, down, up

Shape = tuple[int, int, int]


class VariationalEncoder(nn.Module):
    """Images (N, C, S, S) -> mean and log-variance of q(z|x), each (N, latent).

    Four times convolution 4/2/1, BatchNorm, ReLU: C-w-2w-4w-8w; then a convolution over all that is
    left (2x2 at S = 32) to 2 latent. The heads are free: BatchNorm on them, as in the authors'
    code, pins the batch's mean log-variance to a learned constant and ties its images together.
    """

    def __init__(self, shape: Shape, width: int = 64, latent: int = 16) -> None:
        super().__init__()
        check_at_least(width=(width, 1), latent=(latent, 1))
        check_multiple(shape[1], 16)
        w = width
        self.main = nn.Sequential(
            *down(shape[0], w),
            *down(w, 2 * w),
            *down(2 * w, 4 * w),
            *down(4 * w, 8 * w),
            nn.Conv2d(8 * w, 2 * latent, shape[1] // 16),
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, C, S, S) in [-1, 1] -> (mean, log-variance), each (N, latent)."""
        heads: Tensor = self.main(images).flatten(1)
        mean, log_variance = heads.chunk(2, dim=1)
        return mean, log_variance


class VariationalDecoder(nn.Module):
    """Latents (N, latent) -> images (N, C, S, S).

    A transposed convolution to 8w at S/16 (2x2 at S = 32), three of 4/2/1 down to w, each with
    BatchNorm and ReLU; the last 4/2/1 to C with tanh.
    """

    def __init__(self, shape: Shape, width: int = 64, latent: int = 16) -> None:
        super().__init__()
        check_at_least(width=(width, 1), latent=(latent, 1))
        check_multiple(shape[1], 16)
        w = width
        self.main = nn.Sequential(
            *up(latent, 8 * w, kernel=shape[1] // 16, from_vector=True),
            *up(8 * w, 4 * w),
            *up(4 * w, 2 * w),
            *up(2 * w, w),
            nn.ConvTranspose2d(w, shape[0], 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (N, latent) -> images (N, C, S, S) in [-1, 1]."""
        return cast(Tensor, self.main(as_pixels(latents)))
