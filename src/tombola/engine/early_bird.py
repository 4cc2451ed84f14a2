"""Stages of early-bird tickets: watch a dense training until its channel masks settle, and cut.

One watch serves several shares of channels: the training goes on until the last of them is found,
or half of its steps are done. What is kept of each is the whole state at its step, so that the cut
carries the optimizer's moments and the averaged weights over.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tombola.engine.context import Context, commit, diverged
from tombola.engine.loop import Loop
from tombola.engine.starts import trainer_of
from tombola.errors import ConfigError, DivergedError
from tombola.plan.thin import forward_macs, thin_networks, thin_plan
from tombola.plan.trial import thinner, work_of
from tombola.sparsity.compact import Channels, check_cut, random_like, rounded
from tombola.sparsity.cutting import Cut, shrink
from tombola.sparsity.earlybird import Watch, overlap, pooled_masks
from tombola.sparsity.masks import Masks
from tombola.sparsity.watch import from_hex, pack_watch, to_hex, unpack_watch
from tombola.store.graph import Node
from tombola.store.runs import CHECKPOINT
from tombola.store.tensors import save_tensors
from tombola.tasks.base import Networks
from tombola.tickets.ticket import Ticket, save_ticket
from tombola.training.checkpoint import (
    load_checkpoint,
    load_state,
    load_weights_file,
    save_state,
)
from tombola.training.scoring import inputs_of
from tombola.training.trainer import Trainer, load_any_size, load_weights, under


def watch(node: Node, context: Context) -> None:
    """Train the dense networks until every share's masks have settled, or half of the steps."""
    config = node.config
    part = context.store.begin(node.hash)
    trainer = trainer_of(config, context, None)
    channels = _channels(trainer, config)
    # Counted now: turns of a training switch gradients on and off.
    macs = work_of(trainer.task, trainer.networks, tuple(config["data"]["shape"])).step_macs
    if config["scale_l1"]:
        trainer.press({name for g in channels.groups for name in g.scales}, config["scale_l1"])
    watches = {
        share: Watch(config["delta"], config["rule"] == "corrected") for share in config["compress"]
    }
    checkpoint, seconds = part / CHECKPOINT, 0.0
    cuts: dict[str, dict[str, Any]] = {}
    if (saved := load_checkpoint(checkpoint)) is not None:
        manifest = saved[1]
        trainer.resume(*saved)
        seconds, cuts = float(manifest["seconds"]), manifest["cuts"]
        watches = {share: unpack_watch(each) for share, each in manifest["watches"].items()}
    loop = Loop(trainer, context, checkpoint, seconds, 0)
    loop.extra = lambda: {
        "watches": {share: pack_watch(each) for share, each in watches.items()},
        "cuts": cuts,
    }
    last = max(1, config["steps"] // 2)
    why: dict[str, Any] = {}
    try:
        while True:
            due = trainer.step > 0 and trainer.step % config["draw_steps"] == 0
            if due or trainer.step == last:
                _check(trainer, channels)
            if due:
                _draw(watches, trainer, channels, config)
            for share in [s for s in watches if s not in cuts]:
                if watches[share].found is not None or trainer.step == last:
                    loop.close()
                    kept = _newest(watches[share], share, trainer, channels, config)
                    cuts[share] = _found(watches[share], loop, kept)
                    save_state(part / f"cut-{share}.safetensors", trainer)
            if len(cuts) == len(watches):
                break
            loop.advance()
        trainer.check()
    except DivergedError as error:
        loop.close()
        why = {"diverged": error.step, "why": str(error)}
    context.expect(trainer.step - last)
    checkpoint.unlink(missing_ok=True)
    record = {
        **why,
        **loop.extra(),
        "seconds": loop.seconds,
        "log": trainer.log,
        "left": channels.left,
        "by_scale": sorted(channels.by_scale),
        "channels": {group.name: group.n for group in channels.groups},
        "step_macs": macs,
    }
    commit(node, context, record)


def _check(trainer: Trainer, channels: Channels) -> None:
    """DivergedError if a loss or a score is not finite; a gradient can be so before its loss is."""
    trainer.check()
    for name, value in channels.scores(trainer.networks).items():
        odd = value[~value.isfinite()]
        if len(odd):
            raise DivergedError(trainer.step, f"the score of a channel of {name}", float(odd[0]))


def _found(watch: Watch, loop: Loop, kept: Masks) -> dict[str, Any]:
    """What the record says of a cut: when, after how long, whether forced, and what is kept."""
    return {
        "step": loop.trainer.step,
        "seconds": loop.seconds,
        "forced": watch.found is None,
        "kept": to_hex(kept),
    }


def cut(node: Node, context: Context) -> None:
    """Cut the networks at the state that the watch kept, and prove that nothing else changed."""
    config = node.config
    part = context.store.begin(node.hash)
    watched = context.store.record(node.parents["watch"])
    if config["compress"] not in watched["cuts"]:
        commit(node, context, {"not_run": True, "search_diverged": watched["diverged"]})
        return
    start = time.perf_counter()
    found = watched["cuts"][config["compress"]]
    state = f"cut-{config['compress']}.safetensors"
    tensors, manifest = context.store.read(node.parents["watch"], state, load_state)
    trainer = trainer_of(watched["config"], context, None)
    load_weights(trainer.networks, under(tensors, "network."))
    channels = _channels(trainer, watched["config"])
    kept = from_hex(found["kept"], watched["channels"])
    if config["round_to"] > 1:
        scores, sizes = channels.scores(trainer.networks), channels.sizes()
        kept = rounded(scores, kept, config["round_to"], sizes)
    if config["channels"] == "random":
        kept = random_like(kept, config["seed"])
    away = channels.cut(kept)
    shape = tuple(config["data"]["shape"])
    inputs = inputs_of(trainer.task, trainer.networks, shape)
    check_cut(trainer.networks, inputs, away, channels.groups)
    masks = channels.masks(kept, trainer.networks)
    away.zero(trainer.networks)
    whole = {k: v.clone() for k, v in trainer.judged_weights(averaged=False).items()}
    ticket = Ticket(masks, whole, {"granularity": "channel"})
    save_ticket(part / "ticket.safetensors", ticket)
    small = _sliced(tensors, away, trainer.moments_of())
    save_tensors(part / "state.safetensors", small, {**manifest, "log": []})
    before = _sizes(trainer.networks)
    shrink(trainer.networks, away)
    seconds = time.perf_counter() - start
    pruned = {group.name.partition(".")[0] for group in channels.groups}
    record = {
        "seconds": float(found["seconds"]) + seconds,
        "cut_seconds": seconds,
        "macs": watched["step_macs"] * found["step"],
        "from_step": found["step"],
        "forced": found["forced"],
        **_made(trainer, shape, before, pruned),
        "widths": {name: [len(mask), int(mask.sum())] for name, mask in kept.items()},
        "inputs": {name: [list(x.shape[1:]) for x in each] for name, each in inputs.items()},
    }
    commit(node, context, record)


def overlaps(node: Node, context: Context) -> None:
    """How many of a ticket's channels are chosen at the end of dense training, and by chance."""
    config = node.config
    context.store.begin(node.hash)
    watched = context.store.record(node.parents["watch"])
    if config["compress"] not in watched["cuts"] or diverged(context, node.parents["dense"]):
        commit(node, context, {"not_run": True})
        return
    trainer = trainer_of(watched["config"], context, None)
    dense = node.parents["dense"]
    final = context.store.read(dense, "final.safetensors", load_weights_file)
    load_weights(trainer.networks, final)
    channels = _channels(trainer, watched["config"])
    share = config["compress"]
    late = _masks_at_once(channels, trainer.networks, share, watched["config"])
    early = from_hex(watched["cuts"][share]["kept"], watched["channels"])
    shared = overlap(early, late)
    commit(node, context, {"overlap": {name: list(pair) for name, pair in shared.items()}})


def thin(node: Node, context: Context) -> None:
    """Find the thin dense networks that cost what a ticket's smaller networks cost."""
    config = node.config
    context.store.begin(node.hash)
    if diverged(context, node.parents["cut"]):
        commit(node, context, {"not_run": True})
        return
    cut_record = context.store.record(node.parents["cut"])
    task, shape = context.make_task(config), tuple(config["data"]["shape"])
    if config["match"] == "parameters":
        found = thinner(task, shape, cut_record["parameters"])
        work = {"step_macs": found.work.step_macs, "sample_macs": found.work.sample_macs}
        record = {"options": dict(found.options), "parameters": found.parameters, "work": work}
        commit(node, context, {**record, "steps": config["steps"]})
        return
    small = task.networks(shape)
    tensors, _ = context.store.read(node.parents["cut"], "state.safetensors", load_state)
    load_any_size(small, under(tensors, "network."))
    inputs = inputs_of(task, small, shape)
    wanted = {name: forward_macs(network, inputs[name]) for name, network in small.items()}
    plan = thin_plan(task, shape, wanted)
    networks = thin_networks(task, shape, plan)
    own = work_of(task, networks, shape)
    # Trained until it has spent what the search and the smaller networks spent together.
    spent = cut_record["macs"]
    spent += (config["steps"] - cut_record["from_step"]) * cut_record["work"]["step_macs"]
    record = {
        "plan": plan,
        "parameters": sum(_sizes(networks).values()),
        "work": {"step_macs": own.step_macs, "sample_macs": own.sample_macs},
        "steps": max(1, round(spent / own.step_macs)),
    }
    commit(node, context, record)


def _channels(trainer: Trainer, config: Mapping[str, Any]) -> Channels:
    shape = tuple(config["data"]["shape"])
    inputs = inputs_of(trainer.task, trainer.networks, shape)
    return Channels.of(trainer.networks, inputs, config["prune"])


def _draw(
    watches: Mapping[str, Watch], trainer: Trainer, channels: Channels, config: Mapping[str, Any]
) -> None:
    """Add this step's masks to every watch that has not found its ticket, if there are any yet."""
    for share, watch in watches.items():
        drawn_now = bool(watch.steps) and watch.steps[-1] >= trainer.step
        if watch.found is None and not drawn_now:
            masks = _masks(channels, trainer.networks, share, config)
            if masks is not None:
                watch.add(trainer.step, masks)


def _masks(
    channels: Channels,
    networks: Networks,
    share: str,
    config: Mapping[str, Any],
    *,
    by_position: bool = False,
) -> Masks | None:
    """The masks of a share now, by ``settle`` and ``floor`` of ``config``.

    None while the scores leave a tie, unless that is settled ``by_position``.
    """
    return pooled_masks(
        channels.scores(networks),
        channels.by_scale,
        share,
        apart=config["settle"] == "apart",
        floor=config["floor"],
        by_position=by_position,
    )


def _masks_at_once(
    channels: Channels, networks: Networks, share: str, config: Mapping[str, Any]
) -> Masks:
    """The masks of a share now, where scores leave a tie for want of better by position."""
    masks = _masks(channels, networks, share, config, by_position=True)
    assert masks is not None
    return masks


def _newest(
    watch: Watch, share: str, trainer: Trainer, channels: Channels, config: Mapping[str, Any]
) -> Masks:
    """The masks to cut by: those found, or else (forced) those of this very step."""
    if watch.masks is not None:
        return watch.masks
    return _masks_at_once(channels, trainer.networks, share, config)


def _sliced(
    tensors: Mapping[str, Tensor], away: Cut, learners: Mapping[str, list[str]]
) -> dict[str, Tensor]:
    """A training's state without what goes: weights, buffers, averages and moments."""
    found = {}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        if kind in ("network", "average"):
            found[name] = away.apply(rest, value)
            continue
        turn, index, *key = rest.split(".", 2)
        owned = kind == "optimizer" and turn in learners and index.isdecimal()
        parameter = learners[turn][int(index)] if owned else "all weights"
        try:
            if value.dim() and not owned:  # of a group, or of an optimizer that it wraps
                raise IndexError
            found[name] = away.apply(parameter, value) if value.dim() else value
        except (IndexError, RuntimeError) as error:
            raise ConfigError(
                f"the optimizer keeps {'.'.join(key) or index!r} of {parameter} in shape "
                f"{list(value.shape)}, which cannot be cut with it; use Adam, SGD or RMSprop"
            ) from error
    return found


def _made(
    trainer: Trainer, shape: Any, before: Mapping[str, int], pruned: set[str]
) -> dict[str, Any]:
    """What is left after a cut: parameters, work and sparsity."""
    after = _sizes(trainer.networks)
    gone = sum(before.values()) - sum(after.values())
    work = work_of(trainer.task, trainer.networks, shape)
    return {
        "parameters": sum(after.values()),
        "sparsity": gone / sum(before[name] for name in pruned),
        "sparsity_all": gone / sum(before.values()),
        "work": {"step_macs": work.step_macs, "sample_macs": work.sample_macs},
    }


def _sizes(networks: Networks) -> dict[str, int]:
    return {name: sum(p.numel() for p in net.parameters()) for name, net in networks.items()}
