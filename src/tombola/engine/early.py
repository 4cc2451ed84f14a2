"""When was a training as good as done? The early-stopping step, from judgements on validation.

25 equally spaced judgements of the metric that decides the search, on images that neither train
nor judge anything: the first that is within 2% of the best of them (the paper's figure 2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tombola.config.runtime import Runtime
from tombola.data.batches import normalise, to_uint8
from tombola.data.splits import Images
from tombola.engine.judging import BATCH, JudgedState, latents_of, networks_in_eval, reals_seen
from tombola.metrics.features import Judge
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.tasks.base import Networks, Task
from tombola.training.trainer import load_any_size

TOLERANCE = 0.02
"""A judgement is as good as the best if it is at most this share above it."""


def course(
    config: Mapping[str, Any],
    task: Task,
    images: Images,
    runtime: Runtime,
    states: Mapping[int, JudgedState],
    judge: Judge | None,
) -> dict[str, Any]:
    """A training's course: ``by_step`` (step -> value), ``n`` (images), ``early_stopping_step``.

    The value is the Frechet distance of samples where there is a judge, else the reconstruction
    error; of a diffusion the loss, as samples of 25 states would cost more than its training. All
    are of the first validation images, in the order of their hash, and as many samples. No step
    where none is finite.
    """
    reals, _ = images.first("validation", config["validation_samples"])
    latents = latents_of(task, len(reals), config["sampling_seed"])
    networks = networks_in_eval(task, config, runtime)
    seen = f"{images.sha256}/validation"
    by_step: dict[str, float] = {}
    for step, load in states.items():
        load_any_size(networks, load())
        if task.family == "diffusion":
            value = denoising_loss(task, networks, latents, reals, runtime)
        elif judge is None:
            value = reconstruction_error(task, networks, reals, runtime)
        else:
            value = distance(task, networks, latents, (judge, reals, seen), runtime)
        by_step[str(step)] = value
    return {"by_step": by_step, "n": len(reals), "early_stopping_step": first_within(by_step)}


def first_within(by_step: Mapping[str, float], tolerance: float = TOLERANCE) -> int | None:
    """The first step whose value, lower is better, is within a share of the best one's."""
    finite = {int(step): value for step, value in by_step.items() if math.isfinite(value)}
    best = min(finite.values(), default=math.nan)
    return min(
        (step for step, value in finite.items() if value <= best + tolerance * abs(best)),
        default=None,
    )


@torch.no_grad()
def reconstruction_error(task: Task, networks: Networks, reals: Tensor, runtime: Runtime) -> float:
    """Squared error per pixel of reconstructed uint8 images (N, C, H, W), in [-1, 1] units."""
    total = 0.0
    for part in torch.split(reals, BATCH):
        images = normalise(part.to(runtime.device))
        again = task.reconstruct(networks, images)
        total += float((again - images).square().flatten(1).mean(1).double().sum())
    return total / len(reals)


@torch.no_grad()
def denoising_loss(
    task: Task, networks: Networks, latents: Tensor, reals: Tensor, runtime: Runtime
) -> float:
    """A diffusion's loss on uint8 images (N, C, H, W), the latents (N, latent) its noise."""
    total = 0.0
    for part, z in zip(torch.split(reals, BATCH), torch.split(latents, BATCH), strict=True):
        images = normalise(part.to(runtime.device))
        found = task.judge_loss(networks, images, z.to(runtime.device), None)
        total += float(found["denoising_loss"].double().sum())
    return total / len(reals)


@torch.no_grad()
def distance(
    task: Task,
    networks: Networks,
    latents: Tensor,
    reals: tuple[Judge, Tensor, str],
    runtime: Runtime,
) -> float:
    """Frechet distance of samples to reals: the judge, uint8 images and their name."""
    judge, images, name = reals
    made = [
        to_uint8(task.sample(networks, z.to(runtime.device))).cpu()
        for z in torch.split(latents, BATCH)
    ]
    features, _ = judge.features(torch.cat(made), probabilities=False)
    gaussian, _ = reals_seen(judge, images, name)
    return frechet_distance(gaussian, Gaussian.of(features), root=gaussian.root())
