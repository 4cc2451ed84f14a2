"""A VAE and a GAN of 8x8 images whose decoder and generator are one network, as a user's file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from torch import nn

import helpers
from tombola.tasks.autoencoding import VAE


class Generator(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Unflatten(1, (4, 1, 1)),
            nn.ConvTranspose2d(4, 8, 4, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 1, 4, 2, 1),
            nn.Tanh(),
        )


class Encoder(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 4, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 8))

    def forward(self, images):
        return super().forward(images).chunk(2, dim=1)


class TwinVAE(VAE):
    size = 8
    channels = 1
    latent = 4
    batch_size = 8
    _size_factor = 8
    presets = {"quick": {"steps": 20}, "paper": {"steps": 40}}

    def networks(self, shape):
        return {"encoder": Encoder(), "decoder": Generator()}


class TwinGAN(helpers.TinyGAN):
    presets = {"quick": {"steps": 20}, "paper": {"steps": 40}}

    def networks(self, shape):
        return {**super().networks(shape), "generator": Generator()}


class Stranger(helpers.TinyGAN):
    """Its networks have roles that nothing else has."""

    roles = {"generator": "left", "discriminator": "right"}
