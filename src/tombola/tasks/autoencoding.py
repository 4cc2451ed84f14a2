"""How are autoencoders trained: the linear and the convolutional one, three VAEs.

Hyperparameters not explained here are those of the first author's public code: Adam 1e-3 with
default betas, coupled weight decay 1e-5, batches of 128, 100 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from tombola.errors import ConfigError
from tombola.models.autoencoders import ConvDecoder, ConvEncoder, LinearDecoder, LinearEncoder
from tombola.models.blocks import check_at_least, check_multiple
from tombola.models.gans import Generator
from tombola.models.residual import ResidualDecoder, ResidualEncoder
from tombola.models.vaes import VariationalDecoder, VariationalEncoder
from tombola.tasks.base import Networks, Shape, Task


class _Autoencoder(Task):
    """Encoder and decoder that learn together by the mean squared error over all pixels."""

    family = "autoencoder"
    batch_size = 128
    learning_rate = 1e-3
    betas = (0.9, 0.999)
    weight_decay = 1e-5

    def loss(self, turn: str, networks: Networks, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Squared error of the reconstruction, averaged over pixels and batch: a scalar."""
        del turn
        return functional.mse_loss(self.reconstruct(networks, images), images)

    def reconstruct(self, networks: Networks, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> the decoder's answer to their codes, same shape."""
        images_again: Tensor = networks["decoder"](networks["encoder"](images))
        return images_again


class LinearAE(_Autoencoder):
    """The paper's linear autoencoder for MNIST: 784-128-64-12-3 and back (219,891 parameters)."""

    size = 28
    channels = 1
    width: int = 128
    """Units of the outer hidden layers; the next ones have half of it, the innermost 12."""
    code: int = 3
    """Numbers in the code (not ``latent``: there is no prior to sample from)."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Few steps, so small batches and a higher rate: 1e-3 gets two thirds as far.
        "quick": {"width": 64, "batch_size": 64, "learning_rate": 3e-3, "steps": 400},
        # The code's constant 1e-3 still gains 1.3% in the last fifth of 20 epochs on MNIST (0.1360
        # at the end); 2e-3 falling along a cosine gains 0.5% and ends lower (0.1327), on seed 0.
        "paper": {"epochs": 100, "learning_rate": 2e-3, "cosine": True},
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_at_least(width=(self.width, 2), code=(self.code, 1), size=(self.size, 1))

    def networks(self, shape: Shape) -> Networks:
        """New encoder and decoder for images (C, H, W) of any size."""
        return {
            "encoder": LinearEncoder(shape, self.width, self.code),
            "decoder": LinearDecoder(shape, self.width, self.code),
        }


class ConvAE(_Autoencoder):
    """The paper's convolutional autoencoder (2,937,507 parameters on colour images)."""

    width: int = 32
    """Channels behind the first convolution; the code has 16 times as many."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"width": 8, "batch_size": 64, "steps": 1000},
        "paper": {"epochs": 100},
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_at_least(width=(self.width, 1))
        check_multiple(self.size, 16)

    def networks(self, shape: Shape) -> Networks:
        """New encoder and decoder for images (C, S, S), S a multiple of 16."""
        return {
            "encoder": ConvEncoder(shape, self.width),
            "decoder": ConvDecoder(shape, self.width),
        }


class VAE(_Autoencoder):
    """The paper's VAE (5,613,347 parameters on 32x32 colour images)."""

    family = "vae"
    width: int = 64
    """Channels of the outermost level; each further level has twice as many."""
    latent = 16
    beta: float = 1.0
    """Weight of the KL term."""
    decoder: str = "own"
    """own, or generator: DCGAN's, so that one network can be played in both tasks."""
    _added = ("decoder",)
    _decoders: ClassVar[tuple[str, ...]] = ("own", "generator")
    _size_factor = 16
    """Image sizes are a multiple of this."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"width": 16, "latent": 16, "batch_size": 64, "steps": 1200},
        "paper": {"epochs": 100},
        # Width, latent and decoder are those of DCGAN's preset of this name. The generator's small
        # initial weights want a high rate: of five trainings on MNIST (seed 0, 1,000 images judged)
        # 1e-3 for 800 steps ended at a Frechet distance of 43, 4e-3 for 1,200 at 9.7.
        "shared": {
            "decoder": "generator",
            "width": 16,
            "latent": 64,
            "batch_size": 32,
            "learning_rate": 4e-3,
            "cosine": True,
            "steps": 1200,
        },
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_at_least(width=(self.width, 1), latent=(self.latent, 1), beta=(self.beta, 0))
        check_multiple(self.size, self._size_factor)
        if self.decoder not in self._decoders:
            raise ConfigError(
                f"task option 'decoder' is {self.decoder!r}; {type(self).__name__} has: "
                f"{', '.join(self._decoders)}"
            )

    def networks(self, shape: Shape) -> Networks:
        """New encoder and decoder for images (C, S, S), S a multiple of 16.

        The decoder ``generator`` is for S = 32 or 64.
        """
        decoder = Generator if self.decoder == "generator" else VariationalDecoder
        return {
            "encoder": VariationalEncoder(shape, self.width, self.latent),
            "decoder": decoder(shape, self.width, self.latent),
        }

    def loss(self, turn: str, networks: Networks, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Negative ELBO per image: ``loss`` = ``reconstruction`` + beta ``kl``, scalars in nats.

        Kingma and Welling, "Auto-encoding variational Bayes", 2014, equation 10, with one draw of
        the posterior; beta: Higgins et al., 2017, equation 4. ``reconstruction`` is the squared
        error summed over pixels: -log p(x|z) of a Gaussian with variance 1/2, less a constant.
        """
        del turn
        mean, log_variance = _posterior(networks, images)
        noise = torch.randn_like(mean)
        images_again = networks["decoder"](mean + (0.5 * log_variance).exp() * noise)
        reconstruction = _squared_error(images_again, images).mean()
        kl = _kl_from_prior(mean, log_variance).mean()
        loss = reconstruction + self.beta * kl
        return {"loss": loss, "reconstruction": reconstruction, "kl": kl}

    def sample(self, networks: Networks, latents: Tensor) -> Tensor:
        """Latents (N, latent) drawn from the prior N(0, I) -> images (N, C, H, W) in [-1, 1]."""
        images: Tensor = networks["decoder"](latents)
        return images

    def reconstruct(self, networks: Networks, images: Tensor) -> Tensor:
        """Images (N, C, H, W) -> the decoder's answer to the posterior's mean, same shape."""
        mean, _ = _posterior(networks, images)
        return self.sample(networks, mean)

    def judge_loss(
        self, networks: Networks, images: Tensor, latents: Tensor, samples: Tensor | None
    ) -> dict[str, Tensor]:
        """``reconstruction`` and ``kl`` in nats, both (N,); the posterior's ``mean`` (N, latent).

        ``latents`` (N, latent) from N(0, I) is the noise of the posterior's draw. ELBO =
        -(reconstruction + kl), whatever beta the network was trained with.
        """
        del samples
        mean, log_variance = _posterior(networks, images)
        images_again = networks["decoder"](mean + (0.5 * log_variance).exp() * latents)
        return {
            "reconstruction": _squared_error(images_again, images),
            "kl": _kl_from_prior(mean, log_variance),
            "mean": mean,
        }


class BetaVAE(VAE):
    """The paper's beta-VAE: its VAE with a KL term of four times the weight."""

    beta = 4.0
    """Weight of the KL term; 4 is the authors' code's."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        name: VAE.presets[name] for name in ("quick", "paper")
    }


class ResNetVAE(VAE):
    """The paper's ResNet-VAE (2,821,251 parameters on 32x32 colour images)."""

    width = 32
    """Channels of the outermost level; each further level has twice as many."""
    latent = 32
    _decoders = ("own",)
    _size_factor = 32

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"width": 8, "latent": 16, "batch_size": 64, "steps": 1200},
        "paper": {"epochs": 100},
    }

    def networks(self, shape: Shape) -> Networks:
        """New encoder and decoder for images (C, S, S), S = 32, 64 and so on."""
        return {
            "encoder": ResidualEncoder(shape, self.width, self.latent),
            "decoder": ResidualDecoder(shape, self.width, self.latent),
        }


def _posterior(networks: Networks, images: Tensor) -> tuple[Tensor, Tensor]:
    """Images -> mean and log-variance of q(z|x), both (N, latent), as precise as the images."""
    mean, log_variance = networks["encoder"](images)
    # Under autocast the encoder answers in bf16, too coarse for a sum of squares and exponentials.
    return mean.to(images.dtype), log_variance.to(images.dtype)


def _squared_error(images_again: Tensor, images: Tensor) -> Tensor:
    """Squared differences of two (N, C, H, W), summed over pixels: (N,), as precise as images."""
    return (images_again - images).square().sum(dim=(1, 2, 3))


def _kl_from_prior(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, exp(log_variance)) from N(0, I), summed over latents: (N, latent) -> (N,).

    Kingma and Welling 2014, appendix B.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1.0 - log_variance).sum(dim=1)
