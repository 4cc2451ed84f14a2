"""How a data set gets its own judge: a small classifier, trained by the one trainer and gated.

It is trained on the CPU with one thread whatever the search runs on, so that one data set has one
judge. Data without labels get the pretext task of telling four rotations apart.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from tombola.config.runtime import Runtime, seed_everything
from tombola.data.batches import LabelledBatches, normalise
from tombola.data.splits import Images
from tombola.metrics.features import adapt, load_judge, save_judge
from tombola.metrics.ladder import MAX_TRAIN_IMAGES, gate
from tombola.models.classifier import (
    NETWORKS,
    RESNET18,
    ROTATIONS,
    Classifier,
    ClassifierRecipe,
    classification_loss,
    classifier_recipe,
)
from tombola.store.runs import CHECKPOINT
from tombola.tasks.base import Networks, Shape, Task
from tombola.training.checkpoint import load_checkpoint, save_state
from tombola.training.trainer import Settings, Trainer

CHECKPOINT_SECONDS = 60.0
MIN_STEPS = 1500
"""Few images still get this many steps."""


class JudgeTask(Task):
    """The training of a judge, as a task; its batches carry labels (or None)."""

    cosine = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, recipe: ClassifierRecipe, classes: int) -> None:
        super().__init__(batch_size=recipe.batch_size, learning_rate=recipe.learning_rate)
        self._recipe, self._classes = recipe, classes

    def networks(self, shape: Shape) -> Networks:
        """One classifier for images (C, 32, 32)."""
        kind = NETWORKS[self._recipe.network]
        return {"classifier": kind(shape[0], self._classes, self._recipe.width)}

    def loss(self, turn: str, networks: Networks, images: Any) -> Tensor:
        """Cross-entropy of a batch of (images, labels or None)."""
        del turn
        model = networks["classifier"]
        assert isinstance(model, Classifier)
        recipe = self._recipe
        return classification_loss(model, *images, flip=recipe.flip, shrink=recipe.shrink)


def train_judge(
    config: Mapping[str, Any],
    images: Images,
    folder: Path,
    progress: Callable[[int], None] = lambda steps: None,
) -> dict[str, Any]:
    """Train the judge of a data set, write ``judge.safetensors`` to the folder, gate it.

    Returns its metadata: accuracy on the judge split, the gate's result, steps and seconds.
    """
    channels = images.splits["train"].shape[1]
    recipe = classifier_recipe(images.name, channels, config.get("network", "small"))
    labelled = images.classes > 0
    task = JudgeTask(recipe, images.classes if labelled else ROTATIONS)
    train = adapt(images.splits["train"], channels).contiguous()
    labels = images.labels["train"] if labelled else None
    batches = LabelledBatches(train, labels, recipe.batch_size, seed=0)
    by_recipe = max(MIN_STEPS, round(recipe.epochs * batches.steps_per_epoch()))
    steps = config["steps"] or by_recipe
    runtime = Runtime.open("cpu", "fp32", 1)
    seed_everything(0, "judge")
    networks = task.networks((channels, 32, 32))
    trainer = Trainer(task, networks, batches, Settings(runtime=runtime, seed=0, total_steps=steps))
    seconds = _run(trainer, folder / CHECKPOINT, progress)
    model = networks["classifier"].eval()
    assert isinstance(model, Classifier)
    metadata: dict[str, Any] = {"data": images.name, "steps": steps, "labelled": labelled}
    if labelled:
        metadata["accuracy"] = _accuracy(model, images)
    path = folder / "judge.safetensors"
    save_judge(path, model, metadata)
    compares = recipe.network != RESNET18  # that one only says what images are of
    train, _ = images.first("train", MAX_TRAIN_IMAGES)
    judged, labels = images.first("judge")
    splits = {"train": train, "judge": judged}
    metadata["gate"] = gate(load_judge(path), splits, {"judge": labels}, compares=compares)
    save_judge(path, model, metadata)
    return {**metadata, "seconds": seconds}


def _run(trainer: Trainer, checkpoint: Path, progress: Callable[[int], None]) -> float:
    """Train to the last step with a checkpoint a minute; the seconds it took, all sittings."""
    seconds = 0.0
    if (saved := load_checkpoint(checkpoint)) is not None:
        trainer.resume(*saved)
        seconds = float(saved[1]["seconds"])
    start = written = time.perf_counter()
    while trainer.step < trainer.settings.total_steps:
        trainer.advance()
        progress(1)
        if time.perf_counter() - written > CHECKPOINT_SECONDS:
            written = time.perf_counter()
            save_state(checkpoint, trainer, {"seconds": seconds + written - start})
    checkpoint.unlink(missing_ok=True)
    return seconds + time.perf_counter() - start


def _accuracy(model: Classifier, images: Images) -> float:
    labels = images.labels["judge"]
    assert labels is not None
    judged = adapt(images.splits["judge"], model.channels)
    with torch.no_grad():
        guesses = torch.cat([model(normalise(part)).argmax(1) for part in torch.split(judged, 500)])
    return float((guesses == labels).double().mean())
