"""Are two workers with one thread each faster than one worker with two threads?

Two independent trainings of the linear autoencoder of so many steps each: side by side in two
processes of one thread, or one after the other in a process of two. All have the surroundings of
`tombola find`'s workers.
"""

from __future__ import annotations

import time

from measure import Child, Section, Timing, children, compare, row, threads
from tombola.engine.executors.local import MALLOC

STEPS = {"full": 300, "toy": 2}


def together(workers: list[Child], steps: int) -> Timing:
    """One stretch of all of them at the same time."""
    start = time.perf_counter()
    for worker in workers:
        worker.ask(steps)
    cpu = sum(worker.answer().cpu for worker in workers)
    return Timing(time.perf_counter() - start, cpu)


def measured(size: str, blocks: int) -> Section:
    """2 x 1 against 1 x 2 for the same two trainings."""
    steps = STEPS[size]
    base = {"task": "linear-ae", "side": "ours", "precision": "fp32", "size": size}
    narrow = ({**base, "threads": 1}, {**threads(1), **MALLOC})
    wide = ({**base, "threads": 2}, {**threads(2), **MALLOC})
    with children("stepper.py", narrow, narrow, wide) as (first, second, both):
        found = compare(
            lambda: together([first, second], steps), lambda: both.run(2 * steps), blocks
        )
    return Section(
        title="Two workers of one thread against one worker of two",
        rows=[row("linear-ae, paper size", found, 0.85)],
        notes=[f"{steps} steps of each of two trainings; the columns show both together."],
    )


if __name__ == "__main__":
    from run import main

    main(["workers"])
