"""How each kind of run is carried out: the only place where all parts meet.

A stage gets its node and the store with its parents in it; it works in the run's ``.part`` folder
and commits it. A stage that is cut off is taken up again from that folder, to the same bytes.
"""

from __future__ import annotations

import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tombola.data.batches import Batches
from tombola.data.sources import Images, load_images
from tombola.engine import classifier
from tombola.engine.early import course
from tombola.engine.judging import (
    GRID_COLUMNS,
    GRID_ROWS,
    JudgedState,
    evaluate,
    floor_of,
    open_judge,
    save_grid,
)
from tombola.engine.loop import Loop
from tombola.errors import ConfigError, DivergedError, UserError
from tombola.recipes.recipes import course_steps, judged_steps
from tombola.registry import CRITERIA, TASKS
from tombola.runs.plan import Node
from tombola.runs.store import Store
from tombola.runtime import Runtime, rng, seed_everything
from tombola.sparsity.masks import Masks, erk, prunable, shuffle
from tombola.sparsity.select import top
from tombola.sparsity.tickets import Ticket, load_ticket, save_ticket
from tombola.tasks.base import Networks, Task
from tombola.training.checkpoint import load_state, load_weights_file, save_state, save_weights
from tombola.training.trainer import Settings, Trainer, load_weights


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a worker needs besides a node and does not change a result: where things are."""

    store: Store
    task: str
    data: str
    data_dir: str | None
    skip_broken: bool
    device: str
    keep_steps: tuple[int, ...] = ()
    """Steps whose whole state the dense run keeps: the rewind points known at the time."""
    inputs: Mapping[str, str] | None = None
    """SHA-256 -> path of files that import runs take in."""
    progress: Callable[[int], None] = lambda steps: None
    """Told how many steps were done since it was last told."""

    def images(self, shape: tuple[int, int, int]) -> Images:
        """The data at the shape of the task, loaded once a process."""
        return _images(self.data, shape, self.data_dir, self.skip_broken)

    def runtime(self, config: Mapping[str, Any]) -> Runtime:
        """The runtime that a node's config asks for, on this machine's device."""
        return Runtime.open(self.device, config.get("precision", "fp32"), config["threads"])

    def make_task(self, config: Mapping[str, Any]) -> Task:
        """The task of a node's config."""
        task: Task = TASKS.load(self.task)(**config["task"]["options"])
        return task


@lru_cache(maxsize=2)
def _images(spec: str, shape: tuple[int, int, int], data_dir: str | None, skip: bool) -> Images:
    return load_images(spec, shape, data_dir=Path(data_dir) if data_dir else None, skip_broken=skip)


def execute(node: Node, context: Context) -> None:
    """Carry a node out and commit it; does nothing if it is there already."""
    if not context.store.has(node.hash):
        STAGES[node.kind](node, context)


def import_ticket(node: Node, context: Context) -> None:
    """Take a ticket file from outside into the store."""
    assert context.inputs is not None
    part = context.store.begin(node.hash)
    shutil.copyfile(context.inputs[node.config["sha256"]], part / "ticket.safetensors")
    _commit(node, context, {})


def rewind(node: Node, context: Context) -> None:
    """The dense run's state at the rewind step: as it passed it, or replayed if it was not kept."""
    dense = context.store.path(node.parents["dense"])
    part = context.store.begin(node.hash)
    if _diverged(context, node.parents["dense"]):
        _commit(node, context, {"not_run": True})
        return
    state = dense / f"state-{node.config['step']}.safetensors"
    target = part / "state.safetensors"
    target.unlink(missing_ok=True)
    replayed = not state.exists()
    if replayed:
        config = context.store.record(node.parents["dense"])["config"]
        trainer = _trainer(config, context, None)
        while trainer.step < node.config["step"]:
            trainer.advance()
        save_state(target, trainer)
    else:
        os.link(state, target)
    _commit(node, context, {"replayed": replayed})


def mask(node: Node, context: Context) -> None:
    """Score the source's weights, select the survivors, join them with the rewind weights."""
    config, store = node.config, context.store
    part = store.begin(node.hash)
    if _diverged(context, *node.parents.values()):
        _commit(node, context, {"not_run": True})
        return
    task = context.make_task(config)
    networks = task.networks(tuple(config["shape"]))
    load_weights(networks, _final(context, node.parents["source"]))
    pool = prunable(networks, config["prune"], config["exclude"])
    among: Masks | None = None
    if "previous" in node.parents:
        among = load_ticket(store.path(node.parents["previous"]) / "ticket.safetensors").masks
    start = time.perf_counter()
    scores = _scores(context, pool, among, config["seed"])
    masks = top(scores, config["keep"], among)
    seconds = time.perf_counter() - start
    weights = _network_state(
        load_state(store.path(node.parents["rewind"]) / "state.safetensors")[0]
    )
    save_ticket(part / "ticket.safetensors", Ticket(masks, weights))
    _commit(node, context, {"seconds": seconds})


