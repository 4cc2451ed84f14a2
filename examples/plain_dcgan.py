"""A small DCGAN in plain PyTorch, on drawn discs: its tickets by `tombola run`.

tombola run --rounds 5 --rewind 50it -- python examples/plain_dcgan.py

The lines that end with `# tombola` are what was added to the script.
"""

import argparse

import torch
from torch import nn, optim
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

import tombola  # tombola

parser = argparse.ArgumentParser()
parser.add_argument("--images", type=int, default=4096)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--width", type=int, default=32)
options = parser.parse_args()
LATENT, BATCH = 32, 64


def discs(count):
    """White discs somewhere on black, (count, 1, 32, 32) in [-1, 1]."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    top, left = (9 + 14 * torch.rand(2, count, 1, 1)).unbind()
    return (2 * torch.sigmoid(4 - torch.hypot(y - top, x - left)) - 1).unsqueeze(1)


def initialise(module):
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)


torch.manual_seed(0)
w = options.width
generator = nn.Sequential(
    nn.ConvTranspose2d(LATENT, 4 * w, 4, 1, 0, bias=False), nn.BatchNorm2d(4 * w), nn.ReLU(),
    nn.ConvTranspose2d(4 * w, 2 * w, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * w), nn.ReLU(),
    nn.ConvTranspose2d(2 * w, w, 4, 2, 1, bias=False), nn.BatchNorm2d(w), nn.ReLU(),
    nn.ConvTranspose2d(w, 1, 4, 2, 1), nn.Tanh(),
).apply(initialise)  # fmt: skip
discriminator = nn.Sequential(
    nn.Conv2d(1, w, 4, 2, 1), nn.LeakyReLU(0.2),
    nn.Conv2d(w, 2 * w, 4, 2, 1, bias=False), nn.BatchNorm2d(2 * w), nn.LeakyReLU(0.2),
    nn.Conv2d(2 * w, 4 * w, 4, 2, 1, bias=False), nn.BatchNorm2d(4 * w), nn.LeakyReLU(0.2),
    nn.Conv2d(4 * w, 1, 4, 1, 0), nn.Flatten(0),
).apply(initialise)  # fmt: skip
tombola.attach({"generator": generator, "discriminator": discriminator})  # tombola

of_generator = optim.Adam(generator.parameters(), lr=2e-4, betas=(0.5, 0.999))
of_discriminator = optim.Adam(discriminator.parameters(), lr=2e-4, betas=(0.5, 0.999))
images = discs(options.images)
real, fake = torch.ones(BATCH), torch.zeros(BATCH)

for epoch in range(options.epochs):
    for batch in images[torch.randperm(len(images))].split(BATCH):
        made = generator(torch.randn(len(batch), LATENT, 1, 1))
        of_discriminator.zero_grad()
        judged = discriminator(batch), discriminator(made.detach())
        loss = cross_entropy(judged[0], real[: len(batch)])
        (loss + cross_entropy(judged[1], fake[: len(batch)])).backward()
        of_discriminator.step()

        of_generator.zero_grad()
        cross_entropy(discriminator(made), real[: len(batch)]).backward()
        of_generator.step()
    with torch.no_grad():
        made = generator(torch.randn(256, LATENT, 1, 1))
    # A disc is one size, so the share of white is known: how far off is the mean image?
    off = float((made.mean(0) - images.mean(0)).abs().mean())
    print(f"epoch {epoch + 1}: mean image off by {off:.4f}")
    tombola.record("mean_image", off, len(made), better="lower")  # tombola
