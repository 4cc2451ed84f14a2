"""How are adversarial networks trained: DCGAN, SNGAN, WGAN with two kinds of critic, ResNet-DCGAN.

One round of turns is the same for all: the discriminator learns from reals and detached fakes,
``n_critic`` times, then the generator once. What differs is the objective and the networks. The
authors' public code has a DCGAN only; hyperparameters come from the papers named beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tombola.models.blocks import check_at_least, check_one_of
from tombola.models.gans import SIZES, Discriminator, Generator, SpectralDiscriminator
from tombola.models.residual import ResidualDiscriminator, ResidualGenerator
from tombola.tasks.base import Networks, Shape, Task, Turn


class _Adversarial(Task):
    """A generator against a discriminator; subclasses say which networks and which objective."""

    family = "gan"
    width: int = 64
    """Channels of the outermost level of both networks; each further level has twice as many."""
    latent = 128
    n_critic: int = 1
    """Updates of the discriminator in one step; one of the generator follows."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_at_least(width=(self.width, 1), latent=(self.latent, 1), n_critic=(self.n_critic, 1))
        check_one_of(self.size, SIZES)
        self.turns = (
            Turn("discriminator", learns=("discriminator",), repeats=self.n_critic),
            Turn("generator", learns=("generator",), images=False),
        )

    def losses(self, logits: Tensor, real: bool) -> Tensor:
        """What the discriminator pays for its logits (N,) of reals or of fakes, each: (N,)."""
        raise NotImplementedError

    def generator_losses(self, logits: Tensor) -> Tensor:
        """What the generator pays for the discriminator's logits (N,) of its fakes, each: (N,)."""
        raise NotImplementedError

    def penalty(self, discriminator: nn.Module, images: Tensor, fakes: Tensor) -> Tensor | None:
        """What else the discriminator pays, a scalar; None: nothing."""
        del discriminator, images, fakes
        return None

    def loss(self, turn: str, networks: Networks, images: Tensor) -> Tensor | dict[str, Tensor]:
        """The generator's loss, or the discriminator's: ``loss`` = ``real`` + ``fake`` (+ penalty).

        Only the length of ``images`` matters in the generator's turn.
        """
        latents = torch.randn(len(images), self.latent, device=images.device, dtype=images.dtype)
        generator, discriminator = networks["generator"], networks["discriminator"]
        if turn == "generator":
            return self.generator_losses(discriminator(generator(latents))).mean()
        # Without a graph: the discriminator's loss must not reach, or pay for, the generator.
        with torch.no_grad():
            fakes = generator(latents)
        # Reals and fakes apart: BatchNorm over a mixed batch would tell the two from each other.
        real = self.losses(discriminator(images), real=True).mean()
        fake = self.losses(discriminator(fakes), real=False).mean()
        parts = {"loss": real + fake, "real": real, "fake": fake}
        penalty = self.penalty(discriminator, images, fakes)
        if penalty is not None:
            parts |= {"loss": real + fake + penalty, "penalty": penalty}
        return parts

    def sample(self, networks: Networks, latents: Tensor) -> Tensor:
        """Latents (N, latent) drawn from N(0, I) -> images (N, C, H, W) in [-1, 1]."""
        images: Tensor = networks["generator"](latents)
        return images

    def judge_loss(
        self, networks: Networks, images: Tensor, latents: Tensor, samples: Tensor | None
    ) -> dict[str, Tensor]:
        """``discriminator_loss`` (N,): of each real image plus of the fake beside it.

        In the unit of the objective, without a penalty: nats of cross-entropies, else plain logits.
        """
        del latents
        assert samples is not None
        discriminator = networks["discriminator"]
        real = self.losses(discriminator(images), real=True)
        return {"discriminator_loss": real + self.losses(discriminator(samples), real=False)}


