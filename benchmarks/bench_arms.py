"""How much does a second arm of a search train anew of what the first has trained?

Counted in the graphs, not timed: the steps of three arms in one search, against the steps of
three searches of one arm each.
"""

from __future__ import annotations

from measure import Row, Section, Spread
from tombola.config.sections import build
from tombola.plan.cells import Plan
from tombola.plan.plans import search
from tombola.plan.setting import resolve

ARMS = ("all", "generator", "discriminator")
SEEDS = 3


def planned(*networks: str) -> Plan:
    """The plan of a dcgan search that prunes these networks apart, six rounds, default controls."""
    return search(
        resolve(
            build(
                {
                    "task": {"name": "dcgan"},
                    "data": {"name": "digits"},
                    "prune": {"networks": networks},
                    "search": {"rounds": 6, "rate": "0.4", "seeds": SEEDS},
                }
            ),
            None,
        )
    )


def steps(plan: Plan) -> int:
    """Training steps of all runs of a plan."""
    return sum(node.steps for node in plan.graph if node.kind == "train")


def measured(size: str, blocks: int) -> Section:
    """One graph of three arms against three graphs of one; the dense runs are all they share."""
    del size, blocks
    joint, alone = planned(*ARMS), [planned(arm) for arm in ARMS]
    dense = sum(node.steps for node in joint.graph if node.label.startswith("dense,"))
    apart = sum(map(steps, alone))
    shared = (len(ARMS) - 1) * dense
    return Section(
        title="What a further arm trains again",
        rows=[
            Row(
                label="steps of three arms of dcgan in one search, against three searches",
                value=Spread.of([steps(joint) / apart]),
                target=(apart - shared) / apart,
            )
        ],
        notes=[
            f"Counted, not timed. The target is what is left without {shared:,} steps: the dense "
            f"runs of {SEEDS} seeds, once for each further arm. All else differs by arm."
        ],
    )


if __name__ == "__main__":
    from run import main

    main(["arms"])
