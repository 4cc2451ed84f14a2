"""What is measured of a trained network, at which steps, on which images and latents."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tombola.data.batches import normalise, to_uint8
from tombola.data.sources import Images
from tombola.metrics.features import (
    Judge,
    find_inception,
    load_judge,
    open_inception,
    shipped_judge,
)
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.metrics.scores import active_units, kid
from tombola.runtime import Runtime, rng
from tombola.tasks.base import Networks, Task
from tombola.training.trainer import load_weights, prepare

BATCH = 500
"""Images judged at once; fixed, so that equal networks give equal numbers."""
GRID_COLUMNS, GRID_ROWS = 8, 4
LATENT_SEED = 0
"""Latents of sampling seed s are rng(LATENT_SEED, "judge-latents", s) for every network."""

Loader = Callable[[], dict[str, Tensor]]


def evaluate(
    config: Mapping[str, Any],
    task: Task,
    images: Images,
    runtime: Runtime,
    weights: Mapping[int, Loader],
    paths: tuple[Path | None, Path],
) -> dict[str, Any]:
    """Judge one training at its steps, ascending; writes ``grid.png`` of the last one if asked.

    Returns ``values`` (metric -> judged value: the median over the steps for GANs, else the last),
    ``by_step`` (step -> metric -> value), ``n`` (images) and ``step`` (the last). ``paths``: the
    file of a judge trained as a run, if any, and the folder that the grid goes to.
    """
    judge_path, folder = paths
    reals = images.splits["judge"][: config["samples"]]
    latents = _latents(task, len(reals), config["sampling_seed"])
    judge = open_judge(config["judge"], images.name, judge_path, str(runtime.device))
    eye = _Eye(judge, reals, images.sha256)
    networks = task.networks(tuple(config["data"]["shape"]))
    prepare(networks, runtime)
    for network in networks.values():
        network.eval()
    by_step: dict[str, dict[str, float]] = {}
    for step, load in weights.items():
        load_weights(networks, load())
        by_step[str(step)], made = _measure(task, networks, reals, latents, eye, runtime)
    last = max(weights)
    if config["grid"]:
        save_grid(folder / "grid.png", made[: GRID_COLUMNS * GRID_ROWS])
    names = by_step[str(last)]
    values = {
        name: statistics.median(row[name] for row in by_step.values())
        if task.family == "gan"
        else names[name]
        for name in names
    }
    return {"values": values, "by_step": by_step, "n": len(reals), "step": last}


class _Eye:
    """A judge and what it has seen of the real images, kept from network to network."""

    def __init__(self, judge: Judge | None, reals: Tensor, data_sha256: str) -> None:
        self.judge = judge
        self.reals = reals
        self.data_sha256 = data_sha256

    def distances(self, fakes: Tensor) -> dict[str, float]:
        """Frechet and kernel distance of uint8 fakes to the reals, by the judge's metric names."""
        if self.judge is None:
            return {}
        reference, features = self._real_features(self.judge)
        seen, _ = self.judge.features(fakes, probabilities=False)
        names = self.judge.metrics
        return {
            names["frechet"]: frechet_distance(reference, Gaussian.of(seen), root=reference.root()),
            names["kernel"]: kid(features, seen)[0],
        }

    def _real_features(self, judge: Judge) -> tuple[Gaussian, Any]:
        """The judge's features of the real images, computed once a process."""
        kept = _kept((judge.sha256, self.data_sha256, tuple(self.reals.shape)))
        if not kept:
            features, _ = judge.features(self.reals, probabilities=False)
            kept.update(reference=Gaussian.of(features), features=features)
        return kept["reference"], kept["features"]


@lru_cache(maxsize=2)
def _kept(key: tuple[Any, ...]) -> dict[str, Any]:
    """An empty shelf for each key, the last two kept."""
    del key
    return {}


def open_judge(
    spec: Mapping[str, Any] | None, data: str, path: Path | None, device: str = "cpu"
) -> Judge | None:
    """The judge that a node's config names; None where nothing is sampled."""
    if spec is None:
        return None
    if spec["source"] == "inception":
        found = find_inception()
        assert found is not None
        return _opened(found, True, device)
    chosen = path if spec["source"] == "run" else shipped_judge(data)
    assert chosen is not None
    return _opened(chosen, False, device)


@lru_cache(maxsize=2)
def _opened(path: Path, inception: bool, device: str) -> Judge:
    return open_inception(path, device=device) if inception else load_judge(path, device=device)


def _latents(task: Task, n: int, sampling_seed: int) -> Tensor:
    """Draws from the task's prior, (n, latent); (n, 0) for a task without one."""
    if not task.latent:
        return torch.zeros(n, 0)
    return task.latents(n, rng(LATENT_SEED, "judge-latents", sampling_seed))


def _measure(
    task: Task,
    networks: Networks,
    reals: Tensor,
    latents: Tensor,
    eye: _Eye,
    runtime: Runtime,
) -> tuple[dict[str, float], Tensor]:
    """All metrics of one network from one pass, and its images (N, C, H, W) uint8."""
    parts: dict[str, list[Tensor]] = {}
    made: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(reals), BATCH):
            images = normalise(reals[start : start + BATCH].to(runtime.device))
            z = latents[start : start + BATCH].to(runtime.device)
            row = dict(task.judge_loss(networks, images, z))
            if task.family != "gan":
                again = task.reconstruct(networks, images)
                row["reconstruction_error"] = (again - images).square().flatten(1).mean(1)
            made.append(to_uint8(task.sample(networks, z) if task.latent else again).cpu())
            for name, value in row.items():
                parts.setdefault(name, []).append(value.double().cpu())
    fakes = torch.cat(made)
    joined = {name: torch.cat(values) for name, values in parts.items()}
    return {**_summaries(joined), **eye.distances(fakes)}, fakes


def _summaries(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Per-image quantities (N,) -> their means; ELBO and active units where they can be had."""
    values = {name: float(v.mean()) for name, v in parts.items() if name != "mean"}
    if "reconstruction" in values and "kl" in values:
        values["elbo"] = -(values["reconstruction"] + values["kl"])
    if "mean" in parts:
        values["active_units"] = float(active_units(parts["mean"].numpy()))
    return values


def save_grid(path: Path, images: Tensor, columns: int = GRID_COLUMNS) -> None:
    """uint8 images (N, C, H, W) as one PNG, without gaps."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * height, columns * width, channels), np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(index, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    picture = Image.fromarray(sheet if channels == 3 else sheet[..., 0])
    picture.save(path, format="PNG", optimize=True)
