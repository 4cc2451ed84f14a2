"""Make the judges that ship with the package: ``python benchmarks/make_judges.py digits mnist``.

Trains the small classifier on one CPU thread (digits: about a minute, mnist: a few minutes), checks
its gate and writes ``src/tombola/metrics/files/<data>.safetensors``. The same versions on the same
machine give the same bytes; elsewhere rounding differs, and so do the weights and their hash.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor

from tombola.config.runtime import rng, seed_everything
from tombola.data.batches import normalise
from tombola.data.sources import load_images
from tombola.data.splits import Images
from tombola.metrics.features import classifier_judge, save_judge
from tombola.metrics.ladder import gate
from tombola.models.classifier import (
    Classifier,
    ClassifierRecipe,
    classification_loss,
    classifier_recipe,
)

FILES = Path(__file__).parents[1] / "src" / "tombola" / "metrics" / "files"


def train(images: Tensor, labels: Tensor, classes: int, recipe: ClassifierRecipe) -> Classifier:
    """Adam along a half cosine; every draw is a function of (0, purpose, step)."""
    torch.set_num_threads(1)
    seed_everything(0, "judge-weights")
    model = Classifier(images.shape[1], classes, recipe.width).train()
    steps_per_epoch = len(images) // recipe.batch_size
    steps = recipe.epochs * steps_per_epoch
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    started = time.monotonic()
    for epoch in range(recipe.epochs):
        order = torch.randperm(len(images), generator=rng(0, "judge-order", epoch))
        for index in range(steps_per_epoch):
            step = epoch * steps_per_epoch + index
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            chosen = order[index * recipe.batch_size : (index + 1) * recipe.batch_size]
            seed_everything(0, "judge-step", step)
            loss = classification_loss(
                model,
                normalise(images[chosen]),
                labels[chosen],
                flip=recipe.flip,
                shrink=recipe.shrink,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(
            f"epoch {epoch + 1}/{recipe.epochs}: loss {loss.item():.4f}, "
            f"{time.monotonic() - started:.0f} s",
            flush=True,
        )
    return model.eval()


def make(data: str, images: Images, out: Path, *, epochs: int | None) -> None:
    """Train, check the gate, write the file; SystemExit if the gate does not open."""
    recipe = classifier_recipe(data, images.splits["train"].shape[1])
    if epochs:
        recipe = ClassifierRecipe(**{**vars(recipe), "epochs": epochs})
    labels = images.labels
    assert labels["train"] is not None
    model = train(images.splits["train"], labels["train"], images.classes, recipe)
    metadata = {
        "data": data,
        "data_sha256": images.sha256,
        "recipe": vars(recipe),
        "command": f"python benchmarks/make_judges.py {data}",
        "created_with": {"torch": torch.__version__},
    }
    judge = classifier_judge(model, metadata)
    result = gate(judge, images.splits, labels)
    print(result)
    if not result["passed"]:
        raise SystemExit(f"{data}: the gate stays shut: {'; '.join(result['reasons'])}")
    path = out / f"{data}.safetensors"
    save_judge(path, model, {**metadata, "accuracy": result["accuracy"], "gate": result})
    print(f"{path}: {judge.name}, {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and write the judges that ship.")
    parser.add_argument("data", nargs="+", choices=["digits", "mnist", "cifar10"])
    parser.add_argument("--data-dir", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=FILES)
    parser.add_argument("--epochs", type=int, default=None)
    arguments = parser.parse_args()
    for data in arguments.data:
        channels = 3 if data == "cifar10" else 1
        images = load_images(data, (channels, 32, 32), data_dir=arguments.data_dir)
        make(data, images, arguments.out, epochs=arguments.epochs)


if __name__ == "__main__":
    main()
