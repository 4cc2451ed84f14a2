"""What is measured of a trained network, at which steps, on which images and latents."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tombola.config.runtime import Runtime, rng
from tombola.data.batches import normalise, to_uint8
from tombola.data.grid import GRID_COLUMNS, GRID_ROWS
from tombola.data.splits import Images
from tombola.metrics.downstream import accuracy, class_shares
from tombola.metrics.features import Floats, Judge, load_judge, open_inception
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.metrics.judge_files import find_inception, shipped_judge
from tombola.metrics.own_judge import own_judge
from tombola.metrics.pairs import MOST_DIMENSIONS, Cloud, compare
from tombola.metrics.scores import active_units, inception_score
from tombola.plan.thin import new_networks
from tombola.store.runs import Store
from tombola.tasks.base import RECONSTRUCTING, Networks, Task
from tombola.training.checkpoint import load_weights_file
from tombola.training.trainer import load_any_size, prepare

BATCH = 500
"""Images judged at once; fixed, so that equal networks give equal numbers."""
LOSS_IMAGES = 5_000
"""A GAN's loss is taken of so many reals and samples: it is drawn, not judged, and of all 10,000
it would cost more than everything else but the samples themselves."""
LATENT_SEED = 0
"""Latents of sampling seed s are rng(LATENT_SEED, "judge-latents", s) for every network."""

Loader = Callable[[], dict[str, Tensor]]
Measured = tuple[dict[str, float], dict[str, int]]
"""Values by metric, and of how many images each is."""


def evaluate(
    config: Mapping[str, Any],
    task: Task,
    images: Images,
    runtime: Runtime,
    weights: Mapping[int, Loader],
    judges: Mapping[str, Path],
) -> tuple[dict[str, Any], Tensor]:
    """Judge one training at its steps, ascending: a record, and the last one's first images.

    The record has ``values`` (metric -> judged value: the median over the steps for GANs, else the
    last), ``by_step`` (step -> metric -> value), ``reals`` (how many images are judged by),
    ``n`` (the same) and ``n_of`` (metric -> images or samples, where it is of others), ``step``
    (the last).
    ``judges``: the files of those that were trained as runs, by role: ``judge``, which compares
    samples with reals, and ``classifier``, which says what they are.
    """
    reals, labels = images.first("judge", config["samples"])
    fakes = config.get("fakes", len(reals)) if task.latent else 0
    latents = latents_of(task, max(len(reals), fakes), config["sampling_seed"])
    judge, classifier = (
        open_judge(config[role], images.name, judges.get(role), str(runtime.device))
        for role in ("judge", "classifier")
    )
    eye = _Eye(judge, classifier, reals, labels, images.sha256)
    networks = networks_in_eval(task, config, runtime)
    by_step: dict[str, dict[str, float]] = {}
    for step, load in weights.items():
        load_any_size(networks, load())
        by_step[str(step)], n_of, made = _measure(task, networks, latents, fakes, eye, runtime)
    last = max(weights)
    names = by_step[str(last)]
    values = {
        name: statistics.median(row[name] for row in by_step.values())
        if task.family == "gan"
        else names[name]
        for name in names
    }
    counts = {"n": len(reals), "n_of": n_of, "reals": len(reals)}
    return {"values": values, "by_step": by_step, **counts, "step": last}, made


@dataclass(frozen=True)
class JudgedState:
    """The weights of a training at a step, read when they are called for."""

    store: Store
    training: str
    """The run that they are of."""
    step: int
    last: int

    def __call__(self) -> dict[str, Tensor]:
        """``network.name`` -> tensor; DamagedError if that state is not there, whole."""
        name = "final" if self.step == self.last else f"judge-{self.step}"
        return self.store.read(self.training, f"{name}.safetensors", load_weights_file)


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

    def look(self, samples: Seen | None, reconstructions: Seen | None) -> Measured:
        """What the two networks saw, by metric name, and of how many images each."""
        values: dict[str, float] = {}
        n_of: dict[str, int] = {}
        if samples is not None and samples.features:
            assert self.judge is not None
            values, n_of = self.distances(self.judge, np.concatenate(samples.features))
            if samples.probabilities:
                probabilities = np.concatenate(samples.probabilities)
                values[self.judge.metrics["score"]] = inception_score(probabilities)
        if reconstructions is not None and reconstructions.classes:
            assert self.labels is not None
            classes = np.concatenate(reconstructions.classes)
            values["accuracy"] = accuracy(classes, self.labels[: len(classes)])
            n_of["accuracy"] = len(classes)
        elif samples is not None and samples.classes:
            values |= class_shares(np.concatenate(samples.classes))
        made = samples.n if samples is not None else 0
        return values, {**dict.fromkeys(values, made), **n_of}

    def distances(self, judge: Judge, features: Floats) -> Measured:
        """How far features of samples are from those of the reals, and of how many samples."""
        gaussian, cloud = reals_seen(judge, self.reals, self.data_sha256)
        names = judge.metrics
        # Of features of many dimensions the kernel distance is taken of pairs, as the shares are.
        fakes = Cloud(features if features.shape[1] <= MOST_DIMENSIONS else features[: len(cloud)])
        between = compare(cloud, fakes)
        renamed = {"kid": names["kernel"], "kid_error": names["error"]}
        values = {
            names["frechet"]: frechet_distance(
                gaussian, Gaussian.of(features), root=gaussian.root()
            ),
            **{renamed.get(name, name): value for name, value in between.items()},
        }
        near = min(len(fakes), len(cloud))
        counts = {**dict.fromkeys(values, near), names["frechet"]: len(features)}
        return values, counts | dict.fromkeys(renamed.values(), len(fakes))


class Seen:
    """What judge and classifier saw in images that were shown batch by batch; the first few."""

    def __init__(self, judge: Judge | None, classifier: Judge | None) -> None:
        self.judge, self.classifier = judge, classifier
        self.n = 0
        self.features: list[Floats] = []
        self.probabilities: list[Floats] = []
        self.classes: list[Floats] = []
        """The classifier's probabilities."""
        self.shown: list[Tensor] = []

    def add(self, images: Tensor) -> Seen:
        """Look at more uint8 images (N, C, H, W)."""
        if self.n < GRID_COLUMNS * GRID_ROWS:
            self.shown.append(images)
        self.n += len(images)
        probabilities = None
        if self.judge is not None:
            features, probabilities = self.judge.features(images)
            self.features.append(features)
            if probabilities is not None:
                self.probabilities.append(probabilities)
        if self.classifier is not None:
            if self.judge is None or self.judge.sha256 != self.classifier.sha256:
                _, probabilities = self.classifier.features(images)
            assert probabilities is not None
            self.classes.append(probabilities)
        return self


