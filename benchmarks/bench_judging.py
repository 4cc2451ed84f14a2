"""How much does it cost to judge one GAN, against what cannot be avoided?

Ours: all metrics of one network at one step, on 10,000 samples against 10,000 reals whose features
are known. The baseline is one of each: the samples generated, one pass of the judge over them, the
Frechet distance from their moments, and one blockwise pass over all distances to the reals. What
ours does besides is the discriminator's loss on reals and samples, the kernel distance, and the
pass over the distances among the samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

import settings
from measure import Section, children, compare, row, threads
from tombola.config.runtime import Runtime
from tombola.data.batches import to_uint8
from tombola.data.sources import load_images
from tombola.engine.judging import BATCH, evaluate, latents_of, networks_in_eval, open_judge
from tombola.engine.judging import reals_seen as seen
from tombola.metrics.frechet import Gaussian, frechet_distance
from tombola.training.trainer import load_weights

COUNTS = {"full": 10_000, "toy": 60}
ROWS = 200
"""Samples whose distances to all reals are held at once."""
SHIPPED = {"source": "shipped", "data": "digits"}


class Judgement:
    """A task's networks as they are drawn, 10,000 reals, and a judge that has seen those."""

    def __init__(self, preset: str, size: str) -> None:
        self.task, self.count = settings.task("dcgan", size, preset), COUNTS[size]
        shape = settings.shape("dcgan")
        digits = load_images("digits", shape)
        reals = settings.images("dcgan", self.count)
        self.images = dataclasses.replace(
            digits, splits={**digits.splits, "judge": reals}, labels={"judge": None}, classes=0
        )
        self.runtime = Runtime.open("cpu", "fp32", 1)
        self.weights = {
            f"{name}.{key}": value
            for name, network in self.task.networks(shape).items()
            for key, value in network.state_dict().items()
        }
        self.config: Mapping[str, Any] = {
            "samples": self.count,
            "fakes": self.count,
            "sampling_seed": 0,
            "judge": SHIPPED,
            "classifier": None,
            "data": {"shape": list(shape)},
        }
        judge = open_judge(SHIPPED, "digits", None)
        assert judge is not None
        self.judge = judge
        chosen, _ = self.images.first("judge", self.count)
        self.gaussian, self.cloud = seen(judge, chosen, self.images.sha256)
        self.radii, _ = self.cloud.radii, self.cloud.within
        self.gaussian.root()

    def ours(self) -> dict[str, float]:
        """Every metric, as a search takes them."""
        steps = {1: lambda: self.weights}
        record, _ = evaluate(self.config, self.task, self.images, self.runtime, steps, {})
        values: dict[str, float] = record["values"]
        return values

    @torch.no_grad()
    def least(self) -> dict[str, float]:
        """The Frechet distance and the density, each by the shortest way."""
        networks = networks_in_eval(self.task, self.config, self.runtime)
        load_weights(networks, self.weights)
        latents = latents_of(self.task, self.count, 0)
        made = [to_uint8(self.task.sample(networks, z)) for z in torch.split(latents, BATCH)]
        features, _ = self.judge.features(torch.cat(made), probabilities=False)
        found = frechet_distance(self.gaussian, Gaussian.of(features), root=self.gaussian.root())
        vectors, reals = features.astype(np.float64), self.cloud.vectors
        inside = 0
        for start in range(0, len(vectors), ROWS):
            rows = vectors[start : start + ROWS]
            distances = rows @ reals.T
            distances *= -2
            distances += (rows * rows).sum(1)[:, None]
            distances += self.cloud.squares
            inside += int((distances < self.radii).sum())
        density = inside / len(vectors) / self.cloud.neighbours
        return {self.judge.metrics["frechet"]: found, "density": density}


def measured(size: str, blocks: int) -> Section:
    """A small and a large generator, one thread each; few blocks, for they are long."""
    rows = []
    counts = {"quick": max(1, blocks // 2), "paper": max(1, blocks // 5)}
    for preset, count in counts.items():
        sides = [
            ({"judging": side, "preset": preset, "size": size}, threads(1))
            for side in ("ours", "least")
        ]
        with children("bench_judging.py", *sides) as (ours, baseline):
            found = compare(partial(ours.run, 1), partial(baseline.run, 1), count)
        rows.append(row(f"one dcgan in {preset} size", found, 1.5))
    return Section(
        title="All metrics of one GAN against one of each work they need",
        rows=rows,
        notes=[
            f"{COUNTS[size]:,} samples of 3x32x32 against as many reals that were seen before, by "
            "the digits' judge of 64 features; one thread. The baseline: samples, one pass of the "
            "judge, moments and the Frechet distance, one blockwise pass over the distances "
            f"between samples and reals. {counts['quick']} and {counts['paper']} blocks."
        ],
    )


if __name__ == "__main__":
    import json
    import sys

    if sys.argv[1:]:
        from measure import serve

        setting = json.loads(sys.argv[1])
        judgement = Judgement(setting["preset"], setting["size"])
        serve(getattr(judgement, setting["judging"]), warm_up=1)
    else:
        from run import main

        main(["judging"])
