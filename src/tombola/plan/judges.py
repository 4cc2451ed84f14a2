"""Who judges? The networks that compare samples and say what images are of, chosen for a task."""

from __future__ import annotations

from typing import Any

from tombola.config.registry import file_sha256
from tombola.data.splits import Images
from tombola.errors import ConfigError
from tombola.metrics.judge_files import find_inception, shipped_judge
from tombola.metrics.own_judge import TRIED, try_own_judge
from tombola.tasks.base import Task


def choose_judge(task: Task, images: Images, features: str = "") -> dict[str, Any] | None:
    """Which network judges samples: Inception where its file is, else the data set's classifier.

    ``features``: a network of the user's own instead, which is tried on a few images first.
    ConfigError if it fails there, or if the task makes no samples that it could judge.
    """
    if task.family == "autoencoder":
        if features:
            raise ConfigError(
                f"judge.features is {features!r}, but {type(task).__name__} makes no samples that "
                "it could judge; leave it out, or take a VAE or a GAN"
            )
        return None
    if features:
        return try_own_judge(features, images.first("judge", TRIED)[0])
    inception = find_inception()
    if inception is not None:
        return {"source": "inception"}
    shipped = shipped_judge(images.name)
    if shipped is not None:
        return {"source": "shipped", "data": images.name, "sha256": file_sha256(shipped)}
    return {"source": "run"}


def choose_classifier(
    task: Task, images: Images, downstream: str, features: str = ""
) -> dict[str, Any] | None:
    """Which network says what reconstructions and samples are of; None where none is asked.

    ``downstream``: ``judge`` = the data set's own classifier, trained if need be; ``resnet18`` =
    the paper's, trained here; ``auto`` = the own one, but for autoencoders, which need no judge,
    only where it ships; ``none``. ConfigError if one is asked for on data without labels.
    """
    if not images.classes and downstream in ("judge", "resnet18"):
        raise ConfigError(
            f"judge.downstream is {downstream!r}, but {images.name} has no labels to learn from; "
            "leave it at auto, or give images with labels"
        )
    if not images.classes or downstream == "none":
        return None
    if downstream == "resnet18":
        return {"source": "run", "network": "resnet18"}
    shipped = shipped_judge(images.name)
    if shipped is not None:
        return {"source": "shipped", "data": images.name, "sha256": file_sha256(shipped)}
    if downstream == "auto" and (features or choose_judge(task, images) != {"source": "run"}):
        return None
    return {"source": "run"}
