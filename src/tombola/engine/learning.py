"""Has the dense network learnt anything, and has it settled? What a verdict asks before all else.

Learnt is measured against a trivial answer, which needs no training: of images that are made again
the mean training image, of samples those of the dense network at step 0 and at its rewind points,
whichever are better. Settled is measured by how far a metric still moves over the last fifth of the
training. What is found here is recorded; the verdict judges it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tombola.data.batches import normalise, to_uint8
from tombola.data.sources import Images
from tombola.engine.judging import BATCH, networks_in_eval
from tombola.metrics.downstream import accuracy
from tombola.metrics.features import Judge
from tombola.metrics.rules import by_importance, metric_kind, rule_of
from tombola.recipes.cells import Cell, Plan, four_fifths, sampled_anew
from tombola.runtime import Runtime, seed_everything
from tombola.tasks.base import Networks, Task

OF_SAMPLES = (
    "fid", "kid", "is", "fcd", "kcd", "cs", "precision", "recall", "density", "coverage",
)  # fmt: skip
"""Kinds of metrics in which a judge compares samples with reals."""
DISTANCES = ("fid", "kid", "fcd", "kcd")
"""Those that have a floor."""

Records = Callable[[str], Mapping[str, Any]]
"""A run's record by its name."""


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


def trivial_values(plan: Plan, record: Records) -> dict[str, float]:
    """Metric that can decide -> the value of a trivial answer, the best of several."""
    found: dict[str, list[float]] = {}
    for name in plan.trivial:
        made = record(name)
        early = made.get("by_step", {}).values()
        # A VAE's early states also make images again, for which the mean image is the answer.
        sampled = ({k: v for k, v in row.items() if metric_kind(k) in OF_SAMPLES} for row in early)
        for values in (made.get("values", {}), *sampled):
            for metric, value in values.items():
                if math.isfinite(value):
                    found.setdefault(metric, []).append(value)
    rules = {metric: rule_of(metric) for metric in found}
    return {
        metric: min(found[metric]) if rule.better == "lower" else max(found[metric])
        for metric, rule in rules.items()
        if rule is not None
    }


def settling_shares(plan: Plan, record: Records) -> dict[str, dict[int, float]]:
    """Metric that can decide -> seed -> |end - 4/5| / |4/5| of the dense training's steps.

    On validation where the course is measured in that metric, else on the judge split; no entry
    where there is neither. Of several precisions the one that is sampled anew.
    """
    shares: dict[str, dict[int, float]] = {}
    for cell, made in _dense(plan, record):
        last, early = str(made["step"]), str(four_fifths(made["step"]))
        paths = {
            metric: [made.get("by_step", {}).get(step, {}).get(metric) for step in (early, last)]
            for metric in made["values"]
            if rule_of(metric) is not None
        }
        course = made.get("course", {}).get("by_step", {})
        if paths and "denoising_loss" not in made["values"]:  # a diffusion's course is of that
            values = [course.get(step) for step in (early, last)]
            if None not in values:
                paths[min(paths, key=by_importance)] = values
        for metric, (before, after) in paths.items():
            known = before is not None and after is not None and early != last
            if known and math.isfinite(before) and math.isfinite(after) and before:
                share = abs(after - before) / abs(before)
                shares.setdefault(metric, {})[cell.seed] = share
    return shares


def sampling_sd(plan: Plan, record: Records) -> dict[str, float]:
    """Standard deviation over sampling seeds of one dense network, by metric."""
    if not plan.resampled:
        return {}
    records = [record(name) for name in (sampled_anew(plan).evaluate, *plan.resampled)]
    if any("values" not in each for each in records):
        return {}
    return {
        metric: statistics.stdev(each["values"][metric] for each in records)
        for metric in records[0]["values"]
    }


def above_floor(plan: Plan, record: Records) -> dict[str, float]:
    """Distance -> by how much the dense mean is above what training images score."""
    floor = record(plan.floor)["values"] if plan.floor else {}
    dense = [made["values"] for _, made in _dense(plan, record)]
    return {
        metric: statistics.fmean(values[metric] for values in dense) - least
        for metric, least in floor.items()
        if metric_kind(metric) in DISTANCES and dense
    }


def _dense(plan: Plan, record: Records) -> Iterator[tuple[Cell, Mapping[str, Any]]]:
    """The dense training of each seed and its judgement, in one precision; not if it diverged."""
    dense = [cell for cell in plan.cells if cell.kind == "dense"]
    precision = sampled_anew(plan).arm.precision if dense else ""  # none by a ticket of a file
    cells = {cell.seed: cell for cell in dense if cell.arm.precision == precision}
    for cell in cells.values():
        made = record(cell.evaluate)
        if "values" in made:
            yield cell, made
