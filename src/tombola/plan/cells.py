"""What is an experiment's table made of: arms, their trained networks, when those are judged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from tombola.config.sections import PRECISIONS
from tombola.plan.trial import Thin
from tombola.store.graph import Graph

JUDGEMENTS = 25
"""Equally spaced judgements that a training is cut into (design 3.3)."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of searching: what tells it from the other arms of the same search."""

    method: str
    networks: str
    rewind: str
    precision: str
    compress: str = ""
    """Share of the channels that early-bird removes; empty for other methods."""

    def folder(self, rewind_steps: int | None, several_precisions: bool) -> str:
        """The arm's folder name under tickets/ and samples/ when there are several arms."""
        where = f"c{float(self.compress):g}" if self.compress else f"r{rewind_steps}"
        end = f"-{self.precision}" if several_precisions else ""
        return f"{self.method}-{self.networks.replace(',', '+')}-{where}{end}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One trained network of the experiment's table, and the runs that made and judged it."""

    arm: Arm
    kind: str
    """dense, ticket, reinit, ..."""
    seed: int
    round: int
    rewind_steps: int | None
    """None where nothing is rewound: early-bird."""
    kept: int
    pool: int
    sparsity: float
    sparsity_all: float
    train: str
    evaluate: str
    ticket: str | None = None
    """The run that made the mask and start weights; None for the dense network."""
    before: tuple[str, ...] = ()
    """Runs that had to be done before to get this ticket (search cost): trainings, scoring, or the
    way to a rewind point."""
    thin: Thin | None = None
    """The thinner network that was trained, where it is not the task's own."""
    cut: str | None = None
    """The run that cut channels: its record has the sparsity, which no plan can know."""
    draw: int | None = None
    """Which of several draws of a control, from 1; None where it is drawn once."""


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
    trivial: list[str] = field(default_factory=list)
    """Judgements of what needs no training: a mean image, a network's first states."""
    families: dict[str, str] = field(default_factory=dict)
    """Name of each task in its runs -> its family."""
    kept: tuple[str, ...] = ()
    """Trainings whose judged states stay: a search in the same folder judges them once more."""
    watches: dict[str, dict[str, str]] = field(default_factory=dict)
    """Cut -> its watch, and the comparison of its channels with those at the end of training."""
    left_out: frozenset[str] = frozenset()
    """Runs of cells that are not trained, as their arm stopped at an earlier level."""


def sampled_anew(plan: Plan) -> Cell:
    """The dense training that is judged again with other samples, however precisions came."""
    own = [cell for cell in plan.cells if cell.kind == "dense" and cell.seed == 0]
    return min(own, key=lambda cell: PRECISIONS.index(cell.arm.precision))


def keep_done(plan: Plan, done: Collection[str]) -> Plan:
    """A plan of the runs that are done alone: its cells are those that have been judged."""
    graph = Graph()
    for node in list(plan.graph):
        if node.hash in done and all(parent in graph for parent in node.parents.values()):
            graph.add(node)

    def whole(*names: str | None) -> bool:
        return all(name is None or name in graph for name in names)

    resampled = plan.resampled
    if resampled and not whole(sampled_anew(plan).evaluate, *resampled):
        resampled = []
    return replace(
        plan,
        graph=graph,
        cells=[c for c in plan.cells if whole(c.train, c.evaluate, c.ticket, c.cut, *c.before)],
        resampled=resampled,
        floor=plan.floor if whole(plan.floor) else None,
        trivial=[name for name in plan.trivial if whole(name)],
        watches={k: runs for k, runs in plan.watches.items() if whole(k, *runs.values())},
    )


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


def four_fifths(total_steps: int) -> int:
    """The judged step from which on the last fifth of a training is."""
    return _spaced((20,), total_steps)[0]


def _spaced(points: Iterable[int], total_steps: int) -> tuple[int, ...]:
    return tuple(sorted({max(1, round(total_steps * k / JUDGEMENTS)) for k in points}))


def tickets(plan: Plan) -> Iterator[Cell]:
    """The cells whose ticket is written out: one a seed and round."""
    return (cell for cell in plan.cells if cell.kind in ("ticket", "compact"))
