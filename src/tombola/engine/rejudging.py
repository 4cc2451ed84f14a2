"""Can what is trained be judged by more than before? What stands in for states that are gone.

A training keeps the states that it is judged at until all have judged it, then the last alone
(``--keep all``: every one). The last is what counts but for GANs, whose value is the median of five
states. So another judge can look at it, and the judgement that was made before has the rest: the
values on the way, and the course on validation, which no classifier has a part in.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from tombola.errors import ConfigError
from tombola.recipes.cells import course_steps, judged_steps
from tombola.runs.plan import Graph, Node
from tombola.runs.store import Store

Record = Mapping[str, Any]


def stand_ins(graph: Graph, store: Store, families: Mapping[str, str]) -> dict[str, str]:
    """Judgement that is to be made -> the one of the same training that has what is gone.

    ``families``: name of a task in its runs -> its family. ConfigError if states are gone that the
    judgements need and none that was made before can stand in.
    """
    found: dict[str, str] = {}
    lost: list[tuple[Node, int]] = []
    made: dict[str, list[str]] | None = None
    for node in graph:
        train = node.parents.get("train", "")
        if node.kind != "evaluate" or store.has(node.hash) or not store.has(train):
            continue
        family, training = families[node.config["task"]["name"]], store.record(train)
        gone = next(_gone(node, family, training, store), None)
        if gone is None:
            continue
        made = _judgements(store) if made is None else made
        fit = [n for n in made.get(train, ()) if _fits(node.config, family, store.record(n))]
        if fit:
            found[node.hash] = fit[0]
        else:
            lost.append((node, gone))
    if lost:
        (node, step), count = lost[0], len(lost)
        raise ConfigError(
            f"{count} judgements would have to be made anew ({node.label}"
            f"{', ...' if count > 1 else ''}), but the states on the way are not kept in "
            f"{store.folder} (the first that is missing: step {step}), as all had judged them; "
            "choose another folder with --out, where --keep all keeps them, or leave the judge.* "
            "values as they were"
        )
    return found


def _gone(node: Node, family: str, training: Record, store: Store) -> Iterator[int]:
    """The steps at which a judgement needs the state of a training that is not kept."""
    if "diverged" in training or "not_run" in training:
        return
    last = int(training.get("steps", training["config"]["steps"]))
    begun = int(training.get("from_step", training["config"].get("from_step", 0)))
    steps = {*(node.config["steps"] or judged_steps(family, last))}
    if node.config["validation_samples"]:
        steps |= {*course_steps(last, begun)}
    folder = store.path(node.parents["train"])
    for step in sorted(steps - {last}):
        if not (folder / f"judge-{step}.safetensors").exists():
            yield step


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