class DCGAN(_Adversarial):
    """DCGAN of four levels with latent 128 (6,560,448 weights on 32x32 colour images).

    Radford, Metz and Chintala 2016, section 4: Adam 2e-4 with betas (0.5, 0.999), batches of 128,
    weights drawn from N(0, 0.02^2). The pruning paper's authors trained with batches of 100 and
    Adam's default betas, on probabilities instead of logits, and sent gradients of the
    discriminator's loss through the generator; we do not.
    """

    batch_size = 128
    learning_rate = 2e-4
    betas = (0.5, 0.999)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # A minute on one core. What counts then is the number of steps: small batches, a higher
        # rate than section 4's, falling, so that the end is not where the noise left it.
        "quick": {
            "width": 16,
            "latent": 64,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "cosine": True,
            "steps": 2500,
        },
        "paper": {"epochs": 200},
        # The generator is the decoder of VAE's preset of this name.
        "shared": {
            "width": 16,
            "latent": 64,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "cosine": True,
            "steps": 1500,
        },
    }

    def networks(self, shape: Shape) -> Networks:
        """New generator and discriminator for images (C, S, S), S = 32 or 64."""
        return {
            "generator": Generator(shape, self.width, self.latent),
            "discriminator": Discriminator(shape, self.width),
        }

    def losses(self, logits: Tensor, real: bool) -> Tensor:
        """Cross-entropy in nats: -log sigmoid(x) = softplus(-x).

        Goodfellow et al. 2014, "Generative adversarial nets", equation 1.
        """
        return softplus(-logits if real else logits)

    def generator_losses(self, logits: Tensor) -> Tensor:
        """-log D(G(z)), the non-saturating form of section 3 there."""
        return softplus(-logits)


class _Hinged(_Adversarial):
    """The hinge objective: Miyato et al. 2018, equations 16 and 17."""

    def losses(self, logits: Tensor, real: bool) -> Tensor:
        """max(0, 1 - x) of a real, max(0, 1 + x) of a fake."""
        return (1 - logits if real else 1 + logits).relu()

    def generator_losses(self, logits: Tensor) -> Tensor:
        """-x."""
        return -logits


class SNGAN(_Hinged):
    """SNGAN: a spectral-normed discriminator of eight layers (6,741,572 parameters in colour).

    Adam 2e-4 with (0.5, 0.999), one update of each: setting C of Miyato et al. 2018, table 1;
    batches of 64, their section 4.
    """

    batch_size = 64
    learning_rate = 2e-4
    betas = (0.5, 0.999)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "width": 16,
            "latent": 64,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "betas": (0.5, 0.9),
            "cosine": True,
            "steps": 2000,
        },
        "paper": {"epochs": 200},
    }

    def networks(self, shape: Shape) -> Networks:
        """New generator and discriminator for images (C, S, S), S = 32 or 64."""
        return {
            "generator": Generator(shape, self.width, self.latent, bias=True),
            "discriminator": SpectralDiscriminator(shape, self.width),
        }


class ResNetDCGAN(_Hinged):
    """Residual generator and spectral-normed residual discriminator (2,208,772 parameters).

    Adam 2e-4 with (0, 0.9), five updates of the discriminator a step, batches of 64: Miyato et al.
    2018, section 4 and appendix B.4, for their residual networks.
    """

    width = 128
    """Channels of every block of both networks."""
    batch_size = 64
    learning_rate = 2e-4
    betas = (0.0, 0.9)
    n_critic = 5
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "width": 32,
            "latent": 64,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "n_critic": 1,
            "cosine": True,
            "steps": 1200,
        },
        "paper": {"epochs": 200},
    }

    def networks(self, shape: Shape) -> Networks:
        """New generator and discriminator for images (C, S, S), S = 32 or 64."""
        return {
            "generator": ResidualGenerator(shape, self.width, self.latent),
            "discriminator": ResidualDiscriminator(shape, self.width),
        }


