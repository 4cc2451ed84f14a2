"""The gate: a ladder of corruptions, climbed by the shipped judge and by one that knows nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from tombola.config.runtime import rng
from tombola.data.sources import load_images
from tombola.metrics import ladder
from tombola.metrics.features import classifier_judge, load_judge
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.metrics.judge_files import ACCURACY_GATES, shipped_judge
from tombola.models.classifier import Classifier


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("TOMBOLA_CACHE", str(tmp_path / "cache"))


def images(n: int) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    return torch.randint(256, (n, 1, 32, 32), generator=generator).to(torch.uint8)


def _digits(size: int, split: str) -> tuple[Tensor, Tensor]:
    loaded = load_images("digits", (1, size, size))
    return loaded.splits[split], loaded.labels[split]


@pytest.mark.parametrize("size", [28, 32, 64])
def test_the_shipped_digits_judge_knows_digits_of_every_size(size):
    judge = load_judge(shipped_judge("digits"))
    images, labels = _digits(size, "judge")
    assert ladder.accuracy(judge.features(images)[1], labels) >= ACCURACY_GATES["digits"]


def test_the_shipped_digits_judge_climbs_its_ladder_again():
    judge = load_judge(shipped_judge("digits"))
    train, _ = _digits(32, "train")
    judged, labels = _digits(32, "judge")
    result = ladder.gate(judge, {"train": train, "judge": judged}, {"judge": labels})
    assert result["reasons"] == []
    assert result["passed"]
    assert result["floor"] == pytest.approx(judge.metadata["gate"]["floor"], rel=1e-3)
    json.dumps(result)
    unlabelled = ladder.climb(judge, train, judged[:99], None)
    assert unlabelled["dropped"] == {}


def _result(**changes):
    good = {
        "floor": 1.0,
        "rungs": {"noise": [2.0, 30.0], "blur": [3.0, 40.0]},
        "dropped": {"0": 4.0, "1": 5.0},
        "thinned": {"0": 1.5, "1": 1.5},
    }
    return {**good, **changes}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"rungs": {"noise": [2.0, 2.0], "blur": [2, 90]}}, "does not grow with noise: 1, 2, 2"),
        ({"rungs": {"noise": [0.9, 20], "blur": [2, 90]}}, "does not grow with noise"),
        ({"floor": float("nan")}, "clean judge images"),
        ({"rungs": {"noise": [2, 9.9], "blur": [2, 90]}}, "clean judge images are 1 from"),
        ({"dropped": {"0": 4.0, "1": 1.5}}, "a class is gone: 1"),
    ],
)
def test_every_fault_of_a_ladder_has_its_reason(changes, reason):
    assert ladder.ladder_faults(_result()) == []
    assert any(reason in text for text in ladder.ladder_faults(_result(**changes)))


def test_a_gate_stays_shut_for_a_judge_that_knows_nothing():
    torch.manual_seed(0)
    judge = classifier_judge(Classifier(1, 10, 4), {"data": "digits"})
    labels = torch.arange(40) % 10
    result = ladder.gate(judge, {"train": images(80), "judge": images(40)}, {"judge": labels})
    assert not result["passed"]
    assert f"accuracy {result['accuracy']:.4f} is below 0.95" in result["reasons"]


def test_corruptions_do_what_their_strength_says():
    grey = torch.full((4, 1, 64, 64), 128, dtype=torch.uint8)
    noisy = ladder.noise(grey, 0.1).float()
    assert float(noisy.std()) == pytest.approx(25.5, rel=0.03)
    dot = torch.zeros(1, 1, 65, 65, dtype=torch.uint8)
    dot[0, 0, 32, 32] = 255
    blurred = ladder.blur(dot, 1 / 65)[0, 0].float()
    # the peak of a Gaussian of one pixel is 1 / (2 pi); its kernel ends at three pixels
    assert float(blurred.max()) == pytest.approx(255 / (2 * np.pi), abs=1)
    assert torch.equal(blurred, blurred.T)
    ramp = torch.arange(64, dtype=torch.uint8).repeat(1, 1, 64, 1)
    cropped = ladder.crop(ramp, 0.5)
    assert (int(cropped.min()), int(cropped.max())) == (16, 47)
    assert torch.equal(ladder.crop(ramp, 1.0), ramp)


def test_noise_is_the_same_at_every_call():
    assert torch.equal(ladder.noise(images(7), 0.2), ladder.noise(images(7), 0.2))


def test_a_dropped_class_is_compared_with_as_many_images_left_out_at_random():
    judge = load_judge(shipped_judge("digits"))
    train, _ = _digits(32, "train")
    judged, labels = _digits(32, "judge")
    result = ladder.climb(judge, train[:300], judged[:100], labels[:100])
    clean = judge.features(judged[:100])[0]
    reference = Gaussian.of(judge.features(train[:300])[0])
    without = labels[:100].numpy() != 3
    order = torch.randperm(100, generator=rng(0, "ladder-thinned")).numpy()
    expected = frechet_distance(reference, Gaussian.of(clean[without]))
    assert result["dropped"]["3"] == pytest.approx(expected, rel=1e-6)
    thinned = frechet_distance(reference, Gaussian.of(clean[order[: without.sum()]]))
    assert result["thinned"]["3"] == pytest.approx(thinned, rel=1e-6)
