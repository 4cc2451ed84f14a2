"""How does a training begin: its networks, its mask and its start weights in place."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from tombola.config.runtime import rng, seed_everything
from tombola.engine.context import Context
from tombola.plan.thin import new_networks, thinned
from tombola.sparsity.cutting import resize
from tombola.sparsity.masks import Masks, erk, shuffle
from tombola.store.graph import Node
from tombola.tickets.compact import compact
from tombola.tickets.mask_file import load_masks
from tombola.tickets.ticket import Ticket, load_ticket
from tombola.training.checkpoint import WEIGHTS, load_state
from tombola.training.scoring import batches_of
from tombola.training.trainer import Settings, Trainer, named_state, under


def trainer_of(config: Mapping[str, Any], context: Context, node: Node | None) -> Trainer:
    """The trainer of a train node at its first step: networks, masks and start weights in place."""
    runtime = context.runtime(config)
    parents = node.parents if node is not None else {}
    thin = context.thin_of(parents)
    task = thinned(context.make_task(config), thin)
    shape = tuple(config["data"]["shape"])
    seed, start = config["seed"], config["start"]
    seed_everything(seed, f"init-{config['draw']}" if "draw" in config else "init")
    networks = new_networks(task, shape, thin)
    if "cut" in parents:
        state = context.store.read(parents["cut"], "state.safetensors", load_state)
        resize(networks, {k: v.shape for k, v in under(state[0], "network.").items()})
    masks = None
    ticket: Ticket | None = None
    if node is not None and "ticket" in node.parents:
        name, file = node.parents["ticket"], "ticket.safetensors"
        if start == "compact" or ("from_step" in config and "rewind" not in parents):
            ticket = context.store.read(name, file, load_ticket)
        if ticket is not None and start == "compact":
            ticket.start(networks)
            networks = compact(networks, ticket)
            ticket.weights = named_state(networks)
        elif ticket is not None:
            masks = ticket.held(networks)
        else:  # its weights are not needed, or those of the rewind point
            masks = context.store.read(name, file, load_masks)
        masks = masks and _control_masks(start, masks, config)
    batches = batches_of(task, context.images(config["data"]), seed, runtime.device)
    steps = thin.get("steps", config["steps"])
    settings = Settings(runtime=runtime, seed=seed, total_steps=steps, ema=config["ema"])
    trainer = Trainer(task, networks, batches, settings, masks)
    if "cut" in parents:
        trainer.rewind(*state, optimizer=True)
    if "from_step" in config:
        assert node is not None
        _rewind_to(trainer, config, ticket, node, context)
    return trainer


def _control_masks(start: str, masks: Masks, config: Mapping[str, Any]) -> Masks:
    """What a training holds, by the masks of its ticket."""
    if start == "shuffle":
        return shuffle(masks, derive(config))
    if start == "erk":
        keep = sum(int(m.sum()) for m in masks.values())
        return erk({name: tuple(m.shape) for name, m in masks.items()}, keep, derive(config))
    return masks


def derive(config: Mapping[str, Any]) -> int:
    """The seed of a control's mask: another one for every seed and level."""
    return rng(config["seed"], config["draw"]).initial_seed()


def _rewind_to(
    trainer: Trainer, config: Mapping[str, Any], ticket: Ticket | None, node: Node, context: Context
) -> None:
    """Begin at the rewind step, or anew, with the rewound weights and buffers of all networks."""
    fresh = {"step": config["from_step"], "scalars": {}, "log": []}
    if ticket is not None:
        state = {f"network.{k}": v for k, v in ticket.weights.items()}
        trainer.rewind(state, fresh, optimizer=False)
        return
    restore = config["optimizer"] == "restore"
    load = partial(load_state, prefix="" if restore else WEIGHTS)
    tensors, manifest = context.store.read(node.parents["rewind"], "state.safetensors", load)
    assert not restore or manifest.get("moments", True), "a rewind point without moments"
    trainer.rewind(tensors, {**manifest, "step": config["from_step"]}, optimizer=restore)
