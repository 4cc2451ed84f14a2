"""Which runs make an experiment? A setting goes in, a graph and its table's cells come out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tombola.recipes.setting import Setting, split_networks
from tombola.recipes.trial import Thin
from tombola.registry import file_sha256, is_file_spec, split_file_spec
from tombola.runs.plan import Graph, Node

OPPONENTS = ("thin-parameters", "dense-long")
"""Controls that are dense networks."""
MOST_TIMES_AS_LONG = 3
"""dense-long is trained at most so many times as long as a ticket."""
JUDGEMENTS = 25
"""Equally spaced judgements that a training is cut into (design 3.3)."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of searching: what tells it from the other arms of the same search."""

    method: str
    networks: str
    rewind: str
    precision: str

    def folder(self, rewind_steps: int, several_precisions: bool) -> str:
        """The arm's folder name under tickets/ and samples/ when there are several arms."""
        end = f"-{self.precision}" if several_precisions else ""
        return f"{self.method}-{self.networks.replace(',', '+')}-r{rewind_steps}{end}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One trained network of the experiment's table, and the runs that made and judged it."""

    arm: Arm
    kind: str
    """dense, ticket, reinit, ..."""
    seed: int
    round: int
    rewind_steps: int
    kept: int
    pool: int
    sparsity: float
    sparsity_all: float
    train: str
    evaluate: str
    ticket: str | None = None
    """The run that made the mask and start weights; None for the dense network."""
    before: tuple[str, ...] = ()
    """Training runs that had to be done before to get this ticket (search cost)."""
    thin: Thin | None = None
    """The thinner network that was trained, where it is not the task's own."""


@dataclass(kw_only=True)
class Plan:
    """A graph of runs and how its results are laid out."""

    graph: Graph
    cells: list[Cell] = field(default_factory=list)
    arms: list[Arm] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    """Evaluations of one dense network with other sampling seeds."""
    floor: str | None = None
    """The judgement of training images in the place of samples, where samples are compared."""


def judged_steps(family: str, total_steps: int) -> tuple[int, ...]:
    """The steps at which a training is judged, ascending, the last step last.

    GANs: the last five of 25 equally spaced judgements (design 3.3: their median counts). The
    others: the last step counts; four fifths of the way is looked at to see whether it converged.
    """
    first = 21 if family == "gan" else 20
    points = range(first, JUDGEMENTS + 1) if family == "gan" else (first, JUDGEMENTS)
    return _spaced(points, total_steps)


def course_steps(total_steps: int, from_step: int = 0) -> tuple[int, ...]:
    """The steps at which a training's course is judged: of 25 equally spaced those it has."""
    points = _spaced(range(1, JUDGEMENTS + 1), total_steps)
    return tuple(step for step in points if step >= from_step)


def _spaced(points: Iterable[int], total_steps: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(total_steps * k / JUDGEMENTS)) for k in points}))


def search(setting: Setting) -> Plan:
    """The graph of a ticket search: every arm, seed and level, with what they share run once."""
    config = setting.config.search
    arms = [
        Arm(method=method, networks=networks, rewind=rewind, precision=precision)
        for precision in setting.config.train.precision
        for networks in setting.config.prune.networks
        for rewind in config.rewind
        for method in config.method
    ]
    plan = Plan(graph=Graph(), arms=arms)
    judges = _judges(setting, plan.graph)
    for seed in range(config.seeds):
        for arm in arms:
            _Chain(setting, plan, arm, seed, judges).build()
    _resample(setting, plan, judges)
    _floor(setting, plan, judges)
    return plan


def dense(setting: Setting) -> Plan:
    """The graph of ``tombola train``: the dense network of every seed, judged."""
    arms = [
        Arm(method="dense", networks="all", rewind="0it", precision=precision)
        for precision in setting.config.train.precision
    ]
    plan = Plan(graph=Graph(), arms=arms)
    judges = _judges(setting, plan.graph)
    for seed in range(setting.config.search.seeds):
        for arm in arms:
            _Chain(setting, plan, arm, seed, judges).dense_cell()
    return plan


def from_ticket(setting: Setting, ticket: Mapping[str, Any]) -> Plan:
    """The graph of ``tombola train --ticket``: the file taken in, trained and judged.

    ``ticket``: sha256 of the file, and method, networks, rewind, rewind_step, seed and round from
    its manifest.
    """
    arms = [
        Arm(
            method=str(ticket["method"]),
            networks=str(ticket["networks"]),
            rewind=str(ticket["rewind"]),
            precision=precision,
        )
        for precision in setting.config.train.precision
    ]
    plan = Plan(graph=Graph(), arms=arms)
    judges = _judges(setting, plan.graph)
    taken = plan.graph.add(Node("import", {"sha256": ticket["sha256"]}, label="take the ticket in"))
    for arm in arms:
        chain = _Chain(setting, plan, arm, int(ticket["seed"]), judges)
        chain.rewind_steps = int(ticket["rewind_step"])
        chain.trained("ticket", int(ticket["round"]), taken, ())
    return plan


