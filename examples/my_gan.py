"""A GAN of one's own: `tombola find examples/my_gan.py:MyGAN --data digits`."""

import torch
from torch import nn, relu

from tombola.tasks.base import Task, Turn


class MyGAN(Task):
    """Linear layers and the hinge loss; the discriminator learns twice a step."""

    size = 32  # pixels; options are plain class attributes: --set task.width=64
    latent = 32
    width = 128
    betas = (0.5, 0.999)
    learning_rate = 1e-3
    turns = (
        Turn("critic", learns=("discriminator",), repeats=2),
        Turn("creation", learns=("generator",), images=False),
    )
    presets = {"quick": {"steps": 1000}, "paper": {"width": 512, "epochs": 200}}

    def networks(self, shape):
        w, pixels, leak = self.width, shape[0] * shape[1] * shape[2], nn.LeakyReLU(0.2)
        first = [nn.Linear(self.latent, w, bias=False), nn.BatchNorm1d(w), nn.ReLU()]
        second = [nn.Linear(w, 2 * w, bias=False), nn.BatchNorm1d(2 * w), nn.ReLU()]
        last = [nn.Linear(2 * w, pixels), nn.Tanh(), nn.Unflatten(1, shape)]
        judge = [nn.Linear(pixels, 2 * w), leak, nn.Linear(2 * w, w), leak, nn.Linear(w, 1)]
        generator = nn.Sequential(*first, *second, *last)
        return {"generator": generator, "discriminator": nn.Sequential(nn.Flatten(), *judge)}

    def loss(self, turn, networks, images):
        fakes = self.sample(networks, torch.randn(len(images), self.latent, device=images.device))
        if turn == "creation":
            return -networks["discriminator"](fakes).mean()
        real, fake = (networks["discriminator"](batch) for batch in (images, fakes.detach()))
        return relu(1 - real).mean() + relu(1 + fake).mean()

    def sample(self, networks, latents):
        return networks["generator"](latents)
