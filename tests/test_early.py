"""The early-stopping step: where it is found, and what it is measured on."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import nn

from tombola.config.runtime import Runtime, rng
from tombola.data.batches import normalise
from tombola.data.sources import load_images
from tombola.engine.early import course, first_within
from tombola.engine.judging import open_judge
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.plan.cells import course_steps
from tombola.tasks.base import Task


class Level(nn.Module):
    """A network that is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))


class Grey(Task):
    """Reconstructions of one grey value, the network's number; samples around it."""

    family = "autoencoder"
    size, channels = 8, 1

    def networks(self, shape):
        return {"n": Level()}

    def reconstruct(self, networks, images):
        return torch.ones_like(images) * networks["n"].level

    def sample(self, networks, latents):
        return (networks["n"].level + 0.1 * latents).reshape(-1, 1, 8, 8)


RUNTIME = Runtime(device=torch.device("cpu"))


def config(samples=2000):
    return {"validation_samples": samples, "sampling_seed": 0, "data": {"shape": [1, 8, 8]}}


def states(levels):
    return {
        step: (lambda level=level: {"n.level": torch.tensor(float(level))})
        for step, level in levels.items()
    }


def test_the_first_step_within_two_percent_of_the_best():
    assert first_within({"4": 5.0, "8": 1.021, "12": 1.02, "16": 1.0, "20": 1.01}) == 12
    assert first_within({"9": 1.0, "10": 1.0}) == 9  # steps are numbers
    assert first_within({"1": math.nan, "2": 3.0}) == 2
    assert first_within({"1": 0.0, "2": 0.0}) == 1
    assert first_within({"1": math.inf}) is None


def test_a_course_is_judged_at_25_steps_that_the_training_has():
    assert course_steps(100)[:3] == (4, 8, 12)
    assert len(course_steps(100)) == 25
    assert course_steps(100, 50) == tuple(range(52, 101, 4))
    assert course_steps(3) == (1, 2, 3)


def test_reconstructions_of_validation_images_are_judged():
    images = load_images("digits", (1, 8, 8))
    pixels = normalise(images.first("validation", 100)[0]).double()
    found = course(config(100), Grey(), images, RUNTIME, states({1: 0.5, 2: -0.7, 3: -0.71}), None)
    for step, level in (("1", 0.5), ("2", -0.7), ("3", -0.71)):
        expected = float((pixels - level).square().mean())
        assert found["by_step"][step] == pytest.approx(expected, rel=1e-6)
    assert (found["n"], found["early_stopping_step"]) == (100, 2)


def test_samples_are_held_against_validation_images():
    images = load_images("digits", (1, 8, 8))
    judge = open_judge({"source": "shipped"}, "digits", None)
    task = Grey()
    task.latent = 64
    found = course(config(50), task, images, RUNTIME, states({5: 0.0}), judge)
    latents = torch.randn(50, 64, generator=rng(0, "judge-latents", 0))
    made = ((0.1 * latents.reshape(-1, 1, 8, 8).clamp(-10, 10) + 1) * 127.5).round()
    seen, _ = judge.features(made.to(torch.uint8))
    reals, _ = judge.features(images.first("validation", 50)[0])
    expected = frechet_distance(Gaussian.of(reals), Gaussian.of(seen))
    assert found["by_step"]["5"] == pytest.approx(expected, rel=1e-4)


def test_validation_is_not_taken_for_the_judge_split():
    """Splits of one size have each their own features."""
    images = load_images("digits", (1, 8, 8))
    splits = {**images.splits, "validation": images.splits["judge"]}
    other = dataclasses.replace(images, splits=splits, labels={}, sha256="other")
    judge = open_judge({"source": "shipped"}, "digits", None)
    task = Grey()
    task.latent = 64
    found = [
        course(config(50), task, each, RUNTIME, states({5: 0.0}), judge)["by_step"]["5"]
        for each in (images, other)
    ]
    assert found[0] != found[1]
