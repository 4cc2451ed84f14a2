"""May this classifier judge? Its distance must climb a ladder of corruptions from a low floor.

Distances are Frechet distances of (corrupted) judge-split images to clean training images. They
must grow with each strength of noise, blur and crop, stand near their floor for clean images, and
rise whenever a class is left out, more than when as many images are left out at random.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tombola.config.runtime import rng
from tombola.metrics.downstream import accuracy
from tombola.metrics.features import Judge
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.metrics.judge_files import ACCURACY_GATES

MAX_TRAIN_IMAGES = 10_000
MAX_JUDGE_IMAGES = 2_500
"""How many judge images climb the ladder: enough for its order, a few seconds of work."""
FLOOR_SHARE = 0.1
"""Clean judge images may be at most this share of the weakest top rung away from training."""
MAX_DROPPED = 20
"""At most so many classes are left out one by one."""
LEAST_DROPPED = 5
"""Judge images that a class must have to be left out: fewer are lost among the others' chance."""

NOISE = (0.1, 0.2, 0.4)
"""Standard deviation of Gaussian noise, as a share of the range of pixel values."""
BLUR = (0.05, 0.1, 0.2)
"""Standard deviation of a Gaussian blur, as a share of the image's height."""
CROP = (0.85, 0.7, 0.5)
"""Side of the centre crop that is scaled up again, as a share of the image's side."""


def gate(
    judge: Judge,
    splits: Mapping[str, Tensor],
    labels: Mapping[str, Tensor | None],
    *,
    compares: bool = True,
) -> dict[str, Any]:
    """Climb the ladder and measure accuracy: ``{"passed", "reasons", "accuracy", "rungs", ...}``.

    Without ``compares`` no distance will be taken in its features, and it need not climb.

    ``splits``: uint8 images (N, C, H, W) of ``train`` and ``judge``; ``labels`` of ``judge``:
    int64 (N,) or None, with which there is neither accuracy nor a rung of dropped classes.
    ``reasons`` says in one line each what failed. The result is plain JSON.
    """
    wanted_labels = labels.get("judge")
    result: dict[str, Any] = {}
    reasons: list[str] = []
    if compares:
        result = climb(judge, splits["train"], splits["judge"], wanted_labels)
        reasons = ladder_faults(result)
    result["accuracy"] = None
    if wanted_labels is not None:
        _, probabilities = judge.features(splits["judge"])
        assert probabilities is not None
        result["accuracy"] = accuracy(probabilities, wanted_labels)
        wanted = ACCURACY_GATES.get(str(judge.metadata.get("data")))
        if wanted is not None and not result["accuracy"] >= wanted:
            reasons.insert(0, f"accuracy {result['accuracy']:.4f} is below {wanted}")
    return {"passed": not reasons, "reasons": reasons, **result}


def climb(
    judge: Judge, train_images: Tensor, judge_images: Tensor, judge_labels: Tensor | None
) -> dict[str, Any]:
    """Distances of every rung: ``floor``, ``rungs`` by corruption and ``dropped`` by class.

    ``sampling_floor`` is what two samples of the training images are apart, ``thinned`` the
    distance when as many images as the class has are left out at random. Classes of fewer judge
    images than LEAST_DROPPED are left in, and counted.
    """
    train, _ = judge.features(train_images[:MAX_TRAIN_IMAGES], probabilities=False)
    images = judge_images[:MAX_JUDGE_IMAGES]
    clean, _ = judge.features(images, probabilities=False)
    reference = Gaussian.of(train)

    def distance(features: Any) -> float:
        return frechet_distance(reference, Gaussian.of(features))

    rungs = {}
    for name, (corrupt, strengths) in CORRUPTIONS.items():
        rungs[name] = [
            distance(judge.features(corrupt(images, strength), probabilities=False)[0])
            for strength in strengths
        ]
    dropped, thinned, few = {}, {}, 0
    if judge_labels is not None:
        labels = judge_labels[: len(images)].numpy()
        values, counts = np.unique(labels, return_counts=True)
        few = int((counts < LEAST_DROPPED).sum())
        # the same number of images left out at random: what the smaller sample alone does
        order = torch.randperm(
            len(images), generator=rng(0, "ladder-thinned"), device="cpu"
        ).numpy()
        for label in values[counts >= LEAST_DROPPED][:MAX_DROPPED]:
            others = labels != label
            if np.count_nonzero(others) >= 2:
                dropped[str(label)] = distance(clean[others])
                thinned[str(label)] = distance(clean[order[: np.count_nonzero(others)]])
    return {
        "floor": distance(clean),
        "sampling_floor": _sampling_floor(train, len(images)),
        "rungs": rungs,
        "strengths": {name: list(strengths) for name, (_, strengths) in CORRUPTIONS.items()},
        "dropped": dropped,
        "thinned": thinned,
        **({"classes_too_small_to_drop": few} if few else {}),
        "train_images": len(train),
        "judge_images": len(images),
    }


