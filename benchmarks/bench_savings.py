"""How much of a training's time does an early-bird ticket save, search included?

Seconds of a step in each phase of the paper's dcgan, measured in turns (dense, and cut to a quarter
of its channels, rounded to 16), times a plan of 200 epochs that is cut after the search. Judging
is not counted; the cut is.
"""

from __future__ import annotations

import os
import time
from functools import partial

import settings
from measure import Comparison, Row, Section, Spread, children, compare, row, threads
from tombola.engine.executors.local import MALLOC
from tombola.plan.trial import work_of

EPOCHS, IMAGES = 200, 50_000
"""The plan: the paper's epochs, CIFAR-10's training images."""
SEARCH_EPOCHS = 2.75
"""Epochs until the cut: the longest of docs/results/table2 (the paper: 4 to 6 of 200)."""
STEPS = 4
"""Steps of a stretch."""
TARGETS = {"fp32": 0.25, "bf16": 0.18}
"""What of dense fp32 training's time may be left."""


def measured(size: str, blocks: int) -> Section:
    """Both precisions against dense fp32: each phase's step, then the plan."""
    task, shape = settings.task("dcgan", size), settings.shape("dcgan")
    networks = settings.networks(task, "dcgan")
    dense = work_of(task, networks, shape).step_macs
    start = time.perf_counter()
    small = settings.cut(task, networks, "dcgan")
    cut_seconds = time.perf_counter() - start
    share = work_of(task, small, shape).step_macs / dense
    whole = EPOCHS * (IMAGES // task.batch_size)
    search = SEARCH_EPOCHS / EPOCHS
    rows = [
        Row(
            label="training FLOPs planned, search included",
            value=Spread.of([search + (1 - search) * share]),
            target=0.12,
        )
    ]
    for precision, target in TARGETS.items():
        small_step = compared("cut", precision, size, blocks)
        rows.append(row(f"a step, cut, {precision}", small_step, None, STEPS))
        before = Spread(1.0, 1.0, 1.0)
        if precision != "fp32":
            dense_step = compared("dense", precision, size, blocks)
            rows.append(row(f"a step, dense, {precision}", dense_step, None, STEPS))
            before = dense_step.ratio()
        once = cut_seconds / (whole * small_step.seconds()[1] / STEPS)
        after = small_step.ratio()
        planned = [
            search * a + (1 - search) * b + once
            for a, b in zip(
                (before.low, before.middle, before.high),
                (after.low, after.middle, after.high),
                strict=True,
            )
        ]
        rows.append(
            Row(label=f"training time planned, {precision}", value=Spread(*planned), target=target)
        )
    cores = min(2, os.cpu_count() or 1)
    return Section(
        title="What an early-bird ticket saves",
        rows=rows,
        notes=[
            "dcgan in paper size, 32x32 colour, batches of 128; the baseline of every row is dense "
            f"fp32. Cut to a quarter of each layer's channels, rounded to 16: {share:.1%} of the "
            f"dense FLOPs a step. {blocks} blocks of {STEPS} steps a side, {cores} threads.",
            f"Planned: {EPOCHS} epochs of {IMAGES:,} images, dense for the first "
            f"{SEARCH_EPOCHS:g}, then cut ({cut_seconds:.1f} s, once). The rows of steps are "
            "measured, the rows that say planned are computed from them.",
        ],
    )


def compared(side: str, precision: str, size: str, blocks: int) -> Comparison:
    """Steps of one side against dense fp32, each a process of its own with a worker's settings."""
    cores = min(2, os.cpu_count() or 1)
    ours = {
        "task": "dcgan",
        "side": side,
        "size": size,
        "threads": cores,
        "precision": precision,
    }
    base = {**ours, "side": "dense", "precision": "fp32"}
    surroundings = {**threads(cores), **MALLOC}
    sides = [(each, surroundings) for each in (ours, base, ours)]
    with children("stepper.py", *sides) as (first, baseline, again):
        return compare(
            partial(first.run, STEPS),
            partial(baseline.run, STEPS),
            blocks,
            partial(again.run, STEPS),
        )


if __name__ == "__main__":
    from run import main

    main(["savings"])
