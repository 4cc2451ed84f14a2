"""Small things that several test files share."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tombola.config.runtime import Runtime, rng, seed_everything
from tombola.data.batches import Batches
from tombola.sparsity.masks import Masks
from tombola.tasks.base import Networks, Task, Turn
from tombola.training.trainer import Settings, Trainer


class TinyAE(Task):
    """An autoencoder of 8x8 images that trains in milliseconds, with a draw in its loss."""

    family = "autoencoder"
    size = 8
    channels = 1
    batch_size = 16
    learning_rate = 1e-2
    presets = {"quick": {"steps": 20}, "paper": {"steps": 40}}

    def networks(self, shape) -> Networks:
        return {
            "encoder": nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU()),
            "decoder": nn.Sequential(nn.Linear(12, 64), nn.Tanh(), nn.Unflatten(1, (1, 8, 8))),
        }

    def loss(self, turn, networks, images):
        noisy = images + 0.1 * torch.randn(images.shape, device=images.device)
        return (self.reconstruct(networks, noisy) - images).square().mean()

    def reconstruct(self, networks, images):
        return networks["decoder"](networks["encoder"](images))


class TinyGAN(Task):
    """A GAN of 8x8 images with batch and spectral normalisation and two critic updates a step."""

    family = "gan"
    size = 8
    channels = 1
    latent = 4
    batch_size = 8
    learning_rate = 1e-3
    turns = (
        Turn("discriminator", learns=("discriminator",), repeats=2),
        Turn("generator", learns=("generator",), images=False),
    )
    presets = {"quick": {"steps": 25}, "paper": {"steps": 50}}

    def networks(self, shape) -> Networks:
        norm = nn.utils.parametrizations.spectral_norm
        return {
            "generator": nn.Sequential(
                nn.Unflatten(1, (4, 1, 1)),
                nn.ConvTranspose2d(4, 8, 4, bias=False),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.ConvTranspose2d(8, 1, 4, 2, 1),
                nn.Tanh(),
            ),
            "discriminator": nn.Sequential(
                norm(nn.Conv2d(1, 8, 4, 2, 1)),
                nn.LeakyReLU(0.2),
                nn.Flatten(),
                norm(nn.Linear(128, 1)),
            ),
        }

    def loss(self, turn, networks, images):
        z = torch.randn(len(images), self.latent, device=images.device)
        judge = networks["discriminator"]
        if turn == "discriminator":
            with torch.no_grad():
                fakes = networks["generator"](z)
            real, fake = judge(images), judge(fakes)
            return {
                "loss": (1 - real).relu().mean() + (1 + fake).relu().mean(),
                "real": real.mean(),
            }
        return -judge(networks["generator"](z)).mean()

    def sample(self, networks, latents):
        return networks["generator"](latents)


class WideGAN(TinyGAN):
    """A GAN of 8x8 images with normalised channels to cut, and a width."""

    width: int = 8
    batch_size = 100
    presets = {"quick": {"steps": 60}, "paper": {"steps": 60}}

    def networks(self, shape) -> Networks:
        w = self.width
        return {
            "generator": nn.Sequential(
                nn.Unflatten(1, (4, 1, 1)),
                nn.ConvTranspose2d(4, 2 * w, 4, bias=False),
                nn.BatchNorm2d(2 * w),
                nn.ReLU(),
                nn.ConvTranspose2d(2 * w, w, 4, 2, 1, bias=False),
                nn.BatchNorm2d(w),
                nn.ReLU(),
                nn.Conv2d(w, 1, 3, 1, 1),
                nn.Tanh(),
            ),
            "discriminator": nn.Sequential(
                nn.Conv2d(1, w, 4, 2, 1),
                nn.BatchNorm2d(w),
                nn.LeakyReLU(0.2),
                nn.Conv2d(w, 2 * w, 3, 1, 1),
                nn.BatchNorm2d(2 * w),
                nn.LeakyReLU(0.2),
                nn.Flatten(),
                nn.Linear(32 * w, 1),
            ),
        }


def strip_checksum(path: Path) -> None:
    """Make a checkpoint file what older versions wrote: without a checksum in its header."""
    whole = path.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    tree = json.loads(whole[8 : 8 + length])
    del tree["__metadata__"]["sha256"]
    head = json.dumps(tree, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    path.write_bytes(len(head).to_bytes(8, "little") + head + whole[8 + length :])


def images(n: int = 64, shape: tuple[int, int, int] = (1, 8, 8)) -> Tensor:
    """Random uint8 images, always the same."""
    return torch.randint(0, 256, (n, *shape), generator=rng(0, "images"), dtype=torch.uint8)


def stir(network: nn.Module, seed: int) -> nn.Module:
    """The network with weights, scales and statistics that hide nothing, as no fresh one has."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
            if tensor.is_floating_point() and not name.endswith(("_u", "_v")):
                noise = torch.randn(tensor.shape, generator=generator)
                tensor.add_((0.3 * noise).to(tensor.dtype))
                if name.endswith("running_var"):
                    tensor.abs_().add_(0.5)
    return network


def trainer(
    task: Task, *, seed: int = 0, steps: int = 20, masks: Masks | None = None, ema: float = 0.0
) -> Trainer:
    """A trainer of a tiny task on random images."""
    seed_everything(seed, "init")
    networks = task.networks((1, 8, 8))
    settings = Settings(
        runtime=Runtime.open("cpu", "fp32", 1), seed=seed, total_steps=steps, ema=ema
    )
    return Trainer(task, networks, Batches(images(), task.batch_size, seed), settings, masks)


def run(trainer: Trainer, until: int) -> Trainer:
    """Advance a trainer to a step."""
    while trainer.step < until:
        trainer.advance()
    return trainer


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two states have the same names and the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def digest(masks: Masks) -> str:
    """16 hex digits of the bits of masks, in the order of their names."""
    text = hashlib.sha256()
    for name, mask in sorted(masks.items()):
        text.update(f"{name} {tuple(mask.shape)} ".encode())
        text.update(np.packbits(mask.contiguous().numpy()).tobytes())
    return text.hexdigest()[:16]