class _Wasserstein(_Adversarial):
    """The Wasserstein objective: Arjovsky et al. 2017, "Wasserstein GAN", algorithm 1."""

    batch_size = 64
    n_critic = 5

    def losses(self, logits: Tensor, real: bool) -> Tensor:
        """-f(x) of a real, f(x) of a fake: their sum is minus the estimated distance."""
        return -logits if real else logits

    def generator_losses(self, logits: Tensor) -> Tensor:
        """-f(G(z))."""
        return -logits


class WGAN(_Wasserstein):
    """WGAN with clipped weights on DCGAN's networks (6,560,448 weights).

    RMSprop 5e-5, clipping at 0.01, five updates of the critic a step, batches of 64: Arjovsky et
    al. 2017, algorithm 1. Clipped are all parameters of the critic, as in those authors' code.
    """

    learning_rate = 5e-5
    clip: float = 0.01
    """Largest absolute value of a parameter of the critic."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Clipped at 0.01, algorithm 1's, so narrow a critic is flat and teaches little: compare
        # `--set task.clip=0.01`.
        "quick": {
            "width": 16,
            "latent": 64,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "n_critic": 1,
            "clip": 0.1,
            "cosine": True,
            "steps": 2500,
        },
        "paper": {"epochs": 200},
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_at_least(clip=(self.clip, 1e-6))

    def networks(self, shape: Shape) -> Networks:
        """New generator and critic for images (C, S, S), S = 32 or 64."""
        return {
            "generator": Generator(shape, self.width, self.latent),
            "discriminator": Discriminator(shape, self.width),
        }

    def optimizer(self, turn: str, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """RMSprop for both turns: momentum makes a clipped critic unstable (section 4)."""
        del turn
        return torch.optim.RMSprop(
            parameters, lr=self.learning_rate, weight_decay=self.weight_decay, foreach=True
        )

    def constrain(self, turn: str, networks: Networks) -> None:
        """Clip the critic after its update."""
        if turn == "discriminator":
            torch._foreach_clamp_min_(list(networks["discriminator"].parameters()), -self.clip)
            torch._foreach_clamp_max_(list(networks["discriminator"].parameters()), self.clip)


class WGANGP(_Wasserstein):
    """WGAN with a penalty on the critic's gradient instead of clipping.

    Adam 1e-4 with (0.5, 0.9), penalty 10, five updates of the critic a step, no BatchNorm in the
    critic: Gulrajani et al. 2017, "Improved training of Wasserstein GANs", section 4 and appendix.
    """

    learning_rate = 1e-4
    betas = (0.5, 0.9)
    gradient_penalty: float = 10.0
    """Weight of the squared distance of the gradient's norm from 1."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {
            "width": 16,
            "latent": 64,
            "batch_size": 16,
            "learning_rate": 1e-3,
            "n_critic": 1,
            "cosine": True,
            "steps": 2000,
        },
        "paper": {"epochs": 200},
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        check_at_least(gradient_penalty=(self.gradient_penalty, 0))

    def networks(self, shape: Shape) -> Networks:
        """New generator and critic for images (C, S, S), S = 32 or 64."""
        return {
            "generator": Generator(shape, self.width, self.latent),
            "discriminator": Discriminator(shape, self.width, norm=False),
        }

    def penalty(self, discriminator: nn.Module, images: Tensor, fakes: Tensor) -> Tensor | None:
        """The mean over random points between reals and fakes of (|gradient| - 1)^2, weighted.

        Gulrajani et al. 2017, equation 3.
        """
        share = torch.rand(len(images), 1, 1, 1, device=images.device, dtype=images.dtype)
        between = torch.lerp(images, fakes.to(images.dtype), share).requires_grad_()
        (slope,) = torch.autograd.grad(discriminator(between).sum(), between, create_graph=True)
        excess: Tensor = slope.flatten(1).norm(dim=1) - 1
        return self.gradient_penalty * excess.square().mean()
