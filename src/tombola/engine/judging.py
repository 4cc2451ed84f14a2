"""What is measured of a trained network, at which steps, on which images and latents."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tombola.data.batches import normalise, to_uint8
from tombola.data.sources import Images
from tombola.errors import ConfigError
from tombola.metrics.downstream import accuracy, class_shares
from tombola.metrics.features import (
    Floats,
    Judge,
    find_inception,
    load_judge,
    open_inception,
    shipped_judge,
)
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.metrics.own_judge import own_judge
from tombola.metrics.pairs import Cloud, compare
from tombola.metrics.scores import active_units, inception_score
from tombola.recipes.thin import new_networks
from tombola.runtime import Runtime, rng
from tombola.tasks.base import RECONSTRUCTING, Networks, Task
from tombola.training.checkpoint import load_weights_file
from tombola.training.trainer import load_any_size, prepare

BATCH = 500
"""Images judged at once; fixed, so that equal networks give equal numbers."""
LOSS_IMAGES = 5_000
"""A GAN's loss is taken of so many reals and samples: it is drawn, not judged, and of all 10,000
it would cost more than everything else but the samples themselves."""
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
    judges: Mapping[str, Path],
) -> tuple[dict[str, Any], Tensor]:
    """Judge one training at its steps, ascending: a record, and the last one's images (uint8).

    The record has ``values`` (metric -> judged value: the median over the steps for GANs, else the
    last), ``by_step`` (step -> metric -> value), ``n`` (images), ``n_of`` (metric -> images, where
    it is of fewer) and ``step`` (the last).
    ``judges``: the files of those that were trained as runs, by role: ``judge``, which compares
    samples with reals, and ``classifier``, which says what they are.
    """
    reals = images.splits["judge"][: config["samples"]]
    latents = latents_of(task, len(reals), config["sampling_seed"])
    judge, classifier = (
        open_judge(config[role], images.name, judges.get(role), str(runtime.device))
        for role in ("judge", "classifier")
    )
    eye = _Eye(judge, classifier, reals, images.labels["judge"], images.sha256)
    networks = networks_in_eval(task, config, runtime)
    by_step: dict[str, dict[str, float]] = {}
    for step, load in weights.items():
        load_any_size(networks, load())
        by_step[str(step)], n_of, made = _measure(task, networks, reals, latents, eye, runtime)
    last = max(weights)
    names = by_step[str(last)]
    values = {
        name: statistics.median(row[name] for row in by_step.values())
        if task.family == "gan"
        else names[name]
        for name in names
    }
    record = {"values": values, "by_step": by_step, "n": len(reals), "n_of": n_of, "step": last}
    return record, made


@dataclass(frozen=True)
class JudgedState:
    """The weights of a training at a step, read when they are called for."""

    folder: Path
    step: int
    last: int

    def __call__(self) -> dict[str, Tensor]:
        """``network.name`` -> tensor; ConfigError if that state is not kept."""
        path = self.folder / f"judge-{self.step}.safetensors"
        if self.step == self.last:
            path = self.folder / "final.safetensors"
        elif not path.exists():
            # Only the last state outlives a judgement, and the others' median needs them.
            raise ConfigError(
                f"the state of step {self.step} is not kept in {self.folder}, so this training "
                "cannot be judged anew; choose another folder with --out, or use --keep all"
            )
        return load_weights_file(path)


class _Eye:
    """Judge and classifier, and what is known of the real images, kept from network to network."""

    def __init__(
        self,
        judge: Judge | None,
        classifier: Judge | None,
        reals: Tensor,
        labels: Tensor | None,
        data_sha256: str,
    ) -> None:
        self.judge, self.classifier = judge, classifier
        self.reals, self.labels = reals, labels
        self.data_sha256 = data_sha256

    def look(self, samples: Tensor | None, reconstructions: Tensor | None) -> dict[str, float]:
        """What the two networks see in uint8 images (N, C, H, W), by metric name."""
        values: dict[str, float] = {}
        probabilities: Floats | None = None
        if self.judge is not None and samples is not None:
            features, probabilities = self.judge.features(samples)
            values |= self.distances(self.judge, features)
            if probabilities is not None:
                values[self.judge.metrics["score"]] = inception_score(probabilities)
        if self.classifier is None:
            return values
        if reconstructions is not None and self.labels is not None:
            labels = self.labels[: len(reconstructions)]
            values["accuracy"] = accuracy(self.classifier, reconstructions, labels)
        elif samples is not None:
            if self.judge is None or self.judge.sha256 != self.classifier.sha256:
                _, probabilities = self.classifier.features(samples)
            assert probabilities is not None
            values |= class_shares(probabilities)
        return values

    def distances(self, judge: Judge, features: Floats) -> dict[str, float]:
        """How far features of samples are from those of the reals, by metric name."""
        gaussian, cloud = reals_seen(judge, self.reals, self.data_sha256)
        names = judge.metrics
        between = compare(cloud, Cloud(features))
        renamed = {"kid": names["kernel"], "kid_error": names["error"]}
        return {
            names["frechet"]: frechet_distance(
                gaussian, Gaussian.of(features), root=gaussian.root()
            ),
            **{renamed.get(name, name): value for name, value in between.items()},
        }


def floor_of(judge: Judge, images: Images, samples: int) -> dict[str, Any]:
    """What training images score in the place of samples: ``values`` by metric, and ``n`` of them.

    As many as a generator would be asked for, drawn without repetition (all, where there are
    fewer). No generator should do better by more than chance: a Frechet distance between samples
    of this size is not 0 even if both are of one distribution.
    """
    reals, train = images.splits["judge"][:samples], images.splits["train"]
    chosen = torch.randperm(len(train), generator=rng(0, "floor"), device="cpu")[: len(reals)]
    features, _ = judge.features(train[chosen], probabilities=False)
    eye = _Eye(judge, None, reals, None, images.sha256)
    return {"values": eye.distances(judge, features), "n": len(chosen)}


def reals_seen(judge: Judge, reals: Tensor, name: str) -> tuple[Gaussian, Cloud]:
    """What a judge sees in real images, computed once a process and name."""
    kept = _kept((judge.sha256, name, tuple(reals.shape)))
    if not kept:
        features, _ = judge.features(reals, probabilities=False)
        kept.update(gaussian=Gaussian.of(features), cloud=Cloud(features))
    return kept["gaussian"], kept["cloud"]


@lru_cache(maxsize=4)
def _kept(key: tuple[Any, ...]) -> dict[str, Any]:
    """An empty shelf for each key, the last four kept."""
    del key
    return {}


def open_judge(
    spec: Mapping[str, Any] | None, data: str, path: Path | None, device: str = "cpu"
) -> Judge | None:
    """The judge that a node's config names; None where nothing is sampled."""
    if spec is None:
        return None
    if spec["source"] == "file":
        return own_judge(str(path), spec["dimensions"], device=device)
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


