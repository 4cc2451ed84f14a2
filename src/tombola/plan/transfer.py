"""Which runs show whether a ticket can be played in another task? The four curves of figure 8.

Every curve prunes the one network that is matched and trains for N steps from step 0, with a fresh
optimizer; all that is not matched begins as the target's own step 0 of that seed:

- ``ticket``: the target's own mask and rewind weights, of its own chain;
- ``reinit``: that mask, all weights drawn anew;
- ``transferred``: the source's mask and rewind weights, of the source's chain of the same seed;
- ``transferred-shuffle``: that mask permuted within each tensor, on the source's rewind weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tombola.config.sections import Config
from tombola.data.sources import native_channels
from tombola.errors import ConfigError
from tombola.plan.cells import Arm, Cell, Plan
from tombola.plan.chain import Chain
from tombola.plan.plans import judge_besides, judges_of
from tombola.plan.setting import Setting, make_task
from tombola.sparsity.names import plain_state
from tombola.store.graph import Graph, Node
from tombola.store.transfer_tables import TRANSFERRED, route_name
from tombola.tickets.graft import Matching, Sketch


@dataclass(frozen=True, kw_only=True)
class Route:
    """From which task into which, and what of it fits."""

    source: str
    target: str
    matching: Matching

    @property
    def networks(self) -> str:
        """What the column ``networks`` says: ``generator<-vae.decoder``."""
        return route_name(self.matching.target, self.source, self.matching.source)


@dataclass(frozen=True, kw_only=True)
class TicketFacts:
    """What the manifest of a ticket file says that its training needs."""

    sha256: str
    method: str
    rewind_step: int
    round: int


def sketch(config: Config, data_dir: Path | None) -> Sketch:
    """Roles and shapes of a task's networks for its data, made on the meta device.

    ConfigError if the task's code cannot make its networks there.
    """
    task, _ = make_task(config)
    shape = task.image_shape(native_channels(config.data.name, data_dir))
    try:
        with torch.device("meta"):
            networks = task.networks(shape)
    except (NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            f"the networks of {config.task.name} cannot be sketched without numbers ({error}); "
            "transfers need tasks whose networks can be made on the meta device"
        ) from error
    return Sketch(
        task=config.task.name,
        roles={name: task.role(name) for name in networks},
        shapes={
            name: {key: tuple(tensor.shape) for key, tensor in plain_state(network).items()}
            for name, network in networks.items()
        },
    )


def between(settings: Mapping[str, Setting], routes: Sequence[Route]) -> dict[str, Plan]:
    """Target -> its plan, all in one graph: every route, seed and level, shared runs once.

    The pool of a setting is the network that is matched, as its ``prune.networks`` names it.
    """
    graph = Graph()
    plans = {route.target: Plan(graph=graph) for route in routes}
    for name, plan in plans.items():
        own = _own_arm(settings[name])
        into = [route for route in routes if route.target == name]
        foreign = [_foreign_arm(route, settings[route.source]) for route in into]
        # Pictures of one source lie beside the target's own, of several in folders.
        plan.arms = [own] if len(foreign) == 1 else [own, *foreign]
    judges = {name: judges_of(settings[name], graph) for name in plans}
    seeds = next(iter(settings.values())).config.search.seeds
    for seed in range(seeds):
        made: dict[str, _Masks] = {}
        for name in dict.fromkeys([*(r.source for r in routes), *plans]):
            made[name] = _Masks(settings[name], plans.get(name), graph, judges.get(name, {}), seed)
        for name in plans:
            made[name].own_arms()
        for route in routes:
            made[route.target].take(route, made[route.source])
    for name, plan in plans.items():
        judge_besides(settings[name], plan, judges[name])
    return plans


def joined(plans: Mapping[str, Plan], plan: Plan) -> None:
    """Put another plan into the graph of these, shared runs once."""
    graph = next(iter(plans.values())).graph
    for node in plan.graph:
        graph.add(node)
    plan.graph = graph


def from_file(setting: Setting, route: Route, facts: TicketFacts) -> Plan:
    """The graph of ``tombola transfer TICKET TASK``: dense, the ticket, its mask drawn anew."""
    plan = Plan(graph=Graph())
    arm = Arm(
        method=facts.method,
        networks=route.networks,
        rewind=f"{facts.rewind_step}it",
        precision=setting.config.train.precision[0],
    )
    plan.arms = [arm]
    judges = judges_of(setting, plan.graph)
    taken = plan.graph.add(Node("import", {"sha256": facts.sha256}, label="take it in"))
    for seed in range(setting.config.search.seeds):
        masks = _Masks(setting, plan, plan.graph, judges, seed, levels=0)
        masks.put(masks.dense, "dense", 0, arm, facts.rewind_step)
        node = masks.transferred(route, taken, facts.round)
        trained = {
            "transferred": masks.started("transferred", facts.round, {"ticket": node}),
            "transferred-reinit": masks.chain.training("reinit", facts.round, node),
        }
        for kind, train in trained.items():
            masks.put(train, kind, facts.round, arm, facts.rewind_step, ticket=node)
    judge_besides(setting, plan, judges)
    return plan


def settled(plan: Plan, record: Callable[[str], Mapping[str, Any]], setting: Setting) -> None:
    """Fill in how many weights the transferred masks keep: their layers decide, and training."""
    (pool,) = setting.pools
    for index, cell in enumerate(plan.cells):
        pruned = record(cell.ticket).get("pruned") if cell.ticket is not None else None
        if cell.kind in TRANSFERRED and pruned is not None:
            kept = cell.pool - int(pruned)
            sparsity, sparsity_all = setting.sparsities(pool, kept)
            plan.cells[index] = dataclasses.replace(
                cell, kept=kept, sparsity=sparsity, sparsity_all=sparsity_all
            )


class _Masks:
    """The chain of one task and seed: its dense run, its masks, and what is trained from them."""

    def __init__(
        self,
        setting: Setting,
        plan: Plan | None,
        graph: Graph,
        judges: Mapping[str, str],
        seed: int,
        *,
        levels: int | None = None,
    ) -> None:
        own = _own_arm(setting)
        self.plan = plan or Plan(graph=graph)
        self.chain = chain = Chain(setting, self.plan, own, seed, judges)
        self.dense = chain.dense()
        self.start = chain.rewind_point(self.dense, 0)
        self.masks: list[tuple[str, tuple[str, ...]]] = []
        """Level by level the mask, and what was trained before it."""
        levels = len(setting.levels) if levels is None else levels
        if not levels:
            return
        chain.rewound = chain.rewind_point(self.dense, chain.rewind_steps)
        before: tuple[str, ...] = (self.dense,)
        source, previous = self.dense, None
        for level in range(1, levels + 1):
            mask = chain.mask(level, source, previous)
            self.masks.append((mask, before))
            if own.method == "imp" and level < levels:
                source, previous = chain.training("ticket", level, mask), mask
                before = (*before, source)

    def own_arms(self) -> None:
        """The dense network, the target's own ticket and its mask with weights drawn anew."""
        chain, own = self.chain, self.chain.arm
        self.put(self.dense, "dense", 0, own, chain.rewind_steps)
        whole = {
            f"{own.networks}.{name}": [f"{own.networks}.{name}", "copy"]
            for name in self.tensors(own.networks)
        }
        for level, (mask, before) in enumerate(self.masks, 1):
            # Rewound to step 0, the ticket has all networks as this wants them.
            node = self.moved({"ticket": mask}, whole, level) if chain.rewind_steps else mask
            train = self.started("ticket", level, {"ticket": node})
            # The file that is handed out is the chain's ticket, which can travel.
            more = {"ticket": mask, "before": before}
            self.put(train, "ticket", level, own, chain.rewind_steps, **more)
            again = chain.training("reinit", level, mask)
            self.put(again, "reinit", level, own, chain.rewind_steps, **more)

    def take(self, route: Route, source: _Masks) -> None:
        """The source's masks in this task's networks, and the same shuffled."""
        arm, tensors = _foreign_arm(route, source.chain.setting), _ways(route)
        rewind = source.chain.rewind_steps
        dense = self.moved({"rewind": source.chain.rewound}, tensors, 0)
        for level, (mask, before) in enumerate(source.masks, 1):
            node = self.transferred(route, mask, level)
            parents = {"ticket": node}
            trained = {
                "transferred": self.started("transferred", level, parents),
                "transferred-shuffle": self.started(
                    "transferred-shuffle", level, {**parents, "rewind": dense}
                ),
            }
            for kind, train in trained.items():
                self.put(train, kind, level, arm, rewind, ticket=node, before=before)

    def transferred(self, route: Route, ticket: str, level: int) -> str:
        """The run that puts a source's ticket into this task's step 0."""
        return self.moved({"ticket": ticket}, _ways(route), level)

    def moved(self, parents: Mapping[str, str], tensors: Mapping[str, Any], level: int) -> str:
        what = f"ticket of level {level}" if level else "rewind point"
        label = f"{what} into {self.chain.setting.config.task.name}"
        return self.chain.add(
            "transfer", {"tensors": dict(tensors)}, {**parents, "start": self.start}, 0, label
        )

    def started(self, kind: str, level: int, parents: Mapping[str, str]) -> str:
        """A training of N steps from weights that are there, with a fresh optimizer."""
        start = "shuffle" if "rewind" in parents else "ticket"
        config = {**self.chain.base, "start": start, "from_step": 0, "optimizer": "fresh"}
        if start == "shuffle":
            config["draw"] = f"shuffle/{level}"
        label = f"{kind} of level {level} from step 0"
        return self.chain.add("train", config, parents, self.chain.setting.steps, label)

    def put(
        self, train: str, kind: str, level: int, arm: Arm, rewind: int | None, **more: Any
    ) -> None:
        """Judge a training and give it its place in the table, under an arm."""
        # What a mask from elsewhere keeps is known once it is there; until then as the own one.
        self.chain.cell(kind, level if self.masks else 0, train, **more)
        cell: Cell = self.plan.cells[-1]
        self.plan.cells[-1] = dataclasses.replace(cell, arm=arm, round=level, rewind_steps=rewind)

    def tensors(self, network: str) -> list[str]:
        setting = self.chain.setting
        with torch.device("meta"):
            made = setting.task.networks(setting.shape)[network]
        return list(plain_state(made))


def _ways(route: Route) -> dict[str, list[str]]:
    return {name: list(way) for name, way in route.matching.tensors.items()}


def _own_arm(setting: Setting) -> Arm:
    config = setting.config
    return Arm(
        method=config.search.method[0],
        networks=config.prune.networks[0],
        rewind=config.search.rewind[0],
        precision=config.train.precision[0],
    )


def _foreign_arm(route: Route, source: Setting) -> Arm:
    return dataclasses.replace(_own_arm(source), networks=route.networks)
