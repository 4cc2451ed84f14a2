"""A process that trains: started by the benchmarks with its setting as JSON, one line a stretch.

``{"task", "side", "precision", "size", "threads"}``, side = ours, paper, paper-int32, dense or cut.
``ours`` is the trainer that `tombola find` uses, with masks; ``dense`` the same without masks;
``cut`` the same with a quarter of the channels;
``paper-int32`` the paper's loop with masks of 32 bits instead of 64.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

import settings
from measure import serve
from paper_loop import PaperLoop
from tombola.config.runtime import Runtime
from tombola.data.batches import Batches, normalise
from tombola.training.trainer import Settings, Trainer

IMAGES = {"linear-ae": 54_000, "dcgan": 10_000}
"""Images in memory: of the linear autoencoder as many as MNIST gives for training."""
TOY_IMAGES = 64
STEPS = 10_000_000
"""Total steps of the trainer's settings: more than are ever taken, so no stretch has the end."""
DENSE_STEPS = {"linear-ae": 300, "dcgan": 0}
"""Dense steps whose weights make the mask. Weights just drawn would cut the linear autoencoder so
badly that most units die, and its moments fade into denormal numbers, slow to compute with."""


def stepper(setting: Mapping[str, Any]) -> Callable[[], object]:
    """What does one training step of a side."""
    name, size = setting["task"], setting["size"]
    made = settings.task(name, size)
    built = settings.networks(made, name)
    runtime = Runtime.open("cpu", setting["precision"], setting["threads"])
    images = settings.images(name, IMAGES[name] if size == "full" else TOY_IMAGES)
    data = Batches(images, made.batch_size, 0)
    run = Settings(runtime=runtime, seed=0, total_steps=STEPS)
    dense = Trainer(made, settings.networks(made, name), data, run)
    while dense.step < (DENSE_STEPS[name] if size == "full" else 1):
        dense.advance()
    if setting["side"] == "cut":
        return Trainer(made, settings.cut(made, built, name), data, run).advance
    masks = settings.masks(dense.networks)
    if setting["side"].startswith("paper"):
        torch.manual_seed(0)
        bits = 32 if setting["side"] == "paper-int32" else 64
        return PaperLoop(made, built, normalise(images), masks, bits).step
    chosen = None if setting["side"] == "dense" else masks
    return Trainer(made, built, data, run, chosen).advance


if __name__ == "__main__":
    # As in tombola's workers, and on every side: no processor's slowness with them shall count.
    torch.set_flush_denormal(True)
    serve(stepper(json.loads(sys.argv[1])))
