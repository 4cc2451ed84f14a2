"""The tiny tasks as a user's file, telling the audit hooks of tests/faults when they are called."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from torch.nn import BatchNorm2d, Sequential

import helpers


class TinyAE(helpers.TinyAE):
    def loss(self, turn, networks, images):
        sys.audit("toy.step")
        return super().loss(turn, networks, images)

    def reconstruct(self, networks, images):
        if not torch.is_grad_enabled():
            sys.audit("toy.judge")
        return super().reconstruct(networks, images)


class TinyGAN(helpers.TinyGAN):
    pass


class WideGAN(helpers.WideGAN):
    pass


class NormFree(helpers.WideGAN):
    """A critic without normalisation layers, as Wasserstein GANs with a penalty have."""

    def networks(self, shape):
        networks = super().networks(shape)
        critic = [part for part in networks["discriminator"] if not isinstance(part, BatchNorm2d)]
        return {**networks, "discriminator": Sequential(*critic)}


class Diverging(helpers.TinyAE):
    def loss(self, turn, networks, images):
        return super().loss(turn, networks, images) * float("inf")


class HalfDiverging(helpers.TinyAE):
    """Diverges where a tenth of its decoder's weights is left (a sparse ticket of a late round)."""

    def loss(self, turn, networks, images):
        kept = (networks["decoder"][0].weight != 0).float().mean()
        return super().loss(turn, networks, images) / (kept > 0.4)


class Unjudgeable(helpers.TinyAE):
    """Trains like the others, and makes no numbers when it is judged."""

    def reconstruct(self, networks, images):
        made = super().reconstruct(networks, images)
        return made if torch.is_grad_enabled() else made / 0


class NoDenormals(TinyAE):
    """Fails in a process that computes with denormal numbers; the trial step is not in one."""

    def loss(self, turn, networks, images):
        faded = torch.full((1 << 20,), 1e-30).mul_(1e-10)
        assert len(images) == 2 or not faded.any(), "denormal numbers are there"
        return super().loss(turn, networks, images)


class Factor(torch.nn.Module):
    """Multiplies by a number that is no tensor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


class Loud(helpers.WideGAN):
    """A generator whose width decides more than the sizes of its tensors."""

    def networks(self, shape):
        networks = super().networks(shape)
        parts = list(networks["generator"])
        loud = Sequential(*parts[:-1], Factor(1 / self.width), parts[-1])
        return {**networks, "generator": loud}


class Grouped(helpers.WideGAN):
    """A critic that takes widths by eights alone."""

    width: int = 24

    def networks(self, shape):
        networks = super().networks(shape)
        critic = list(networks["discriminator"])
        critic[1] = torch.nn.GroupNorm(8, self.width)
        return {**networks, "discriminator": Sequential(*critic)}
