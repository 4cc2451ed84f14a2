"""The stage of masks that are learnt: a training from the rewind point that ends in a ticket.

Its networks and their statistics end with it: the ticket is its mask and the rewound weights.
"""

from __future__ import annotations

from torch import Tensor

from tombola.config.runtime import seed_everything
from tombola.engine.context import Context, commit, diverged
from tombola.engine.loop import Loop
from tombola.errors import DivergedError
from tombola.sparsity.masks import prunable
from tombola.store.graph import Node
from tombola.store.runs import CHECKPOINT
from tombola.tickets.ticket import Ticket, save_ticket
from tombola.training.checkpoint import load_start, load_state
from tombola.training.learned import MASK_TRAINERS, MaskTrainer
from tombola.training.scoring import batches_of
from tombola.training.trainer import Settings, load_weights


def search(node: Node, context: Context) -> None:
    """Learn a mask from the state at the rewind point, and join it with that state's weights."""
    part = context.store.begin(node.hash)
    if diverged(context, *node.parents.values()):
        context.expect(-node.steps)
        commit(node, context, {"not_run": True})
        return
    state = context.store.path(node.parents["rewind"]) / "state.safetensors"
    start = load_start(state)
    trainer = _trainer(node, context, start)
    checkpoint, seconds = part / CHECKPOINT, 0.0
    if checkpoint.exists():
        tensors, manifest = load_state(checkpoint)
        trainer.resume(tensors, manifest)
        seconds = float(manifest["seconds"])
    loop = Loop(trainer, context, checkpoint, seconds, 0, looked_at=False)
    why = {}
    try:
        while trainer.step < trainer.settings.total_steps:
            loop.advance()
        trainer.check()
        save_ticket(part / "ticket.safetensors", Ticket(trainer.mask(), start))
    except DivergedError as error:
        context.expect(trainer.step - node.steps)
        why = {"diverged": error.step, "why": str(error)}
    loop.close()
    checkpoint.unlink(missing_ok=True)
    commit(node, context, {"seconds": loop.seconds, "log": trainer.log, **why})


def _trainer(node: Node, context: Context, start: dict[str, Tensor]) -> MaskTrainer:
    """The training at its first step: networks as at the rewind point, all else anew."""
    config = node.config
    task, runtime = context.make_task(config), context.runtime(config)
    seed_everything(config["seed"], "init")
    networks = task.networks(tuple(config["data"]["shape"]))
    load_weights(networks, start)
    images = context.images(config["data"])
    batches = batches_of(task, images, config["seed"], runtime.device)
    settings = Settings(runtime=runtime, seed=config["seed"], total_steps=config["steps"])
    pool = prunable(networks, config["prune"], config["exclude"])
    kind = MASK_TRAINERS[config["method"]]
    return kind(task, networks, batches, settings, pool, config["keep"])
