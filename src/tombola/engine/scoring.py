"""How are weights scored, and masks drawn, before any training?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from tombola.config.runtime import Runtime
from tombola.data.splits import Images
from tombola.errors import ConfigError
from tombola.sparsity.at_init import Losses, grasp, select, snip, synflow
from tombola.sparsity.criteria import random_scores
from tombola.sparsity.masks import Masks, ones, prunable
from tombola.tasks.base import Networks, Task
from tombola.training.scoring import Scored, batches_of, inputs_of
from tombola.training.trainer import prepare


def scores_of(
    config: Mapping[str, Any], task: Task, networks: Networks, images: Images, runtime: Runtime
) -> dict[str, Tensor]:
    """Scores of every prunable weight of all networks by one method, before any training.

    Each network by the loss of its own turn, averaged over ``batches`` x ``draws``. ConfigError if
    a task's loss cannot be differentiated as often as the method needs.
    """
    pool = prunable(networks)
    if config["method"] == "random":
        return random_scores(dict(pool), None, None, config["seed"])
    prepare(networks, runtime)
    batches = batches_of(task, images, config["seed"], runtime.device)
    scored = Scored(task, networks, batches, config["seed"])
    method = {"snip": snip, "grasp": grasp}[config["method"]]
    found: dict[str, Tensor] = {}
    for name in networks:
        weights = {key: weight for key, weight in pool.items() if key.startswith(f"{name}.")}
        losses = _losses(scored, name, config)
        if weights:
            try:
                found |= method(weights, losses)
            except RuntimeError as error:
                raise ConfigError(
                    f"method {config['method']} cannot score network {name!r}: "
                    f"{str(error).splitlines()[0]}; use another method"
                ) from error
    return {key: found[key].cpu() for key in pool}


def _losses(scored: Scored, network: str, config: Mapping[str, Any]) -> Losses:
    return lambda: scored.losses(network, config["batches"], config["draws"])


def mask_at_init(
    config: Mapping[str, Any],
    task: Task,
    networks: Networks,
    scores: Mapping[str, Tensor] | None,
    among: Masks | None,
) -> Masks:
    """The mask of a level: of the highest scores, or where there are none by SynFlow."""
    names: Sequence[str] = config["prune"]
    pool = prunable(networks, names, config["exclude"])
    if scores is not None:
        return select({key: scores[key] for key in pool}, config["keep"], among)
    inputs = inputs_of(task, networks, tuple(config["shape"]))
    pruned = {n: net for n, net in networks.items() if any(k.startswith(f"{n}.") for k in pool)}
    return synflow(pruned, inputs, config["keep"], among or ones(pool))
