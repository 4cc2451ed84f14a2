"""How each kind of run is carried out: the only place where all parts meet.

A stage gets its node and the store with its parents in it; it works in the run's ``.part`` folder
and commits it. A stage that is cut off is taken up again from that folder, to the same bytes.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tombola.data.grid import GRID_COLUMNS, GRID_ROWS, save_grid
from tombola.engine import classifier, early_bird
from tombola.engine.context import Context, commit, diverged
from tombola.engine.early import course
from tombola.engine.judging import JudgedState, Loader, evaluate, floor_of, open_judge, sound_judge
from tombola.engine.learned_masks import search
from tombola.engine.learning import mean_answer
from tombola.engine.loop import Loop
from tombola.engine.masking import import_ticket, mask, rewind, scores, transfer
from tombola.engine.starts import trainer_of
from tombola.errors import DivergedError
from tombola.plan.cells import course_steps, judged_steps
from tombola.plan.thin import thinned
from tombola.plan.trial import work_of
from tombola.store.graph import Node
from tombola.store.runs import CHECKPOINT
from tombola.training.checkpoint import (
    WEIGHTS,
    load_checkpoint,
    load_state,
    save_state,
    save_weights,
)
from tombola.training.trainer import Trainer, under


def execute(node: Node, context: Context) -> None:
    """Carry a node out and commit it; does nothing if it is there already."""
    if not context.store.has(node.hash):
        STAGES[node.kind](node, context)


def train(node: Node, context: Context) -> None:
    """Train to the last step, keeping the states that later runs need."""
    store, config = context.store, node.config
    part = store.begin(node.hash)
    if diverged(context, *node.parents.values()):
        context.expect(-node.steps)
        commit(node, context, {"not_run": True, **_search_diverged(node, context)})
        return
    trainer = trainer_of(config, context, node)
    first, total = trainer.step, trainer.settings.total_steps
    known = _forget_peak(trainer.settings.runtime.device)
    made = _smaller(node, context, trainer) | {"from_step": first, "steps": total}
    seconds = 0.0
    checkpoint = part / CHECKPOINT
    if (saved := load_checkpoint(checkpoint)) is not None:
        trainer.resume(*saved)
        seconds = float(saved[1]["seconds"])
    judged = _judged_on_the_way(trainer.task.family, total, context)
    kept = set(context.keep_steps) if config["start"] == "dense" else set()
    # What was cut or thinned has another number of steps than the plan could know.
    context.expect(total - first - node.steps)
    rewound = "from_step" in config
    loop = Loop(trainer, context, checkpoint, seconds, first, rewound=rewound)
    try:
        while True:
            if trainer.step in kept:
                loop.lose(_save_point(part, trainer, context))
            if trainer.step in judged:
                loop.lose(_save_judged(part, trainer))
            if trainer.step == total:
                break
            loop.advance()
        trainer.check()
        trainer.forget_gradients()
        save_weights(part / "final.safetensors", trainer.judged_weights())
    except DivergedError as error:
        loop.close()
        context.expect(trainer.step - total)
        commit(
            node,
            context,
            {
                "diverged": error.step,
                "seconds": loop.seconds,
                "why": str(error),
                "log": trainer.log,
                **made,
            },
        )
        return
    loop.close()
    loop.sync()
    checkpoint.unlink(missing_ok=True)
    memory = _peak_memory_bytes(trainer.settings.runtime.device) if known else None
    commit(
        node,
        context,
        {"seconds": loop.seconds, "log": trainer.log, "peak_memory_bytes": memory, **made},
    )


def _save_point(part: Path, trainer: Trainer, context: Context) -> Path:
    """Keep the state of a rewind point."""
    path = part / f"state-{trainer.step}.safetensors"
    save_state(path, trainer, moments=context.moments, sync=False)
    return path


def _save_judged(part: Path, trainer: Trainer) -> Path:
    """Keep the weights that will be judged at this step."""
    path = part / f"judge-{trainer.step}.safetensors"
    trainer.forget_gradients()
    save_weights(path, trainer.judged_weights(), sync=False)
    return path


def _judged_on_the_way(family: str, total: int, context: Context) -> set[int]:
    """The steps before the last at which somebody will judge the state of a training."""
    course = course_steps(total) if context.course else ()
    return {*judged_steps(family, total), *course} - {total}


def _search_diverged(node: Node, context: Context) -> dict[str, int]:
    """The step at which the one training that was to find this ticket diverged: its own, too."""
    role = {"compact": "cut", "ticket": "ticket"}.get(node.config["start"], "")
    if role not in node.parents:
        return {}
    record = context.store.record(node.parents[role])
    step = record.get("search_diverged", record.get("diverged"))
    return {} if step is None else {"search_diverged": step}


def _smaller(node: Node, context: Context, trainer: Trainer) -> dict[str, Any]:
    """What the record of a network that was cut or thinned says beside what all say."""
    if node.config["start"] == "compact" and "ticket" in node.parents:
        # Cut by a file's ticket, at the start of this very training: nothing counted it before.
        work = work_of(trainer.task, trainer.networks, tuple(node.config["data"]["shape"]))
        parameters = (p for network in trainer.networks.values() for p in network.parameters())
        return {"parameters": sum(p.numel() for p in parameters), "work": asdict(work)}
    for role in ("cut", "thin"):
        if role in node.parents:
            record = context.store.record(node.parents[role])
            return {key: record[key] for key in ("parameters", "work")}
    return {}


def judge(node: Node, context: Context) -> None:
    """Train the data set's own classifier and hold it against its gates."""
    part = context.store.begin(node.hash)
    record = classifier.train_judge(
        node.config, context.images(node.config["data"]), part, context.progress
    )
    commit(node, context, record)