def _scores(
    context: Context, pool: Mapping[str, Tensor], among: Masks | None, seed: int
) -> dict[str, Tensor]:
    """A criterion's scores of the pool; ConfigError if a user's criterion fails or scores less."""
    assert context.inputs is not None
    name = context.inputs["criterion"]
    try:
        scores = CRITERIA.load(name)(dict(pool), None, among, seed)
        fits = {k: v.shape for k, v in scores.items()} == {k: v.shape for k, v in pool.items()}
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            f"criterion {name} failed: {type(error).__name__}: {error}; mend it and run again"
        ) from error
    if not fits:
        raise ConfigError(
            f"criterion {name} must return one score for every weight it is given, by the same "
            f"names and shapes ({', '.join(pool)}); mend it and run again"
        )
    return dict(scores)


def train(node: Node, context: Context) -> None:
    """Train to the last step, keeping the states that later runs need."""
    store, config = context.store, node.config
    part = store.begin(node.hash)
    if _diverged(context, *node.parents.values()):
        _commit(node, context, {"not_run": True})
        return
    trainer = _trainer(config, context, node)
    seconds = 0.0
    checkpoint = part / "checkpoint.safetensors"
    if checkpoint.exists():
        tensors, manifest = load_state(checkpoint)
        trainer.resume(tensors, manifest)
        seconds = float(manifest["seconds"])
    total = config["steps"]
    judged = {*judged_steps(trainer.task.family, total), *course_steps(total)}
    kept = set(context.keep_steps) if config["start"] == "dense" else set()
    loop = Loop(trainer, context.progress, checkpoint, seconds, config.get("from_step", 0))
    try:
        while True:
            if trainer.step in kept:
                save_state(part / f"state-{trainer.step}.safetensors", trainer)
            if trainer.step in judged:
                save_weights(part / f"judge-{trainer.step}.safetensors", trainer.judged_weights())
            if trainer.step == total:
                break
            loop.advance()
        trainer.check()
    except DivergedError as error:
        loop.close()
        _commit(
            node,
            context,
            {
                "diverged": error.step,
                "seconds": loop.seconds,
                "why": str(error),
                "log": trainer.log,
            },
        )
        return
    loop.close()
    os.replace(part / f"judge-{total}.safetensors", part / "final.safetensors")
    checkpoint.unlink(missing_ok=True)
    memory = _peak_memory_bytes(trainer.settings.runtime.device)
    _commit(
        node,
        context,
        {"seconds": loop.seconds, "log": trainer.log, "peak_memory_bytes": memory},
    )


def _trainer(config: Mapping[str, Any], context: Context, node: Node | None) -> Trainer:
    """The trainer of a train node at its first step: networks, masks and start weights in place."""
    runtime = context.runtime(config)
    task = context.make_task(config)
    shape = tuple(config["data"]["shape"])
    seed, start = config["seed"], config["start"]
    seed_everything(seed, f"init-{config['draw']}" if "draw" in config else "init")
    networks: Networks = task.networks(shape)
    masks = None
    ticket: Ticket | None = None
    if node is not None and "ticket" in node.parents:
        ticket = load_ticket(context.store.path(node.parents["ticket"]) / "ticket.safetensors")
        masks = _control_masks(start, ticket, config)
    batches = Batches(context.images(shape).splits["train"], task.batch_size, seed, runtime.device)
    settings = Settings(runtime=runtime, seed=seed, total_steps=config["steps"], ema=config["ema"])
    trainer = Trainer(task, networks, batches, settings, masks)
    if "from_step" in config:
        assert node is not None
        assert ticket is not None
        _rewind_to(trainer, config, ticket, node, context)
    return trainer


def _control_masks(start: str, ticket: Ticket, config: Mapping[str, Any]) -> Masks:
    if start == "shuffle":
        return shuffle(ticket.masks, derive(config))
    if start == "erk":
        keep = sum(int(m.sum()) for m in ticket.masks.values())
        return erk({name: tuple(m.shape) for name, m in ticket.masks.items()}, keep, derive(config))
    return ticket.masks


