"""A GAN as a Lightning module with manual optimization: its tickets by `tombola.draw`.

python examples/lightning_gan.py

The lines that end with `# tombola` were added or changed: `fit()` and `print(one_row())` were the
last ones.
"""

import argparse

import lightning
import torch
from torch import nn
from torch.nn.functional import softplus
from torch.utils.data import DataLoader, TensorDataset

import tombola  # tombola

parser = argparse.ArgumentParser()
parser.add_argument("--images", type=int, default=4096)
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--width", type=int, default=128)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--out", default="runs/lightning")
options = parser.parse_args()
LATENT, BATCH, SIDE = 16, 64, 16


def bars(count):
    """Images of one white row each, (count, 1, 16, 16) in [-1, 1]."""
    images = -torch.ones(count, 1, SIDE, SIDE)
    images[torch.arange(count), 0, torch.randint(SIDE, (count,))] = 1
    return images


class GAN(lightning.LightningModule):
    def __init__(self, width):
        super().__init__()
        self.automatic_optimization = False
        pixels = SIDE * SIDE
        self.generator = nn.Sequential(
            nn.Linear(LATENT, width), nn.BatchNorm1d(width), nn.ReLU(),
            nn.Linear(width, pixels), nn.Tanh(), nn.Unflatten(1, (1, SIDE, SIDE)),
        )  # fmt: skip
        self.discriminator = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width), nn.LeakyReLU(0.2), nn.Linear(width, 1)
        )

    def configure_optimizers(self):
        parts = (self.generator, self.discriminator)
        return [torch.optim.Adam(part.parameters(), 1e-3, (0.5, 0.999)) for part in parts]

    def training_step(self, batch, index):
        of_generator, of_discriminator = self.optimizers()
        made = self.generator(torch.randn(len(batch[0]), LATENT))
        loss = softplus(-self.discriminator(batch[0])) + softplus(self.discriminator(made.detach()))
        of_discriminator.zero_grad()
        self.manual_backward(loss.mean())
        of_discriminator.step()

        self.toggle_optimizer(of_generator)
        of_generator.zero_grad()
        self.manual_backward(softplus(-self.discriminator(made)).mean())
        of_generator.step()
        self.untoggle_optimizer(of_generator)


torch.manual_seed(0)
data = DataLoader(TensorDataset(bars(options.images)), BATCH, shuffle=True)
module = GAN(options.width)


def fit():
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    lightning.Trainer(
        max_epochs=options.epochs, accelerator="cpu", enable_progress_bar=False, **quiet
    ).fit(module, data)


def one_row():
    """How far a made image is from having one white row: 0 for a perfect generator."""
    with torch.no_grad():
        rows = module.generator(torch.randn(256, LATENT)).mean(3).squeeze(1)
    return {"row_error": float((rows.sum(1) - (2.0 - SIDE)).abs().mean())}


result = tombola.draw(  # tombola
    fit, {"generator": module.generator, "discriminator": module.discriminator},  # tombola
    steps=options.epochs * len(data), rewind="5it", rounds=options.rounds,  # tombola
    judge=one_row, better="lower", out=options.out)  # tombola  # fmt: skip
print(result.summary["verdicts"]["row_error"]["sentence"])  # tombola