def evaluation(node: Node, context: Context) -> None:
    """Judge a trained network at its steps; afterwards nothing but its last state is needed."""
    part = context.store.begin(node.hash)
    if diverged(context, node.parents["train"]):
        record = context.store.record(node.parents["train"])
        step = record.get("diverged", record.get("search_diverged"))
        commit(node, context, {"not_run": True} if step is None else {"diverged": step})
        return
    start = time.perf_counter()
    training = context.store.record(node.parents["train"])
    family = context.make_task(node.config).family
    begun = training.get("from_step", training["config"].get("from_step", 0))
    steps = node.config["steps"] or judged_steps(family, training["steps"])
    steps = [step for step in steps if step >= begun]  # a late rewind point has fewer
    config = {**node.config, "steps": steps}
    trained = node.parents["train"]
    runtime = context.runtime(config)
    last = max(config["steps"])
    weights = {s: JudgedState(context.store, trained, s, last) for s in config["steps"]}
    before = (
        context.store.record(context.earlier[node.hash]) if node.hash in context.earlier else {}
    )
    if before:
        weights = {last: weights[last]}
    judges = _judge_files(node, context)
    thin = context.thin_of(training["parents"])
    config["thin"] = thin
    task = thinned(context.make_task(config), thin)
    images = context.images(config["data"])
    record, made = evaluate(config, task, images, runtime, weights, judges)
    if config["grid"]:
        save_grid(part / "grid.png", made[: GRID_COLUMNS * GRID_ROWS])
    if "reals" in before:  # earlier versions judged by other images
        record["by_step"] = {**before["by_step"], **record["by_step"]}
    bad = [name for name, value in record["values"].items() if not math.isfinite(value)]
    if bad:
        # Weights can be finite and what they make not: no number stands for such a network.
        record = {"diverged": record["step"], "why": f"not finite: {', '.join(bad)}"}
    elif before:
        record |= {"course": before["course"]} if "course" in before else {}
    elif config["validation_samples"] and len(images.splits["validation"]) > 1:
        states = {
            s: JudgedState(context.store, trained, s, last) for s in course_steps(last, begun)
        }
        judge = open_judge(config["judge"], images.name, judges.get("judge"), str(runtime.device))
        record["course"] = course(config, task, images, runtime, states, judge)
    commit(node, context, {**record, "seconds": time.perf_counter() - start})


def floor(node: Node, context: Context) -> None:
    """Judge training images in the place of samples."""
    config = node.config
    context.store.begin(node.hash)
    runtime = context.runtime(config)
    images = context.images(config["data"])
    path = _judge_files(node, context).get("judge")
    judge = open_judge(config["judge"], images.name, path, str(runtime.device))
    assert judge is not None
    commit(node, context, floor_of(judge, images, config["samples"], config["fakes"]))


def trivial(node: Node, context: Context) -> None:
    """Judge what needs no training: the mean training image, or a dense network's first states."""
    config = node.config
    context.store.begin(node.hash)
    if diverged(context, *node.parents.values()):
        commit(node, context, {"not_run": True})
        return
    runtime, task = context.runtime(config), context.make_task(config)
    images, judges = context.images(config["data"]), _judge_files(node, context)
    if "dense" not in node.parents:
        path, device = judges.get("classifier"), str(runtime.device)
        labelling = open_judge(config["classifier"], images.name, path, device)
        commit(node, context, mean_answer(config, task, images, runtime, labelling))
        return
    record, _ = evaluate(config, task, images, runtime, _first_states(node, context), judges)
    commit(node, context, {key: record[key] for key in ("by_step", "n", "n_of", "reals")})


def _first_states(node: Node, context: Context) -> dict[int, Loader]:
    """Step -> what loads the dense network's weights as judged: at step 0 and at rewind points."""

    def begun() -> dict[str, Tensor]:
        dense = context.store.record(node.parents["dense"])["config"]
        return trainer_of(dense, context, None).judged_weights()

    def rewound(path: Path) -> dict[str, Tensor]:
        state, _ = load_state(path / "state.safetensors", (WEIGHTS, "average."))
        return under(state, "network.") | under(state, "average.")

    states: dict[int, Loader] = {0: begun}
    for role, run in node.parents.items():
        if role.startswith("rewind-"):
            states[int(role.removeprefix("rewind-"))] = partial(rewound, context.store.path(run))
    return dict(sorted(states.items()))


def _judge_files(node: Node, context: Context) -> dict[str, Path]:
    """The files of the networks that judge, by role: trained as runs, or the user's own."""
    found = {
        role: context.store.read(node.parents[role], "judge.safetensors", sound_judge)
        for role in ("judge", "classifier")
        if role in node.parents
    }
    if (node.config["judge"] or {}).get("source") == "file":
        assert context.inputs is not None
        found["judge"] = Path(context.inputs["features"])
    return found


def _forget_peak(device: torch.device) -> bool:
    """Begin to look for the most memory anew; False where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the high-water mark alone
    except OSError:
        return False
    return True


def _peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory that this process held since then, on the accelerator if it trains there.

    On a CPU with what the libraries need. None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


STAGES: dict[str, Callable[[Node, Context], None]] = {
    "import": import_ticket,
    "rewind": rewind,
    "scores": scores,
    "mask": mask,
    "search": search,
    "train": train,
    "judge": judge,
    "evaluate": evaluation,
    "floor": floor,
    "trivial": trivial,
    "watch": early_bird.watch,
    "cut": early_bird.cut,
    "overlap": early_bird.overlaps,
    "thin": early_bird.thin,
    "transfer": transfer,
}