def derive(config: Mapping[str, Any]) -> int:
    """The seed of a control's mask: another one for every seed and level."""
    return rng(config["seed"], config["draw"]).initial_seed()


def _rewind_to(
    trainer: Trainer, config: Mapping[str, Any], ticket: Ticket, node: Node, context: Context
) -> None:
    """Put a trainer at the rewind step: weights and buffers of all networks, moments as asked."""
    fresh = {"step": config["from_step"], "scalars": {}, "log": []}
    if "rewind" not in node.parents:
        state = {f"network.{k}": v for k, v in ticket.weights.items()}
        trainer.rewind(state, fresh, optimizer=False)
        return
    tensors, manifest = load_state(context.store.path(node.parents["rewind"]) / "state.safetensors")
    trainer.rewind(tensors, manifest, optimizer=config["optimizer"] == "restore")


def judge(node: Node, context: Context) -> None:
    """Train the data set's own classifier and hold it against its gates."""
    part = context.store.begin(node.hash)
    record = classifier.train_judge(
        node.config, context.images(tuple(node.config["data"]["shape"])), part, context.progress
    )
    _commit(node, context, record)


def evaluation(node: Node, context: Context) -> None:
    """Judge a trained network at its steps; afterwards nothing but its last state is needed."""
    part = context.store.begin(node.hash)
    if _diverged(context, node.parents["train"]):
        record = context.store.record(node.parents["train"])
        kind = "diverged" if "diverged" in record else "not_run"
        _commit(node, context, {kind: record.get("diverged", True)})
        return
    start = time.perf_counter()
    config = node.config
    trained = context.store.path(node.parents["train"])
    runtime = context.runtime(config)
    last = max(config["steps"])
    weights = {step: JudgedState(trained, step, last) for step in config["steps"]}
    judges = _judge_files(node, context)
    task = context.make_task(config)
    images = context.images(tuple(config["data"]["shape"]))
    record, made = evaluate(config, task, images, runtime, weights, judges)
    if config["grid"]:
        save_grid(part / "grid.png", made[: GRID_COLUMNS * GRID_ROWS])
    bad = [name for name, value in record["values"].items() if not math.isfinite(value)]
    if bad:
        # Weights can be finite and what they make not: no number stands for such a network.
        record = {"diverged": record["step"], "why": f"not finite: {', '.join(bad)}"}
    elif config["validation_samples"] and len(images.splits["validation"]) > 1:
        begun = context.store.record(node.parents["train"])["config"].get("from_step", 0)
        states = {s: JudgedState(trained, s, last) for s in course_steps(last, begun)}
        judge = open_judge(config["judge"], images.name, judges.get("judge"), str(runtime.device))
        record["course"] = course(config, task, images, runtime, states, judge)
    _commit(node, context, {**record, "seconds": time.perf_counter() - start})


def floor(node: Node, context: Context) -> None:
    """Judge training images in the place of samples."""
    config = node.config
    context.store.begin(node.hash)
    runtime = context.runtime(config)
    images = context.images(tuple(config["data"]["shape"]))
    path = _judge_files(node, context).get("judge")
    judge = open_judge(config["judge"], images.name, path, str(runtime.device))
    assert judge is not None
    _commit(node, context, floor_of(judge, images, config["samples"]))


def _judge_files(node: Node, context: Context) -> dict[str, Path]:
    """The files of the networks that were trained to judge, by role."""
    return {
        role: context.store.path(node.parents[role]) / "judge.safetensors"
        for role in ("judge", "classifier")
        if role in node.parents
    }


def _peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process has held, on the accelerator if it trains there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _final(context: Context, name: str) -> dict[str, Tensor]:
    return load_weights_file(context.store.path(name) / "final.safetensors")


def _network_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}


def _diverged(context: Context, *names: str) -> bool:
    """Whether any of the runs diverged, or was not run because of one that did."""
    records = (context.store.record(name) for name in names)
    return any("diverged" in record or "not_run" in record for record in records)


def _commit(node: Node, context: Context, record: Mapping[str, Any]) -> None:
    context.store.commit(
        node.hash,
        {
            "kind": node.kind,
            "label": node.label,
            "config": dict(node.config),
            "parents": dict(node.parents),
            "torch": torch.__version__,
            **record,
        },
    )


STAGES: dict[str, Callable[[Node, Context], None]] = {
    "import": import_ticket,
    "rewind": rewind,
    "mask": mask,
    "train": train,
    "judge": judge,
    "evaluate": evaluation,
    "floor": floor,
}
