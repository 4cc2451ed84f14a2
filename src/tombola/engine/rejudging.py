"""Can what is trained be judged by more than before? What stands in for states that are gone.

A training keeps the states that it is judged at until all have judged it, then the last alone
(``--keep all``: every one). The last is what counts but for GANs, whose value is the median of five
states. So another judge can look at it, and the judgement that was made before has the rest: the
values on the way, and the course on validation, which no classifier has a part in. Where none can
stand in, the training is made again, to the same states.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tombola.errors import ConfigError
from tombola.plan.cells import Plan, course_steps, judged_steps
from tombola.store.graph import Graph, Node
from tombola.store.runs import Store

Record = Mapping[str, Any]


def stand_ins(
    graph: Graph, store: Store, families: Mapping[str, str]
) -> tuple[dict[str, str], list[Node]]:
    """What judgements do that are to be made of states that are gone.

    ``families``: name of a task in its runs -> its family. Returns judgement -> the one of the same
    training that was made before and has what is gone; and the judgements for which there is none,
    so that their trainings have to be made again.
    """
    found: dict[str, str] = {}
    lost: list[Node] = []
    made: dict[str, list[str]] | None = None
    for node in graph:
        train = node.parents.get("train", "")
        if node.kind != "evaluate" or store.has(node.hash) or not store.has(train):
            continue
        family, training = families[node.config["task"]["name"]], store.record(train)
        if not _gone(node, family, training, store):
            continue
        made = _judgements(store) if made is None else made
        fit = [n for n in made.get(train, ()) if _fits(node.config, family, store.record(n))]
        if fit:
            found[node.hash] = fit[0]
        else:
            lost.append(node)
    return found, lost


def refuse_other_judges(plan: Plan, out: Path, earlier: Record, now: Record) -> None:
    """ConfigError if ``judge.*`` values other than a folder's need states that are gone.

    ``earlier``, ``now``: what config.json held and will hold. Where a judgement was only lost, or a
    newer version judges anew, the user has no say in it, and the trainings are made again.
    """
    before, after = earlier["config"].get("judge", {}), now["config"]["judge"]
    if all(before[key] == after.get(key) for key in before):
        return
    _, lost = stand_ins(plan.graph, Store(out / "store"), plan.families)
    if lost:
        raise ConfigError(
            f"{len(lost)} judgements would have to be made anew ({lost[0].label}"
            f"{', ...' if len(lost) > 1 else ''}), but the states on the way are not kept in "
            f"{out}, as all had judged them; choose another folder with --out, where --keep all "
            "keeps them, or leave the judge.* values as they were"
        )


def _gone(node: Node, family: str, training: Record, store: Store) -> list[int]:
    """The steps at which a judgement needs the state of a training that is not kept."""
    if "diverged" in training or "not_run" in training:
        return []
    last = int(training.get("steps", training["config"]["steps"]))
    begun = int(training.get("from_step", training["config"].get("from_step", 0)))
    steps = {s for s in node.config["steps"] or judged_steps(family, last) if s >= begun}
    if node.config["validation_samples"]:
        steps |= {*course_steps(last, begun)}
    folder = store.path(node.parents["train"])
    return [s for s in steps - {last} if not (folder / f"judge-{s}.safetensors").exists()]


def _judgements(store: Store) -> dict[str, list[str]]:
    """Training -> the judgements of it that are whole, whoever judged."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(store.finished()):
        record = store.record(name)
        if record["kind"] == "evaluate":
            found[record["parents"]["train"]].append(name)
    return found


def _fits(config: Mapping[str, Any], family: str, before: Record) -> bool:
    """Whether an earlier judgement of the same training has what another cannot see any more."""
    same = ("samples", "sampling_seed", "validation_samples")
    own = before["config"]
    if family == "gan" or any(config[key] != own[key] for key in same):
        return False
    # The course is of samples as the judge sees them; a diffusion's is of its loss.
    by_judge = bool(config["validation_samples"]) and family != "diffusion"
    return not by_judge or config["judge"] == own["judge"]
