"""Which runs of a plan are made again, though something of them is there?

Those that are damaged; and trainings of which a judgement is lost, or is made anew by a newer
version, when the states that it needs are gone. A run's name decides its bytes, so what was built
on it stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tombola.engine.rejudging import stand_ins
from tombola.plan.cells import Plan
from tombola.store.runs import Store


def prepare_store(plan: Plan, store: Store, note: Callable[[str], None]) -> dict[str, str]:
    """Let such runs be made again; returns judgement -> what stands in for states that are gone.

    ``note`` is told in one line which they are.
    """
    bad = {name: why for name, why in store.faults().items() if name in plan.graph}
    earlier, lost = stand_ins(plan.graph, store, plan.families)
    for node in lost:
        bad[node.parents["train"]] = f"{node.label!r} needs states that are not kept"
    for name, why in bad.items():
        store.unmark(name, why)
    if bad:
        note(describe_again({plan.graph[name].label: why for name, why in bad.items()}, store))
    return earlier


def whole_runs(plan: Plan, store: Store) -> set[str]:
    """The runs that are there and stay: not trainings that a judgement needs once more."""
    _, lost = stand_ins(plan.graph, store, plan.families)
    return store.finished() - {node.parents["train"] for node in lost}


def describe_again(reasons: Mapping[str, str], store: Store) -> str:
    """One line on runs that are made again: label -> why."""
    some = "; ".join(f"{label}: {reason}" for label, reason in list(reasons.items())[:3])
    more = "; ..." if len(reasons) > 3 else ""
    return (
        f"runs in {store.folder} that are made again, with the same results: {len(reasons)} "
        f"({some}{more})"
    )