class _Chain:
    """The runs of one arm and seed."""

    def __init__(
        self, setting: Setting, plan: Plan, arm: Arm, seed: int, judges: Mapping[str, str]
    ) -> None:
        self.setting, self.plan, self.arm, self.seed = setting, plan, arm, seed
        self.judges = judges
        self.base = setting.base(arm.precision)
        self.rewind_steps = setting.rewind_step(arm.rewind)
        self.restore = setting.config.search.optimizer_at_rewind == "restore"
        self.rewound = ""

    def build(self) -> None:
        """Dense run, then level by level the ticket and its controls."""
        first = self.dense_cell()
        self.rewound = self.add(
            "rewind",
            {"step": self.rewind_steps},
            {"dense": first},
            0,
            f"rewind point {self.rewind_steps}",
        )
        before: tuple[str, ...]
        own_before: tuple[str, ...]
        source, previous, before = first, None, (first,)
        own_source, own_previous, own_before = first, None, (first,)
        for level in range(1, len(self.setting.levels) + 1):
            ticket = self.mask(level, source, previous)
            trained = self.trained("ticket", level, ticket, before)
            for control in self.setting.config.search.controls:
                if control in OPPONENTS:
                    self.opponent(control, level, before)
                elif control != "reinit-chain":
                    spent = () if control == "erk" else before
                    self.trained(control, level, ticket, spent)
            if "reinit-chain" in self.setting.config.search.controls:
                own = self.mask(level, own_source, own_previous)
                again = self.trained("reinit-chain", level, own, own_before)
                if self.arm.method == "imp":
                    own_source, own_previous, own_before = again, own, (*own_before, again)
            if self.arm.method == "imp":
                source, previous, before = trained, ticket, (*before, trained)

    def add(
        self,
        kind: str,
        config: Mapping[str, Any],
        parents: Mapping[str, str],
        steps: int,
        label: str,
    ) -> str:
        """Add a run of this seed to the graph."""
        return self.plan.graph.add(
            Node(
                kind,
                {**config, "seed": self.seed},
                dict(parents),
                f"{label}, seed {self.seed}",
                steps,
            )
        )

    def dense_cell(self) -> str:
        """The dense training of this seed and its judgement."""
        train = self.add("train", {**self.base, "start": "dense"}, {}, self.setting.steps, "dense")
        self.cell("dense", 0, train, None, ())
        return train

    def mask(self, level: int, source: str, previous: str | None) -> str:
        """The run that selects the weights of a level and joins them with the rewind weights."""
        prune = self.setting.config.prune
        config = {
            "task": self.base["task"],
            "shape": self.base["data"]["shape"],
            "keep": self.setting.kept(self.arm.networks, level),
            "prune": list(split_networks(self.arm.networks)),
            "exclude": list(prune.exclude),
            "criterion": _criterion(prune.criterion),
        }
        parents = {"source": source, "rewind": self.rewound}
        if previous is not None:
            parents["previous"] = previous
        return self.add("mask", config, parents, 0, f"mask of level {level}")

    def trained(self, kind: str, level: int, ticket: str, before: tuple[str, ...]) -> str:
        """The training of a ticket or control and its judgement."""
        fresh = kind in ("reinit", "erk", "reinit-chain")
        config: dict[str, Any] = {**self.base, "start": kind}
        parents = {"ticket": ticket}
        steps = self.setting.steps
        if fresh:
            config["draw"] = f"{kind}/{level}"
        else:
            config["from_step"] = self.rewind_steps
            config["optimizer"] = "restore" if self.restore else "fresh"
            steps -= self.rewind_steps
            if kind == "shuffle" or self.restore:
                parents["rewind"] = self.rewound
            if kind == "shuffle":
                config["draw"] = f"shuffle/{level}"
        train = self.add("train", config, parents, steps, f"{kind} of level {level}")
        self.cell(kind, level, train, ticket, before)
        return train

    def opponent(self, kind: str, level: int, before: tuple[str, ...]) -> None:
        """A dense training that had what a ticket has: its parameters, or its search's steps."""
        steps, thin = self.setting.steps, None
        config: dict[str, Any] = {**self.base, "start": kind}
        if kind == "dense-long":
            spent = sum(self.plan.graph[name].steps for name in before)
            steps = config["steps"] = min(MOST_TIMES_AS_LONG * steps, steps + spent)
        else:
            thin = self.setting.thin(self.arm.networks, level)
            config["task"] = {**config["task"], "options": dict(thin.options)}
        train = self.add("train", config, {}, steps, f"{kind} of level {level}")
        self.cell(kind, level, train, None, (), thin)

    def cell(
        self,
        kind: str,
        level: int,
        train: str,
        ticket: str | None,
        before: tuple[str, ...],
        thin: Thin | None = None,
    ) -> None:
        """Judge a trained network and give it its place in the table."""
        setting = self.setting
        evaluate = evaluation(setting, self.plan.graph, train, self.judges, self.seed, 0)
        pool = setting.pools.get(self.arm.networks, 0)
        kept = setting.kept(self.arm.networks, level) if pool else 0
        sparsity, sparsity_all = setting.sparsities(self.arm.networks, kept) if pool else (0.0, 0.0)
        self.plan.cells.append(
            Cell(
                arm=self.arm,
                kind=kind,
                seed=self.seed,
                round=level,
                rewind_steps=self.rewind_steps,
                kept=kept,
                pool=pool,
                sparsity=sparsity,
                sparsity_all=sparsity_all,
                train=train,
                evaluate=evaluate,
                ticket=ticket,
                before=before,
                thin=thin,
            )
        )


