"""Which runs make one arm of one seed: dense, rewind point, then level by level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from tombola.config.learned import LEARNED
from tombola.config.registry import code_sha256, is_file_spec, split_file_spec
from tombola.config.search import AT_INIT, LEAST_DRAW_EPOCHS
from tombola.config.values import split_networks
from tombola.plan.cells import Arm, Cell, Plan, judged_steps
from tombola.plan.learned import search_config, search_steps, steps_before
from tombola.plan.setting import Setting
from tombola.plan.trial import Thin
from tombola.sparsity.earlybird import LOOK_BACK
from tombola.store.graph import Graph, Node

OPPONENTS = ("thin-parameters", "dense-long")
VERSIONS = {"synflow": 2, "thin-flops": 3}
"""Methods and controls whose runs would differ from those of an earlier version, where those of
others of their kind would not; a schema number is for all runs of a kind."""
"""Controls that are dense networks."""
MOST_TIMES_AS_LONG = 3
"""dense-long is trained at most so many times as long as a ticket."""


class Chain:
    """The runs of one arm and seed."""

    def __init__(
        self, setting: Setting, plan: Plan, arm: Arm, seed: int, judges: Mapping[str, str]
    ) -> None:
        self.setting, self.plan, self.arm, self.seed = setting, plan, arm, seed
        self.judges = judges
        self.base = setting.base(arm.precision)
        self.rewind_steps: int | None = setting.rewind_step(arm.rewind)
        self.restore = setting.config.search.optimizer_at_rewind == "restore"
        self.restart = setting.config.rewind.schedule == "restart"
        self.rewound = ""

    def build(self) -> None:
        """Dense run, then level by level the ticket and its controls."""
        if self.arm.method == "early-bird":
            self.rewind_steps = None
            self.early_bird(self.dense_cell())
            return
        first = self.dense_cell()
        self.rewound = self.rewind_point(first, self.rewind_steps)
        if self.arm.method in AT_INIT:
            self.levels_at_init()
            return
        if self.arm.method in LEARNED:
            self.levels_learned()
            return
        before: tuple[str, ...]
        own_before: tuple[str, ...]
        source, previous, before = first, None, (first,)
        own_source, own_previous, own_before = first, None, (first,)
        for level in range(1, len(self.setting.levels) + 1):
            ticket = self.mask(level, source, previous)
            trained = self.ticket_and_controls(level, ticket, before)
            if "reinit-chain" in self.setting.config.search.controls:
                own = self.mask(level, own_source, own_previous)
                again = self.trained("reinit-chain", level, own, own_before)
                if self.arm.method == "imp":
                    own_source, own_previous, own_before = again, own, (*own_before, again)
            if self.arm.method == "imp":
                source, previous, before = trained, ticket, (*before, trained)

    def levels_at_init(self) -> None:
        """Masks drawn before any training, each within the one before, and their trainings."""
        method, prune = self.arm.method, self.setting.config.prune
        parents = {"rewind": self.rewound}
        scored: tuple[str, ...] = ()
        if method != "synflow":
            config: dict[str, Any] = {
                key: self.base[key] for key in ("task", "data", "device", "threads")
            }
            config["method"] = method
            if method != "random":
                config |= {"batches": prune.score_batches, "draws": prune.score_draws}
            scores = self.add("scores", config, parents, 0, f"scores by {method}")
            parents, scored = {**parents, "scores": scores}, (scores,)
        for level in range(1, len(self.setting.levels) + 1):
            config = {**self._mask_config(level), "method": method, **_version(method)}
            ticket = self.add("mask", config, parents, 0, f"mask of level {level} by {method}")
            parents, scored = {**parents, "previous": ticket}, (*scored, ticket)
            self.ticket_and_controls(level, ticket, scored)

    def levels_learned(self) -> None:
        """One search a level, from the rewind point on; of the dense run only its way there."""
        method = self.arm.method
        steps = search_steps(self.setting, method, self.rewind_steps or 0)
        for level in range(1, len(self.setting.levels) + 1):
            config = search_config(self.base, self._mask_config(level), method, steps)
            label = f"{method} search of level {level}"
            ticket = self.add("search", config, {"rewind": self.rewound}, steps, label)
            self.ticket_and_controls(level, ticket, (self.rewound, ticket))

    def early_bird(self, dense: str) -> None:
        """Watch a training until its channels have settled, cut, go on small; the opponents."""
        prune, share = self.setting.config.prune, self.arm.compress
        rule = {
            key: getattr(prune, key) for key in ("settle", "rule", "delta", "scale_l1", "floor")
        }
        config = {
            **self.base,
            **rule,
            "start": "dense",
            "prune": list(split_networks(self.arm.networks)),
            "compress": list(self.setting.watched_with(share)),
            "draw_steps": _draw_steps(self.setting, prune.draw_epochs),
        }
        half = self.setting.steps // 2
        watch = self.add("watch", config, {}, half, "early-bird search")
        same = {"watch": watch, "dense": dense}
        overlap = self.add("overlap", {"compress": share}, same, 0, "overlap with the end")
        cut = self._cut("ticket", watch)
        self.plan.watches[cut] = {"watch": watch, "overlap": overlap}
        for kind in ("compact", *self.setting.config.search.controls_of("early-bird")):
            parents = {"cut": cut}
            if kind == "random-channels":
                parents = {"cut": self._cut("random", watch)}
            elif kind != "compact":
                asked = {**self.base, "match": kind.removeprefix("thin-"), **_version(kind)}
                label = f"size of {kind} for {share}"
                parents = {"thin": self.add("thin", asked, {"cut": cut}, 0, label)}
            config = {**self.base, "start": kind}
            label = f"{kind} of {share}"
            train = self.add("train", config, parents, self.setting.steps, label)
            own = parents.get("cut")
            self.cell(kind, 1, train, ticket=own, before=(own,) if own else (), cut=cut)

    def _cut(self, channels: str, watch: str) -> str:
        config = {
            "compress": self.arm.compress,
            "channels": channels,
            "round_to": self.setting.config.prune.round_to,
            "data": self.base["data"],
        }
        label = f"cut of {self.arm.compress}, {channels} channels"
        return self.add("cut", config, {"watch": watch}, 0, label)

    def ticket_and_controls(self, level: int, ticket: str, before: tuple[str, ...]) -> str:
        """The ticket's training and those of the controls that have its mask; the former's run."""
        trained = self.trained("ticket", level, ticket, before)
        search = self.setting.config.search
        for control in search.controls_of(self.arm.method):
            if control in OPPONENTS:
                self.opponent(control, level, before)
            elif control != "reinit-chain":
                spent = () if control == "erk" else before
                for draw in search.control_draws:
                    self.trained(control, level, ticket, spent, draw)
        return trained

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

    def dense(self) -> str:
        """The dense training of this seed."""
        return self.add("train", {**self.base, "start": "dense"}, {}, self.setting.steps, "dense")

    def dense_cell(self) -> str:
        """The dense training of this seed and its judgement."""
        train = self.dense()
        self.cell("dense", 0, train)
        return train

    def rewind_point(self, dense: str, step: int | None) -> str:
        """The state that the dense training had at a step."""
        return self.add("rewind", {"step": step}, {"dense": dense}, 0, f"rewind point {step}")

    def mask(self, level: int, source: str, previous: str | None) -> str:
        """The run that selects the weights of a level and joins them with the rewind weights."""
        criterion = _criterion(self.setting.config.prune.criterion)
        config = {**self._mask_config(level), "criterion": criterion}
        parents = {"source": source, "rewind": self.rewound}
        if previous is not None:
            parents["previous"] = previous
        return self.add("mask", config, parents, 0, f"mask of level {level}")

    def _mask_config(self, level: int) -> dict[str, Any]:
        return {
            "task": self.base["task"],
            "shape": self.base["data"]["shape"],
            "keep": self.setting.kept(self.arm.networks, level),
            "prune": list(split_networks(self.arm.networks)),
            "exclude": list(self.setting.config.prune.exclude),
        }

    def trained(
        self, kind: str, level: int, ticket: str, before: tuple[str, ...], draw: int | None = None
    ) -> str:
        """The training of a ticket or control and its judgement."""
        train = self.training(kind, level, ticket, draw)
        self.cell(kind, level, train, ticket=ticket, before=before, draw=draw)
        return train

    def training(self, kind: str, level: int, ticket: str, draw: int | None = None) -> str:
        """The training of a ticket or of a control that has its mask."""
        purpose = _purpose(kind, level, draw)
        fresh = kind in ("reinit", "erk", "reinit-chain")
        config: dict[str, Any] = {**self.base, "start": kind}
        parents = {"ticket": ticket}
        steps = self.setting.steps
        if fresh or self.rewind_steps is None:
            config["draw"] = purpose
        else:
            # A restarted training has the weights of the rewind point at its step 0.
            config["from_step"] = 0 if self.restart else self.rewind_steps
            config["optimizer"] = "restore" if self.restore else "fresh"
            steps -= config["from_step"]
            if kind == "shuffle" or self.restore:
                parents["rewind"] = self.rewound
            if kind == "shuffle":
                config["draw"] = purpose
        return self.add("train", config, parents, steps, _label(kind, level, draw))

    def opponent(self, kind: str, level: int, before: tuple[str, ...]) -> None:
        """Dense trainings that had what a ticket has: its parameters, or its search's steps."""
        steps, thin = self.setting.steps, None
        config: dict[str, Any] = {**self.base, "start": kind}
        if kind == "dense-long":
            spent = sum(steps_before(self.plan.graph, name) for name in before)
            steps = config["steps"] = min(MOST_TIMES_AS_LONG * steps, steps + spent)
        else:
            thin = self.setting.thin(self.arm.networks, level)
            config["task"] = {**config["task"], "options": dict(thin.options)}
        for draw in self.setting.config.search.control_draws:
            if (draw or 1) > 1:
                config = {**config, "draw": _purpose(kind, level, draw)}
            train = self.add("train", config, {}, steps, _label(kind, level, draw))
            self.cell(kind, level, train, thin=thin, draw=draw)

    def cell(
        self,
        kind: str,
        level: int,
        train: str,
        *,
        ticket: str | None = None,
        before: tuple[str, ...] = (),
        thin: Thin | None = None,
        cut: str | None = None,
        draw: int | None = None,
    ) -> None:
        """Judge a trained network and give it its place in the table."""
        setting = self.setting
        evaluate = evaluation(setting, self.plan.graph, train, self.judges, self.seed, 0)
        pool = setting.pools.get(self.arm.networks, 0)
        kept = setting.kept(self.arm.networks, 0 if cut else level) if pool else 0
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
                cut=cut,
                draw=draw,
            )
        )


