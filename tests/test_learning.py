"""What a trivial answer scores, and how far the end of a training still moves."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import softplus

import helpers
from tombola.config.runtime import Runtime
from tombola.data.sources import load_images
from tombola.engine.judging import open_judge
from tombola.engine.learning import mean_answer
from tombola.plan.cells import Arm, Cell, Plan, four_fifths
from tombola.results.learnt import above_floor, settling_shares, trivial_values
from tombola.store.graph import Graph
from tombola.tasks.autoencoding import VAE

RUNTIME = Runtime(device=torch.device("cpu"))
CONFIG = {"samples": 100, "data": {"shape": [1, 32, 32]}}


@pytest.fixture(scope="module")
def digits():
    return load_images("digits", (1, 32, 32))


def mean_of(images):
    return images.splits["train"].double().mean(0) / 127.5 - 1


def test_the_mean_training_image_answers_every_judged_image(digits):
    spec = {"source": "shipped"}
    found = mean_answer(CONFIG, VAE(width=1), digits, RUNTIME, open_judge(spec, "digits", None))
    reals, labels = digits.first("judge", 100)
    squares = (reals.double() / 127.5 - 1 - mean_of(digits)).square()
    values = found["values"]
    assert found["n"] == 100
    assert values["reconstruction_error"] == pytest.approx(float(squares.mean()), rel=1e-5)
    assert values["elbo"] == pytest.approx(-float(squares.flatten(1).sum(1).mean()), rel=1e-5)
    # The classifier gives the mean image one class, whatever the image is of.
    assert round(100 * values["accuracy"]) in labels.bincount().tolist()
    small = load_images("digits", (1, 8, 8))
    config = {"samples": 9, "data": {"shape": [1, 8, 8]}}
    alone = mean_answer(config, helpers.TinyAE(), small, RUNTIME, None)["values"]
    pixels = small.first("judge", 9)[0].double() / 127.5 - 1
    expected = float((pixels - mean_of(small)).square().mean())
    assert alone == {"reconstruction_error": pytest.approx(expected, rel=1e-5)}


class Narrow(VAE):
    """Pixels with a standard deviation of 1/2: -log p is twice the squared error."""

    def judge_loss(self, networks, images, latents, samples):
        row = super().judge_loss(networks, images, latents, samples)
        return {**row, "reconstruction": 2 * row["reconstruction"]}


class Beside(VAE):
    """A task that looks at samples beside the images."""

    def judge_loss(self, networks, images, latents, samples):
        row = super().judge_loss(networks, images, latents, samples)
        return {**row, "darkness": -samples.flatten(1).mean(1)}


class Logits(VAE):
    """A decoder whose answers are no images."""

    def reconstruct(self, networks, images):
        return 2 * super().reconstruct(networks, images).sigmoid() - 1

    def judge_loss(self, networks, images, latents, samples):
        mean, _ = networks["encoder"](images)
        logits = networks["decoder"](mean)
        nats = (softplus(logits) - (images + 1) / 2 * logits).flatten(1).sum(1)
        return {"reconstruction": nats, "kl": mean.square().sum(1), "mean": mean}


class Pair(VAE):
    """A decoder that is asked for two things."""

    def reconstruct(self, networks, images):
        return networks["decoder"].convolutions(images)


def test_the_likelihood_is_by_the_tasks_own_model_or_left_out(digits):
    plain, narrow, beside, logits, pair = (
        mean_answer(CONFIG, kind(width=1), digits, RUNTIME, None)["values"]
        for kind in (VAE, Narrow, Beside, Logits, Pair)
    )
    assert beside == plain
    assert narrow["elbo"] == pytest.approx(2 * plain["elbo"])
    assert set(logits) == set(pair) == {"reconstruction_error"}


ARM = Arm(method="imp", networks="all", rewind="2it", precision="fp32")
FCD = "fcd-digits-0123abcd"


def plan_of(**more):
    cells = [
        Cell(
            arm=ARM, kind=kind, seed=seed, round=0, rewind_steps=2, kept=0, pool=0, sparsity=0.0,
            sparsity_all=0.0, train="", evaluate=f"{kind}-{seed}",
        )
        for kind in ("dense", "ticket") for seed in (0, 1, 2)
    ]  # fmt: skip
    return Plan(graph=Graph(), cells=cells, arms=[ARM], **more)


def test_the_best_trivial_answer_counts():
    plan = plan_of(trivial=["mean", "states"])
    records = {
        "mean": {"values": {"reconstruction_error": 0.5, "elbo": -300.0}},
        "states": {
            "by_step": {
                "0": {FCD: 90.0, "precision": 0.1, "elbo": -9.0, "confident": 0.2, "is": math.nan},
                "2": {FCD: 95.0, "precision": 0.3, "elbo": -8.0, "confident": 0.1, "is": 2.0},
            }
        },
    }
    found = trivial_values(plan, records.__getitem__)
    assert found == {
        "reconstruction_error": 0.5, "elbo": -300.0, FCD: 90.0, "precision": 0.3, "is": 2.0,
    }  # fmt: skip
    records["states"] = {"not_run": True}
    assert set(trivial_values(plan, records.__getitem__)) == {"reconstruction_error", "elbo"}


def test_the_last_fifth_is_seen_on_validation_where_it_is_measured():
    assert (four_fifths(100), four_fifths(12), four_fifths(1)) == (80, 10, 1)
    end = {FCD: 8.0, "elbo": -99.0, "kl": 4.0}
    by_step = {"80": {FCD: 10.0, "elbo": -110.0, "kl": 5.0}, "100": end}
    course = {"by_step": {"76": 7.0, "80": 5.0, "100": 6.0}}
    records = {
        "dense-0": {"values": end, "by_step": by_step, "step": 100, "course": course},
        "dense-1": {"values": end, "by_step": by_step, "step": 100},
        "dense-2": {"diverged": 3},
        "floor": {"values": {FCD: 1.5, "precision": 0.9}, "n": 50},
    }
    plan = plan_of(floor="floor")
    found = settling_shares(plan, records.__getitem__)
    assert set(found) == {FCD, "elbo"}
    assert found[FCD] == {0: pytest.approx(0.2), 1: pytest.approx(0.2)}
    assert found["elbo"] == {0: pytest.approx(0.1), 1: pytest.approx(0.1)}
    # Of a GAN four fifths of the way are in the course alone; a diffusion's is of another metric.
    records["dense-0"]["by_step"] = {"96": end, "100": end}
    records["dense-1"] |= {"course": course, "values": {**end, "denoising_loss": 1.0}}
    found = settling_shares(plan, records.__getitem__)
    assert found[FCD] == {0: pytest.approx(0.2), 1: pytest.approx(0.2)}
    records["dense-1"]["by_step"]["80"][FCD] = 16.0
    assert settling_shares(plan, records.__getitem__)[FCD][1] == pytest.approx(0.5)
    assert above_floor(plan, records.__getitem__) == {FCD: 6.5}
