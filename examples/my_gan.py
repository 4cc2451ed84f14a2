"""A GAN of one's own: `tombola find examples/my_gan.py:MyGAN --data digits`."""

import torch
from torch import nn, relu

from tombola.tasks.base import Task, Turn


class MyGAN(Task):
    """Linear layers and the hinge loss; the discriminator learns twice a step."""

    family = "gan"
    size = 32  # pixels; options are plain class attributes: --set task.width=128
    latent = 32
    width = 64
    betas = (0.5, 0.9)
    learning_rate = 5e-4
    turns = (
        Turn("critic", learns=("discriminator",), repeats=2),
        Turn("creation", learns=("generator",), images=False),
    )
    presets = {"quick": {"steps": 1000}, "paper": {"width": 512, "epochs": 200}}

    def networks(self, shape):
        pixels, w = shape[0] * shape[1] * shape[2], self.width
        hidden = [nn.Linear(self.latent, w), nn.ReLU(), nn.Linear(w, 2 * w), nn.ReLU()]
        judge = [nn.Linear(pixels, 2 * w), nn.LeakyReLU(0.2), nn.Linear(2 * w, 1)]
        last = [nn.Linear(2 * w, pixels), nn.Tanh(), nn.Unflatten(1, shape)]
        return {"generator": nn.Sequential(*hidden, *last),
                "discriminator": nn.Sequential(nn.Flatten(), *judge)}  # fmt: skip

    def loss(self, turn, networks, images):
        fakes = self.sample(networks, torch.randn(len(images), self.latent, device=images.device))
        if turn == "creation":
            return -networks["discriminator"](fakes).mean()
        real, fake = (networks["discriminator"](batch) for batch in (images, fakes.detach()))
        return relu(1 - real).mean() + relu(1 + fake).mean()

    def sample(self, networks, latents):
        return networks["generator"](latents)
