"""A plain PyTorch loop that trains what ``tombola find linear-ae --data digits`` trains.

The same networks, batches, optimizer and first weights, in a loop that Tombola does not own: so
the same weights come out, bit for bit.
"""

from __future__ import annotations

import argparse

import torch

import tombola
from tombola.config.runtime import seed_everything
from tombola.data.batches import Batches
from tombola.data.sources import load_images
from tombola.models.autoencoders import LinearDecoder, LinearEncoder

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=40)
parser.add_argument("--width", type=int, default=8)
parser.add_argument("--batch", type=int, default=16)
options = parser.parse_args()

torch.set_num_threads(1)
shape = (1, 28, 28)
seed_everything(options.seed, "init")
encoder, decoder = LinearEncoder(shape, options.width), LinearDecoder(shape, options.width)
tombola.attach({"encoder": encoder, "decoder": decoder})
parameters = [*encoder.parameters(), *decoder.parameters()]
optimizer = torch.optim.Adam(parameters, lr=3e-3, weight_decay=1e-5, fused=True)
images = load_images("digits", shape)
batches = Batches(images.splits["train"], options.batch, options.seed)
for step in range(options.steps):
    real = batches.batch(step)
    loss = torch.nn.functional.mse_loss(decoder(encoder(real)), real)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
judged = batches.batch(0)
error = (decoder(encoder(judged)) - judged).square().mean().item()
tombola.record("reconstruction_error", error, n=len(judged))
