"""How is a diffusion model trained, and how does it make images: DDPM's loss, DDIM's sampling.

Ho, Jain and Abbeel 2020, "Denoising diffusion probabilistic models": noise is added to an image in
1,000 times, x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) eps, and a network learns to tell it, eps. Song,
Meng and Ermon 2021, "Denoising diffusion implicit models": images are made of noise by such a
network in few steps, without drawing anything on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from tombola.errors import ConfigError
from tombola.models.blocks import check_at_least
from tombola.models.unet import UNet
from tombola.tasks.base import Networks, Shape, Task

TIMES = 1000
"""T of Ho et al. 2020, section 4; time 0 is the image, time T nearly pure noise."""
FIRST_BETA, LAST_BETA = 1e-4, 0.02
"""The variances of the noise added at times 1 and T; between them they lie on a line (there)."""


def alphas_bar() -> np.ndarray[Any, np.dtype[np.float64]]:
    """The share of an image's variance that is left at times 0 to T, (T + 1,) from 1 to 4e-5.

    a_t = the product of 1 - beta_s over s = 1..t (Ho et al. 2020, section 2).
    """
    betas = np.linspace(FIRST_BETA, LAST_BETA, TIMES)
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def noised(images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """Images (N, C, H, W) and noise of their shape at whole times (N,) from 1 to T: x_t, the same.

    Ho et al. 2020, equation 4.
    """
    left = _left(times, images)
    return left.sqrt() * images + (1 - left).sqrt() * noise


def _left(times: Tensor, images: Tensor) -> Tensor:
    """alphas_bar at whole times (N,), (N, 1, 1, 1), as precise as the images."""
    table = torch.as_tensor(alphas_bar(), device=images.device)
    return table[times].to(images.dtype)[:, None, None, None]


def ddim_step(noisy: Tensor, noise: Tensor, now: float, then: float) -> Tensor:
    """From x_t and the noise that is seen in it to x at an earlier time, without drawing anything.

    ``now``, ``then``: alphas_bar at the two times. Song et al. 2021, equation 12 with eta (their
    sigma) 0: the image that is seen, with as much of the same noise as belongs to the other time.
    """
    image = (noisy - math.sqrt(1 - now) * noise) / math.sqrt(now)
    return math.sqrt(then) * image + math.sqrt(1 - then) * noise


def sampling_times(count: int) -> list[int]:
    """The times that a sampler of ``count`` steps passes, T first, 0 last: floor(T i / count).

    Song et al. 2021, appendix D.2, "linear".
    """
    return [TIMES * i // count for i in range(count, -1, -1)]


class DDPM(Task):
    """A small U-Net that learns the noise in images; 50 DDIM steps make an image of noise.

    Defaults: the CIFAR-10 network and optimizer of Ho et al. 2020, section 4 and appendix B, at
    half the width: Adam 2e-4, batches of 128. They train for 800,000 steps at a constant rate and
    sample with averaged weights; ours falls along a half cosine, which does the same for a shorter
    training (``--set train.ema=0.999`` adds averages).

    The noise seen in x_t is sqrt(1 - a_t) x_t + sqrt(a_t) U(x_t, t), with U what the U-Net says:
    the v of Salimans and Ho 2022, "Progressive distillation", appendix D. So at large t, where x_t
    is the noise, next to nothing is left to learn, and errors are not blown up when an image is
    made. The loss stays that of the noise.
    """

    family = "diffusion"
    judged_samples = 1000
    width: int = 64
    """Channels of the outermost level."""
    levels: tuple[int, ...] = (1, 2, 2, 2)
    """Each level's channels as multiples of the width; each but the last halves the size."""
    blocks: int = 2
    """Residual blocks of each level down, and as many up."""
    patch: int = 1
    """Pixels a side that the outermost level takes as one."""
    sampling_steps: int = 50
    """Calls of the network that make an image."""
    batch_size = 128
    learning_rate = 2e-4
    cosine = True
    roles: ClassVar[Mapping[str, str]] = {"denoiser": "generator"}
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # A minute on one core: few pixels at the outermost level, small batches, a higher rate.
        "quick": {
            "width": 16,
            "levels": (1, 2, 2),
            "blocks": 1,
            "patch": 2,
            "batch_size": 32,
            "learning_rate": 2e-3,
            "steps": 1500,
        },
        "paper": {"epochs": 200},
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_at_least(sampling_steps=(self.sampling_steps, 1))
        if min(self.levels, default=0) < 1:
            raise ConfigError(
                f"levels is {list(self.levels)}; it takes one whole number from 1 for each level"
            )
        if self.sampling_steps > TIMES:
            raise ConfigError(
                f"sampling_steps is {self.sampling_steps}; there are {TIMES} times: set fewer"
            )

    def image_shape(self, data_channels: int) -> Shape:
        """(C, S, S), and with it the length of a latent: the noise that an image is made of."""
        return self._fitted(super().image_shape(data_channels))

    def _fitted(self, shape: Shape) -> Shape:
        """The shape (C, H, W); ConfigError if the option ``latent`` is of another one."""
        size = math.prod(shape)
        if self.latent not in (0, size):
            raise ConfigError(
                f"task option 'latent' is {self.latent}, but an image of {shape} is made of {size} "
                "numbers; leave task.latent out"
            )
        self.latent = size
        return shape

    def networks(self, shape: Shape) -> Networks:
        """A new denoiser for images (C, S, S): what is seen and its times to the noise in it."""
        shape = self._fitted(shape)
        return {"denoiser": UNet(shape, self.width, self.levels, self.blocks, self.patch)}

    def loss(self, turn: str, networks: Networks, images: Tensor) -> Tensor | dict[str, Tensor]:
        """The squared error of the predicted noise at random times, a mean over all: a scalar.

        L_simple: Ho et al. 2020, equation 14, with their mean over pixels.
        """
        del turn
        times = torch.randint(1, TIMES + 1, (len(images),), device=images.device)
        return self._errors(networks, images, torch.randn_like(images), times).mean()

    def noise_in(self, networks: Networks, noisy: Tensor, times: Tensor) -> Tensor:
        """The noise that is seen in x_t (N, C, S, S) at times (N,) or (1,): the same shape."""
        left = _left(times, noisy)
        said: Tensor = networks["denoiser"](noisy, times).to(noisy.dtype)
        return (1 - left).sqrt() * noisy + left.sqrt() * said

    def _errors(self, networks: Networks, images: Tensor, noise: Tensor, times: Tensor) -> Tensor:
        """Squared errors of the predicted noise, means over pixels: (N,), precise as images."""
        seen = self.noise_in(networks, noised(images, noise, times), times)
        return (seen - noise).square().flatten(1).mean(1)

    def sample(self, networks: Networks, latents: Tensor) -> Tensor:
        """Latents (N, C S S) from N(0, I) -> images (N, C, S, S) in [-1, 1], a pure function."""
        images = latents.reshape(len(latents), -1, self.size, self.size)
        for now, then, time in self._passed():
            times = torch.full((1,), time, device=latents.device)
            images = ddim_step(images, self.noise_in(networks, images, times), now, then)
        return images.clamp(-1, 1)

    def _passed(self) -> Iterator[tuple[float, float, int]]:
        """(alphas_bar before a sampling step, after it, its time), the noisiest first."""
        left = alphas_bar()
        for time, next_time in pairwise(sampling_times(self.sampling_steps)):
            yield float(left[time]), float(left[next_time]), time

    def judge_loss(
        self, networks: Networks, images: Tensor, latents: Tensor, samples: Tensor | None
    ) -> dict[str, Tensor]:
        """``denoising_loss`` (N,): the loss of each image, its times spread evenly over 1..T.

        The latents are the noise.
        """
        del samples
        spread = torch.arange(len(images), device=images.device) * TIMES // len(images) + 1
        noise = latents.to(images.dtype).view_as(images)
        return {"denoising_loss": self._errors(networks, images, noise, spread)}
