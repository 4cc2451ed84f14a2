"""How are adversarial networks trained: DCGAN.

Radford, Metz and Chintala 2016, section 4: Adam 2e-4 with betas (0.5, 0.999), batches of 128,
weights drawn from N(0, 0.02^2). The pruning paper's authors trained with batches of 100 and Adam's
default betas, on probabilities instead of logits, and sent gradients of the discriminator's loss
through the generator; we do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from tombola.models.blocks import check_at_least, check_one_of
from tombola.models.gans import SIZES, Discriminator, Generator
from tombola.tasks.base import Networks, Shape, Task, Turn


class DCGAN(Task):
    """DCGAN of four levels with latent 128 (6,560,448 weights on 32x32 colour images)."""

    family = "gan"
    width: int = 64
    """Channels of the outermost level of both networks; each further level has twice as many."""
    latent = 128
    batch_size = 128
    learning_rate = 2e-4
    betas = (0.5, 0.999)

    turns = (
        Turn("discriminator", learns=("discriminator",)),
        Turn("generator", learns=("generator",), images=False),
    )
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # A minute on one core: few small steps, so a higher rate than section 4's.
        "quick": {
            "width": 16,
            "latent": 64,
            "batch_size": 32,
            "learning_rate": 5e-4,
            "steps": 600,
        },
        "paper": {"epochs": 200},
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_at_least(width=(self.width, 1), latent=(self.latent, 1))
        check_one_of(self.size, SIZES)

    def networks(self, shape: Shape) -> Networks:
        """New generator and discriminator for images (C, S, S), S = 32 or 64."""
        return {
            "generator": Generator(shape, self.width, self.latent),
            "discriminator": Discriminator(shape, self.width),
        }

    def loss(self, turn: str, networks: Networks, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Cross-entropy on logits: the discriminator's (``loss`` = ``real`` + ``fake``), or G's.

        Goodfellow et al. 2014: equation 1 for the discriminator, its section 3's non-saturating
        form -log D(G(z)) for the generator; -log sigmoid(x) = softplus(-x). Only the length of
        ``images`` matters in the generator's turn.
        """
        latents = torch.randn(len(images), self.latent, device=images.device, dtype=images.dtype)
        generator, discriminator = networks["generator"], networks["discriminator"]
        if turn == "generator":
            return softplus(-discriminator(generator(latents))).mean()
        # Without a graph: the discriminator's loss must not reach, or pay for, the generator.
        with torch.no_grad():
            fakes = generator(latents)
        # Reals and fakes apart: BatchNorm over a mixed batch would tell the two from each other.
        real = softplus(-discriminator(images)).mean()
        fake = softplus(discriminator(fakes)).mean()
        return {"loss": real + fake, "real": real, "fake": fake}

    def sample(self, networks: Networks, latents: Tensor) -> Tensor:
        """Latents (N, latent) drawn from N(0, I) -> images (N, C, H, W) in [-1, 1]."""
        images: Tensor = networks["generator"](latents)
        return images

    def judge_loss(self, networks: Networks, images: Tensor, latents: Tensor) -> dict[str, Tensor]:
        """``discriminator_loss`` (N,) in nats: of each real image plus of the fake beside it."""
        discriminator = networks["discriminator"]
        fakes = self.sample(networks, latents)
        return {
            "discriminator_loss": softplus(-discriminator(images)) + softplus(discriminator(fakes))
        }
