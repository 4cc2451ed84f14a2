"""How long does a whole training step take against the paper's own per-step work?

Every side is a process of its own. Ours is the trainer as `tombola find` runs it in its workers:
masked, fused Adam, channels_last, with the workers' settings of glibc's allocator; the baseline is
the loop of ``paper_loop.py`` as the paper's code runs: NCHW, fp32, the allocator as it comes.
Rows marked "same allocator" give both sides the workers' settings.
"""

from __future__ import annotations

from measure import Comparison, Row, Section, children, compare, row, threads
from tombola.engine.local_pool import MALLOC

CASES = (
    # task, precision, target, steps of a stretch
    ("linear-ae", "fp32", 0.70, 150),
    ("dcgan", "fp32", 0.75, 2),
    ("dcgan", "bf16", 0.50, 2),
)


def compared(
    task: str, sides: tuple[str, str], size: str, *, blocks: int, steps: int, **how: object
) -> Comparison:
    """Steps of ours against another side; ``how``: ``precision``, and whose ``allocator``."""
    first, second = (
        {"task": task, "side": side, "size": size, "threads": 1, "precision": "fp32"}
        for side in sides
    )
    first["precision"] = how.get("precision", "fp32")
    mine = {**threads(1), **MALLOC}
    theirs = mine if how.get("allocator") == "same" else threads(1)
    if how.get("allocator") == "plain":
        mine = theirs = threads(1)
    started = children("stepper.py", (first, mine), (second, theirs), (first, mine))
    with started as (ours, baseline, again):
        return compare(
            lambda: ours.run(steps),
            lambda: baseline.run(steps),
            blocks,
            lambda: again.run(steps),
        )


def measured(size: str, blocks: int) -> Section:
    """The three targets, and each with one allocator for both sides."""
    rows: list[Row] = []
    for task, precision, target, full_steps in CASES:
        steps = full_steps if size == "full" else 2
        for allocator, wanted in (("worker", target), ("same", None)):
            found = compared(
                task,
                ("ours", "paper"),
                size,
                blocks=blocks,
                steps=steps,
                precision=precision,
                allocator=allocator,
            )
            label = f"{task}, {precision}" + (", same allocator" if wanted is None else "")
            rows.append(row(label, found, wanted, steps))
    return Section(
        title="A whole training step against the paper's own per-step work",
        rows=rows,
        notes=[
            "linear-ae: 219,891 parameters, 28x28 grey; dcgan: 6,560,448 weights, 32x32 colour; "
            "batches of 128, masks of level 10 (89.3% cut), one thread.",
            "Each side is a process of its own (ours twice, for the A/A column). Ours has the "
            "allocator settings of `tombola find`'s workers, the baseline has none, except in the "
            'rows marked "same allocator", where both have them.',
        ],
    )


if __name__ == "__main__":
    from run import main

    main(["steps"])