def _purpose(kind: str, level: int, draw: int | None) -> str:
    """What a control is drawn for; the first draw is that of a search that draws once."""
    return f"{kind}/{level}" if (draw or 1) == 1 else f"{kind}/{level}/{draw}"


def _label(kind: str, level: int, draw: int | None) -> str:
    return f"{kind} of level {level}" + (f", draw {draw}" if draw else "")


def few_draws(setting: Setting) -> str:
    """What to do where too few masks can be drawn for early-bird's rule to judge; else empty."""
    between = _draw_steps(setting, setting.config.prune.draw_epochs)
    last, each = max(1, setting.steps // 2), setting.epoch_steps
    if "early-bird" not in setting.config.search.method or last // between >= LOOK_BACK:
        return ""
    steps = 2 * LOOK_BACK * between
    # The least length in hundredths of an epoch that gives so many steps when it is rounded.
    near = itertools.count(100 * (steps - 1) // each)
    epochs = next(k / 100 for k in near if round(k / 100 * each) >= steps)
    words = f"give --epochs of at least {epochs:g} (or --steps {steps})"
    longest = last // LOOK_BACK / each
    nearer = [k / 100 for k in range(int(100 * longest) + 1) if k / 100 >= LEAST_DRAW_EPOCHS]
    fitting = [k for k in nearer if _draw_steps(setting, k) <= last // LOOK_BACK]
    if fitting:
        words += f", or --set prune.draw_epochs={fitting[-1]:g}"
    return (
        f"early-bird: only {last // between} of the {LOOK_BACK} masks that the rule compares can "
        f"be drawn by step {last:,}, half of the training, where the cut is forced then; {words}"
    )


def _draw_steps(setting: Setting, epochs: float) -> int:
    """Steps between two masks that are drawn so many epochs apart."""
    return math.ceil(epochs * setting.epoch_steps)


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
        # How long a thinned network is trained is known only when the ticket is.
        "steps": []
        if "thin" in training.parents
        else list(judged_steps(setting.task.family, training.config["steps"])),
        "judge": dict(setting.judge) if setting.judge else None,
        "classifier": dict(setting.classifier) if setting.classifier else None,
        "samples": setting.judged_samples,
        **({"fakes": setting.fakes} if setting.fakes else {}),
        "validation_samples": 0 if sampling_seed else setting.config.judge.validation_samples,
        "sampling_seed": sampling_seed,
        "grid": seed == 0 and sampling_seed == 0,
        "device": setting.device,
        "threads": setting.threads,
    }
    return graph.add(
        Node("evaluate", config, {"train": train, **judges}, f"judge {training.label}")
    )


def _version(name: str) -> dict[str, int]:
    """What tells the runs of a method or control from those of an earlier version."""
    return {"version": VERSIONS[name]} if name in VERSIONS else {}


def _criterion(spec: str) -> dict[str, str]:
    """A criterion's part of a run's name: its name, and the hash of a user's file."""
    if not is_file_spec(spec):
        return {"name": spec}
    path, name = split_file_spec(spec)
    return {"name": name, "sha256": code_sha256(path)}
