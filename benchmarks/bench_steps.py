"""How long does a whole training step take against the paper's own per-step work?

Every side is a process of its own, for glibc's allocator reads its settings once. Ours is the
trainer as `tombola find` and `tombola train` run it: masked, fused Adam, channels_last, the
workers' settings of the allocator. The baseline is the loop of ``paper_loop.py`` as the paper's
code runs: NCHW, fp32, the allocator as it comes. In the rows marked "same allocator" both sides
have the workers' settings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial

from measure import Comparison, Section, children, compare, row, threads
from tombola.engine.executors.local import MALLOC


@dataclass(frozen=True, kw_only=True)
class Case:
    """One row: what trains, how, and what is asked of the ratio."""

    task: str
    target: float | None
    precision: str = "fp32"
    threads: int = 1
    same_allocator: bool = False
    other: str = "paper"
    """The side that ours is compared with: ``paper``, ``paper-int32`` or ``dense``."""

    @property
    def label(self) -> str:
        """What the row says."""
        words = [self.task, self.precision, f"{self.threads} thread{'s' * (self.threads > 1)}"]
        words += ["same allocator"] * self.same_allocator
        words += ["masks of 32 bits"] * (self.other == "paper-int32")
        return ", ".join(words)


CORES = min(2, os.cpu_count() or 1)
LINEAR = (
    Case(task="linear-ae", target=0.70, threads=CORES),
    Case(task="linear-ae", target=None),
    Case(task="linear-ae", target=None, threads=CORES, same_allocator=True),
    Case(task="linear-ae", target=None, threads=CORES, other="paper-int32"),
)
GAN = (
    Case(task="dcgan", target=0.75, threads=CORES),
    Case(task="dcgan", target=0.50, threads=CORES, precision="bf16"),
    Case(task="dcgan", target=None),
    Case(task="dcgan", target=None, precision="bf16"),
    Case(task="dcgan", target=None, threads=CORES, same_allocator=True),
)
STEPS = {"linear-ae": 60, "dcgan": 1}
"""Steps of a stretch: enough for the clock, few enough for many blocks."""


def compared(case: Case, size: str, blocks: int) -> Comparison:
    """Steps of ours against another side; both masked unless the other is ``dense``."""
    steps = STEPS[case.task]
    ours = {
        "task": case.task,
        "side": "ours",
        "size": size,
        "threads": case.threads,
        "precision": case.precision,
    }
    other = {**ours, "side": case.other}
    if case.other != "dense":
        other["precision"] = "fp32"
    plain = threads(case.threads)
    workers = {**plain, **MALLOC}
    sides = (ours, workers), (other, workers if case.same_allocator else plain), (ours, workers)
    with children("stepper.py", *sides) as (first, baseline, again):
        return compare(
            partial(first.run, steps),
            partial(baseline.run, steps),
            blocks,
            partial(again.run, steps),
        )


def linear(size: str, blocks: int) -> Section:
    """The linear autoencoder: small, so what goes on around the network counts."""
    return _section("A training step of linear-ae against the paper's", LINEAR, size, 2 * blocks)


def gan(size: str, blocks: int) -> Section:
    """The dcgan: large, so what counts is what is not computed."""
    return _section("A training step of dcgan against the paper's", GAN, size, blocks // 2 + 1)


def _section(title: str, cases: tuple[Case, ...], size: str, blocks: int) -> Section:
    rows = []
    for case in cases:
        found = compared(case, size, blocks)
        rows.append(row(case.label, found, case.target, STEPS[case.task]))
    return Section(
        title=title,
        rows=rows,
        notes=[
            "219,891 parameters, 28x28 grey, 54,000 images in memory."
            if cases is LINEAR
            else "6,560,448 weights, 32x32 colour, 10,000 images in memory.",
            f"The paper's size, batches of 128, masks of level 10 (89.3% cut); {blocks} blocks of "
            f"{STEPS[cases[0].task]} steps a side. Each side is a process of its own, ours twice.",
            "Ours has the allocator settings of `tombola find`'s workers, the baseline has none "
            '(rows with "same allocator": both have them). The paper\'s code sets no number of '
            "threads, so it takes all cores, as one run of ours does: the targets are for that. "
            "Where `tombola find` has as many workers as cores, each has one thread.",
        ],
    )


if __name__ == "__main__":
    from run import main

    main(["linear-step", "gan-step"])
