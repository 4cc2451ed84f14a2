"""Stages that make tickets: taken in from outside, rewound, scored, masked, put elsewhere."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from torch import Tensor

from tombola.config.atomic import replacing, sync_path
from tombola.config.registry import is_file_spec
from tombola.engine.context import Context, commit, diverged, unchanged
from tombola.engine.scoring import mask_at_init, scores_of
from tombola.engine.starts import trainer_of
from tombola.errors import TicketError
from tombola.sparsity.cost import count_macs
from tombola.sparsity.masks import Masks, count, prunable
from tombola.sparsity.select import top
from tombola.store.container import read_manifest, verify_file
from tombola.store.graph import Node
from tombola.store.tensors import save_tensors
from tombola.tasks.base import Networks, Task
from tombola.tickets.graft import carried, grafted
from tombola.tickets.mask_file import load_masks
from tombola.tickets.ticket import Ticket, load_ticket, save_ticket
from tombola.training.checkpoint import load_start, load_weights_file, save_state, save_weights
from tombola.training.scoring import Scored, batches_of, score_weights
from tombola.training.trainer import load_weights, prepare


def import_ticket(node: Node, context: Context) -> None:
    """Take a ticket file from outside into the store."""
    assert context.inputs is not None
    part = context.store.begin(node.hash)
    _copy(Path(context.inputs[node.config["sha256"]]), part / "ticket.safetensors")
    commit(node, context, {})


def rewind(node: Node, context: Context) -> None:
    """The dense run's state at the rewind step: as it passed it, or replayed if it was not kept."""
    dense = context.store.path(node.parents["dense"])
    part = context.store.begin(node.hash)
    if diverged(context, node.parents["dense"]):
        commit(node, context, {"not_run": True})
        return
    state = dense / f"state-{node.config['step']}.safetensors"
    target = part / "state.safetensors"
    target.unlink(missing_ok=True)
    replayed = not _sound(state, context.moments)
    if replayed:
        config = context.store.record(node.parents["dense"])["config"]
        trainer = trainer_of(config, context, None)
        while trainer.step < node.config["step"]:
            trainer.advance()
        save_state(target, trainer, moments=context.moments)
    else:
        try:
            os.link(state, target)
            sync_path(target)
        except OSError:  # a file system without hard links
            _copy(state, target)
    commit(node, context, {"replayed": replayed})


def _sound(state: Path, moments: bool) -> bool:
    """Whether a state on the way is there, whole, and with an optimizer's moments if asked."""
    try:
        verify_file(state)
        return not moments or bool(read_manifest(state).get("moments", True))
    except TicketError:
        return False


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as given, replacing(target) as stream:
        shutil.copyfileobj(given, stream)


def scores(node: Node, context: Context) -> None:
    """Score all prunable weights at the start of the training, before any of it."""
    config = node.config
    part = context.store.begin(node.hash)
    if diverged(context, *node.parents.values()):
        commit(node, context, {"not_run": True})
        return
    task = context.make_task(config)
    shape = tuple(config["data"]["shape"])
    networks = task.networks(shape)
    load_weights(networks, _start(context, node))
    found: dict[str, Tensor] = {}

    def work() -> None:
        images, runtime = context.images(config["data"]), context.runtime(config)
        found.update(scores_of(config, task, networks, images, runtime))

    start = time.perf_counter()
    macs = count_macs(work)
    save_weights(part / "scores.safetensors", found)
    commit(node, context, {"macs": macs, "seconds": time.perf_counter() - start})


def mask(node: Node, context: Context) -> None:
    """Score the source's weights, select the survivors, join them with the rewind weights."""
    config, store = node.config, context.store
    part = store.begin(node.hash)
    if diverged(context, *node.parents.values()):
        commit(node, context, {"not_run": True})
        return
    task = context.make_task(config)
    networks = task.networks(tuple(config["shape"]))
    weights = _start(context, node)
    among: Masks | None = None
    if "previous" in node.parents:
        previous = node.parents["previous"]
        among = store.read(previous, "ticket.safetensors", load_masks)
    start, macs = time.perf_counter(), 0
    masks: Masks = {}
    if "method" in config:
        load_weights(networks, weights)
        known = None
        if "scores" in node.parents:
            known = store.read(node.parents["scores"], "scores.safetensors", load_weights_file)
        macs = count_macs(lambda: masks.update(mask_at_init(config, task, networks, known, among)))
    else:
        load_weights(networks, _final(context, node.parents["source"]))
        found: dict[str, Tensor] = {}
        macs = count_macs(lambda: found.update(_scores(node, context, task, networks, among)))
        masks |= top(found, config["keep"], among)
    seconds = time.perf_counter() - start
    save_ticket(part / "ticket.safetensors", Ticket(masks, weights))
    commit(node, context, {"macs": macs, "seconds": seconds})


def transfer(node: Node, context: Context) -> None:
    """Put a ticket, or the dense weights of a rewind point, into another task's step 0.

    A ticket comes out as one of the other task; a rewind point as a state of its step 0, whose
    moments are nothing yet.
    """
    config, store = node.config, context.store
    part = store.begin(node.hash)
    if diverged(context, *node.parents.values()):
        commit(node, context, {"not_run": True})
        return
    start = _start(context, node, "start")
    if "ticket" in node.parents:
        ticket = store.read(node.parents["ticket"], "ticket.safetensors", load_ticket)
        moved = carried(ticket, start, config["tensors"])
        save_ticket(part / "ticket.safetensors", moved)
        kept, total = count(moved.masks)
        commit(node, context, {"pruned": total - kept})
        return
    weights = grafted(_start(context, node), start, config["tensors"])
    state = {f"network.{name}": value for name, value in weights.items()}
    manifest = {"step": 0, "seed": config["seed"], "scalars": {}, "log": []}
    save_tensors(part / "state.safetensors", state, manifest)
    commit(node, context, {})


def _start(context: Context, node: Node, role: str = "rewind") -> dict[str, Tensor]:
    """The weights and buffers at the rewind point that a node begins with."""
    return context.store.read(node.parents[role], "state.safetensors", load_start)


def _scores(
    node: Node, context: Context, task: Task, networks: Networks, among: Masks | None
) -> dict[str, Tensor]:
    """A criterion's scores of the trained weights; a user's one may ask for their losses."""
    config = node.config
    spec = (context.inputs or {})["criterion"]
    unchanged(spec, config["criterion"])
    pool, loss = prunable(networks, config["prune"], config["exclude"]), None
    if is_file_spec(spec):
        trained = context.store.record(node.parents["source"])["config"]
        runtime, images = context.runtime(trained), context.images(trained["data"])
        prepare(networks, runtime)
        among = among and {key: mask.to(runtime.device) for key, mask in among.items()}
        batches = batches_of(task, images, config["seed"], runtime.device)
        loss = Scored(task, networks, batches, config["seed"]).loss
    return score_weights(spec, pool, loss, among, config["seed"])


def _final(context: Context, name: str) -> dict[str, Tensor]:
    return context.store.read(name, "final.safetensors", load_weights_file)