def floor_of(judge: Judge, images: Images, samples: int, fakes: int) -> dict[str, Any]:
    """What training images score in the place of ``fakes`` samples, by at most ``samples`` reals.

    ``values`` by metric; ``n``: how many, drawn without repetition, all where there are fewer;
    ``reals``. No generator should do better by more than chance: a Frechet distance between
    samples of this size is not 0 even if both are of one distribution.
    """
    (reals, _), train = images.first("judge", samples), images.splits["train"]
    chosen = torch.randperm(len(train), generator=rng(0, "floor"), device="cpu")[:fakes]
    features, _ = judge.features(train[chosen], probabilities=False)
    values, _ = _Eye(judge, None, reals, None, images.sha256).distances(judge, features)
    return {"values": values, "n": len(chosen), "reals": len(reals)}


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
        dimensions, sha256 = spec["dimensions"], spec["sha256"]
        return own_judge(str(path), dimensions, sha256=sha256, device=device)
    if spec["source"] == "inception":
        found = find_inception()
        assert found is not None
        return _opened(found, True, device)
    chosen = path if spec["source"] == "run" else shipped_judge(data)
    assert chosen is not None
    return _opened(chosen, False, device)


def sound_judge(path: Path) -> Path:
    """The file of a judge that was trained as a run, once it was read; DataError if unsound."""
    load_judge(path)
    return path


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
    task: Task, networks: Networks, latents: Tensor, fakes: int, eye: _Eye, runtime: Runtime
) -> tuple[dict[str, float], dict[str, int], Tensor]:
    """All metrics of one network from one pass, counts that are not N, images (N, C, H, W).

    A task's own quantities are of as many reals as fakes, which it sees side by side.
    """
    parts: dict[str, list[Tensor]] = {}
    repeats = task.family in RECONSTRUCTING
    labelled = repeats and eye.labels is not None  # the classifier is for what is made again
    samples = Seen(eye.judge, None if labelled else eye.classifier) if fakes else None
    again = Seen(None, eye.classifier if labelled else None) if repeats else None
    with torch.no_grad():
        for start in range(0, len(latents), BATCH):
            images = normalise(eye.reals[start : start + BATCH].to(runtime.device))
            z = latents[start : start + BATCH].to(runtime.device)
            made = task.sample(networks, z[: fakes - start]) if start < fakes else None
            if samples is not None and made is not None:
                samples.add(to_uint8(made).cpu())
            row: dict[str, Tensor] = {}
            n = min(len(images), 0 if made is None else len(made)) if fakes else len(images)
            if n and (task.family != "gan" or start < LOSS_IMAGES):
                beside = made[:n] if made is not None else None
                row |= task.judge_loss(networks, images[:n], z[:n], beside)
            if again is not None and len(images):
                repeated = task.reconstruct(networks, images)
                error = (repeated - images).square().flatten(1).mean(1)
                row["reconstruction_error"] = error
                again.add(to_uint8(repeated).cpu())
            for name, value in row.items():
                parts.setdefault(name, []).append(value.double().cpu())
    joined = {name: torch.cat(values) for name, values in parts.items()}
    values, counts = eye.look(samples, again)
    shown = samples or again
    assert shown is not None
    counts |= {{"mean": "active_units"}.get(name, name): len(v) for name, v in joined.items()}
    counts |= {"elbo": counts["reconstruction"]} if "reconstruction" in counts else {}
    n_of = {name: count for name, count in counts.items() if count != len(eye.reals)}
    return {**_summaries(joined), **values}, n_of, torch.cat(shown.shown)


def _summaries(parts: Mapping[str, Tensor]) -> dict[str, float]:
    """Per-image quantities (N,) -> their means; ELBO and active units where they can be had."""
    values = {name: float(v.mean()) for name, v in parts.items() if name != "mean"}
    if "reconstruction" in values and "kl" in values:
        values["elbo"] = -(values["reconstruction"] + values["kl"])
    if "mean" in parts:
        values["active_units"] = float(active_units(parts["mean"].numpy()))
    return values