def networks_in_eval(task: Task, config: Mapping[str, Any], runtime: Runtime) -> Networks:
    """New networks of a task, to be filled with trained weights and judged.

    ``config``: the shape, under ``data``, and under ``thin`` the record of how they were thinned.
    """
    networks = new_networks(task, tuple(config["data"]["shape"]), config.get("thin", {}))
    prepare(networks, runtime)
    for network in networks.values():
        network.eval()
    return networks


def latents_of(task: Task, n: int, sampling_seed: int) -> Tensor:
    """Draws from the task's prior, (n, latent); (n, 0) for a task without one."""
    if not task.latent:
        return torch.zeros(n, 0, device="cpu")
    return task.latents(n, rng(LATENT_SEED, "judge-latents", sampling_seed))


def _measure(
    task: Task,
    networks: Networks,
    reals: Tensor,
    latents: Tensor,
    eye: _Eye,
    runtime: Runtime,
) -> tuple[dict[str, float], dict[str, int], Tensor]:
    """All metrics of one network from one pass, counts that are not N, images (N, C, H, W)."""
    parts: dict[str, list[Tensor]] = {}
    sampled: list[Tensor] = []
    repeated: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(reals), BATCH):
            images = normalise(reals[start : start + BATCH].to(runtime.device))
            z = latents[start : start + BATCH].to(runtime.device)
            made = task.sample(networks, z) if task.latent else None
            row: dict[str, Tensor] = {}
            if task.family != "gan" or start < LOSS_IMAGES:
                row |= task.judge_loss(networks, images, z, made)
            if task.family in RECONSTRUCTING:
                again = task.reconstruct(networks, images)
                row["reconstruction_error"] = (again - images).square().flatten(1).mean(1)
                repeated.append(to_uint8(again).cpu())
            if made is not None:
                sampled.append(to_uint8(made).cpu())
            for name, value in row.items():
                parts.setdefault(name, []).append(value.double().cpu())
    joined = {name: torch.cat(values) for name, values in parts.items()}
    samples, reconstructions = (torch.cat(each) if each else None for each in (sampled, repeated))
    values = {**_summaries(joined), **eye.look(samples, reconstructions)}
    shown = reconstructions if samples is None else samples
    assert shown is not None
    n_of = {name: len(v) for name, v in joined.items() if len(v) < len(reals)}
    return values, n_of, shown


def _summaries(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Per-image quantities (N,) -> their means; ELBO and active units where they can be had."""
    values = {name: float(v.mean()) for name, v in parts.items() if name != "mean"}
    if "reconstruction" in values and "kl" in values:
        values["elbo"] = -(values["reconstruction"] + values["kl"])
    if "mean" in parts:
        values["active_units"] = float(active_units(parts["mean"].numpy()))
    return values


def save_grid(place: Path | BinaryIO, images: Tensor, columns: int = GRID_COLUMNS) -> None:
    """uint8 images (N, C, H, W) as one PNG, without gaps."""
    n, channels, height, width = images.shape
    rows = -(-n // columns)
    sheet = np.zeros((rows * height, columns * width, channels), np.uint8)
    for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        row, column = divmod(index, columns)
        sheet[row * height : (row + 1) * height, column * width : (column + 1) * width] = image
    picture = Image.fromarray(sheet if channels == 3 else sheet[..., 0])
    picture.save(place, format="PNG", optimize=True)