def _sampling_floor(train: Any, count: int) -> float:
    """Distance of ``count`` training images (at most half) to the others, chosen at random."""
    order = torch.randperm(len(train), generator=rng(0, "ladder-floor"), device="cpu").numpy()
    count = min(count, len(train) // 2)
    return frechet_distance(Gaussian.of(train[order[count:]]), Gaussian.of(train[order[:count]]))


def ladder_faults(result: dict[str, Any]) -> list[str]:
    """What is wrong with the distances that ``climb`` found, a line each; empty if nothing."""
    floor, reasons = result["floor"], []
    for name, distances in result["rungs"].items():
        climbs = [floor, *distances]
        if not all(a < b for a, b in itertools.pairwise(climbs)):
            shown = ", ".join(f"{value:.4g}" for value in climbs)
            reasons.append(f"the distance does not grow with {name}: {shown}")
    weakest_top = min(distances[-1] for distances in result["rungs"].values())
    if not floor <= FLOOR_SHARE * weakest_top:
        reasons.append(
            f"clean judge images are {floor:.4g} from training images, more than "
            f"{FLOOR_SHARE} of the weakest top rung, {weakest_top:.4g}"
        )
    thinned = result["thinned"]
    unseen = [label for label, value in result["dropped"].items() if not value > thinned[label]]
    if unseen:
        reasons.append(f"the distance does not notice that a class is gone: {', '.join(unseen)}")
    return reasons


def noise(images: Tensor, strength: float) -> Tensor:
    """uint8 images with Gaussian noise of ``strength`` x 255, the same draws for each strength."""
    draws = torch.randn(images.shape, generator=rng(0, "ladder-noise"), device="cpu")
    return _to_uint8(images + 255 * strength * draws)


def blur(images: Tensor, strength: float) -> Tensor:
    """uint8 images (N, C, H, W) under a Gaussian of ``strength`` x H pixels, border repeated."""
    sigma = strength * images.shape[2]
    radius = max(1, min(round(3 * sigma), min(images.shape[2:]) - 1))
    offsets = torch.arange(-radius, radius + 1, dtype=torch.float32, device="cpu")
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    n, c, height, width = images.shape
    planes = images.reshape(n * c, 1, height, width).float()
    padded = F.pad(planes, (radius,) * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.reshape(1, 1, -1, 1))
    return _to_uint8(F.conv2d(rows, kernel.reshape(1, 1, 1, -1)).reshape(images.shape))


def crop(images: Tensor, share: float) -> Tensor:
    """The centre ``share`` x side of uint8 images (N, C, H, W), scaled up to their size."""
    height, width = images.shape[2:]
    high, wide = max(1, round(share * height)), max(1, round(share * width))
    top, left = (height - high) // 2, (width - wide) // 2
    part = images[:, :, top : top + high, left : left + wide].float()
    return _to_uint8(F.interpolate(part, (height, width), mode="bilinear"))


def _to_uint8(values: Tensor) -> Tensor:
    return values.round().clamp(0, 255).to(torch.uint8)


Corruption = Callable[[Tensor, float], Tensor]
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "noise": (noise, NOISE),
    "blur": (blur, BLUR),
    "crop": (crop, CROP),
}
"""Corruption -> how it is done and its strengths, weakest first."""
