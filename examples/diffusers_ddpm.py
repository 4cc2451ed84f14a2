"""A DDPM of the library diffusers, with averaged weights: its tickets by `tombola.draw`.

python examples/diffusers_ddpm.py

The lines that end with `# tombola` were added or changed: `train()` and `print(one_row())` were the
last ones.
"""

import argparse

import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

import tombola  # tombola

parser = argparse.ArgumentParser()
parser.add_argument("--images", type=int, default=1024)
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--width", type=int, default=32)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--sampling-steps", type=int, default=50)
parser.add_argument("--out", default="runs/diffusers")
options = parser.parse_args()
BATCH, SIDE = 32, 16


def bars(count):
    """Images of one white row each, (count, 1, 16, 16) in [-1, 1]."""
    images = -torch.ones(count, 1, SIDE, SIDE)
    images[torch.arange(count), 0, torch.randint(SIDE, (count,))] = 1
    return images


torch.manual_seed(0)
images = bars(options.images)
model = UNet2DModel(
    sample_size=SIDE,
    in_channels=1,
    out_channels=1,
    layers_per_block=1,
    block_out_channels=(options.width, 2 * options.width),
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    norm_num_groups=options.width // 4,
)
ema = EMAModel(model.parameters(), decay=0.99)
noises = DDPMScheduler(num_train_timesteps=1000)


def train():
    ema.optimization_step = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(options.epochs):
        for batch in images[torch.randperm(len(images))].split(BATCH):
            noise = torch.randn_like(batch)
            times = torch.randint(1000, (len(batch),))
            seen = model(noises.add_noise(batch, noise, times), times).sample
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(seen, noise).backward()
            optimizer.step()
            ema.step(model.parameters())


@torch.no_grad()
def made(count=64):
    """Samples of the averaged weights by DDIM."""
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(options.sampling_steps)
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    values = torch.randn(count, 1, SIDE, SIDE)
    for time in scheduler.timesteps:
        values = scheduler.step(model(values, time).sample, time, values).prev_sample
    ema.restore(model.parameters())
    return values.clamp(-1, 1)


def one_row():
    """How far a made image is from having one white row: 0 for a perfect model."""
    return {"row_error": float((made().mean(3).sum((1, 2)) - (2.0 - SIDE)).abs().mean())}


result = tombola.draw(  # tombola
    train, {"denoiser": model}, ema=ema,  # tombola
    steps=options.epochs * len(images.split(BATCH)), rewind="5it", rounds=options.rounds,  # tombola
    judge=one_row, sample=made, better="lower", out=options.out)  # tombola  # fmt: skip
print(result.summary["verdicts"]["row_error"]["sentence"])  # tombola