def evaluation(
    setting: Setting,
    graph: Graph,
    train: str,
    judges: Mapping[str, str],
    seed: int,
    sampling_seed: int,
) -> str:
    """Add the judgement of a trained network with the latents of a sampling seed.

    ``judges``: the trainings of the networks that judge, by role.
    """
    training = graph[train]
    config = {
        "task": training.config["task"],
        "data": training.config["data"],
        "steps": list(judged_steps(setting.task.family, training.config["steps"])),
        "judge": dict(setting.judge) if setting.judge else None,
        "classifier": dict(setting.classifier) if setting.classifier else None,
        "samples": setting.config.judge.samples,
        "validation_samples": 0 if sampling_seed else setting.config.judge.validation_samples,
        "sampling_seed": sampling_seed,
        "grid": seed == 0 and sampling_seed == 0,
        "device": setting.device,
        "threads": setting.threads,
    }
    return graph.add(
        Node("evaluate", config, {"train": train, **judges}, f"judge {training.label}")
    )


def _judges(setting: Setting, graph: Graph) -> dict[str, str]:
    """The trainings of the networks that judge, where none is at hand: role -> run."""
    found: dict[str, str] = {}
    for role, spec in (("judge", setting.judge), ("classifier", setting.classifier)):
        if spec is not None and spec["source"] == "run":
            config = {
                "data": {"sha256": setting.images.sha256, "shape": list(setting.shape)},
                "steps": setting.config.judge.steps,
                "classes": setting.images.classes,
                **{key: value for key, value in spec.items() if key != "source"},
            }
            steps = setting.config.judge.steps or 1500
            found[role] = graph.add(Node("judge", config, {}, "judge's classifier", steps))
    return found


def _floor(setting: Setting, plan: Plan, judges: Mapping[str, str]) -> None:
    """Judge training images in the place of samples: what a perfect generator would get."""
    if setting.judge is None:
        return
    config = {
        "data": {"sha256": setting.images.sha256, "shape": list(setting.shape)},
        "judge": dict(setting.judge),
        "samples": setting.config.judge.samples,
        "device": setting.device,
        "threads": setting.threads,
    }
    parents = {role: run for role, run in judges.items() if role == "judge"}
    plan.floor = plan.graph.add(Node("floor", config, parents, "judge training images"))


def _resample(setting: Setting, plan: Plan, judges: Mapping[str, str]) -> None:
    """Judge the first dense network with further sampling seeds, to show the judge's own noise."""
    if not setting.task.latent:
        return
    train = next(cell.train for cell in plan.cells if cell.kind == "dense" and cell.seed == 0)
    for sampling_seed in range(1, setting.config.judge.sampling_seeds):
        plan.resampled.append(evaluation(setting, plan.graph, train, judges, 0, sampling_seed))


def _criterion(spec: str) -> dict[str, str]:
    """A criterion's part of a run's name: its name, and the hash of a user's file."""
    if not is_file_spec(spec):
        return {"name": spec}
    path, name = split_file_spec(spec)
    return {"name": name, "sha256": file_sha256(path)}


def tickets(plan: Plan) -> Iterator[Cell]:
    """The cells whose ticket is written out: one a seed and round."""
    return (cell for cell in plan.cells if cell.kind == "ticket")
