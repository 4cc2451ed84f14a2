"""Has the dense network learnt anything, and has it settled? What a verdict asks before all else.

Learnt is measured against a trivial answer, which needs no training: of images that are made again
the mean training image, of samples those of the dense network at step 0 and at its rewind points,
whichever are better. Settled is measured by how far a metric still moves over the last fifth of the
training. What is found here is recorded; the verdict judges it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tombola.config.runtime import Runtime, seed_everything
from tombola.data.batches import normalise, to_uint8
from tombola.data.splits import Images
from tombola.engine.judging import BATCH, networks_in_eval
from tombola.metrics.downstream import accuracy
from tombola.metrics.features import Judge
from tombola.tasks.base import Networks, Task


class _Always(nn.Module):
    """A decoder that gives one image (C, H, W) whatever it is asked."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, latents: Tensor) -> Tensor:
        return self.image.expand(len(latents), *self.image.shape)


@torch.no_grad()
def mean_answer(
    config: Mapping[str, Any],
    task: Task,
    images: Images,
    runtime: Runtime,
    classifier: Judge | None,
) -> dict[str, Any]:
    """What the mean training image scores as the answer to each judged image: ``values``, ``n``.

    ``reconstruction_error`` in the units of the table; ``elbo`` of a VAE whose decoder gives an
    image, by the task's own observation model and without a KL term; ``accuracy`` with labels.
    """
    reals, labels = images.first("judge", config["samples"])
    train = images.splits["train"]
    total = sum(part.sum(0, dtype=torch.int64) for part in torch.split(train, BATCH))
    assert isinstance(total, Tensor)
    mean = (total.double() / len(train) / 127.5 - 1).float().to(runtime.device)
    networks = _answering(config, task, mean, runtime) if task.family == "vae" else None
    errors: list[Tensor] = []
    unlikely: list[Tensor] = []
    for part in torch.split(reals, BATCH):
        shown = normalise(part.to(runtime.device))
        errors.append((mean - shown).square().flatten(1).mean(1).double())
        if networks is not None:
            unlikely.append(_scored(task, networks, shown, mean)["reconstruction"])
    values = {"reconstruction_error": float(torch.cat(errors).mean())}
    if unlikely:
        values["elbo"] = -float(torch.cat(unlikely).double().mean())
    if classifier is not None and labels is not None:
        _, probabilities = classifier.features(to_uint8(mean[None]).cpu())
        assert probabilities is not None
        values["accuracy"] = accuracy(np.repeat(probabilities, len(labels), 0), labels)
    return {"values": values, "n": len(reals)}


def _answering(
    config: Mapping[str, Any], task: Task, mean: Tensor, runtime: Runtime
) -> Networks | None:
    """Networks whose decoder always gives the mean; None where it is no decoder of images.

    A task of a user's own may do more with what the decoder says, or hand it something else.
    """
    seed_everything(0, "trial")
    networks = networks_in_eval(task, config, runtime)
    decoders = [name for name in networks if task.role(name) == "decoder"]
    shown = torch.zeros(2, *mean.shape, device=runtime.device)
    try:
        networks |= {name: _Always(mean) for name in decoders}
        given = task.reconstruct(networks, shown)
        scored = _scored(task, networks, shown, mean)
    except Exception:
        return None
    fits = given.shape == shown.shape and bool((given == mean).all())
    return networks if decoders and fits and "reconstruction" in scored else None


def _scored(task: Task, networks: Networks, images: Tensor, mean: Tensor) -> dict[str, Tensor]:
    """A task's quantities of images (N, C, H, W), each by its posterior's mean; samples alike."""
    noise = torch.zeros(len(images), task.latent, device=images.device)
    return task.judge_loss(networks, images, noise, mean.expand_as(images))
