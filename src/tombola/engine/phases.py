"""Which runs of a search are due? What is judged decides what follows, and nothing else does.

An arm stops after M levels in a row that are worse than dense in every seed, by
``search.stop_after``. A level is due as soon as no stop can come before it: if levels up to l are
known and the last b of them are worse, the first stop can be at level l + M - b, so all up to that
one are due. Seeds may be M levels apart, and no run is begun that the rule leaves out.

First of all the dense networks are judged. Where they have not learnt, which is to be better than
a trivial answer, no ticket of theirs is due, unless ``search.anyway`` says so.

With ``search.controls_at=frontier`` an arm's controls are due when its chain is whole, at the
frontier alone: the last of the leading levels that match dense in the metric that decides.

Both are functions of the config and of the whole runs of the store. So the same runs come out
however often a search is cut off and with any number of workers. What lies beyond a stop and is
there, from a call that stopped later, stays in the tables.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tombola.metrics.rules import by_importance, is_beyond, rule_of
from tombola.metrics.verdict.decide import summarise
from tombola.metrics.verdict.losses import OWN_ARMS
from tombola.metrics.verdict.sentences import percent
from tombola.metrics.verdict.sequence import LEAST_SEEDS
from tombola.plan.cells import Arm, Cell, Plan
from tombola.plan.setting import Setting
from tombola.results.output import Output
from tombola.store.graph import Graph, Node
from tombola.store.runs import Store


class Ladder(NamedTuple):
    """The chains of one arm: what decides how far they go."""

    dense: dict[int, Cell]
    """Seed -> its dense training."""
    levels: dict[int, list[Cell]]
    """Round -> the tickets of all seeds, rounds ascending."""


class Standing(NamedTuple):
    """How far an arm may go by now."""

    reach: int
    """So many of its levels are due."""
    stopped: bool
    frontier: int | None
    """The round at which its controls are trained, once that is known."""
    learnt: bool | None
    """Whether its dense networks are trained; None while that is not known."""


class Phases:
    """A plan whose runs become due one after another.

    ``plan`` is what is foreseen by now: all levels that no stop leaves out, and the controls of the
    frontiers that are known; ``due`` is the part of its graph that may be run. ``note`` is told of
    every decision, ``expect`` of the training steps by which it makes what is foreseen longer.
    """

    def __init__(
        self,
        setting: Setting,
        whole: Plan,
        store: Store,
        *,
        note: Callable[[str], None] = lambda text: None,
        expect: Callable[[int], None] = lambda steps: None,
    ) -> None:
        self.setting, self.whole, self.store = setting, whole, store
        self.plan, self.due = dataclasses.replace(whole), whole.graph
        self._note, self._expect = note, expect
        self._done = store.finished()
        self._records: dict[str, dict[str, Any]] = {}
        self._ladders = _ladders(whole.cells)
        self._drawn = {cell.arm for cell in whole.cells if cell.draw is not None}
        self._frontiers: dict[Arm, int | None] = {}
        self._learnt: dict[frozenset[str], bool] = {}
        self._deciding = {cell.evaluate for cell in whole.cells if _is_own(cell)}
        self._deciding |= set(whole.trivial)  # without them no frontier is known
        self._standing: dict[Arm, Standing] = {}
        self._told: set[str] = set()
        self._decide(self._standings())

    @property
    def open_arms(self) -> set[Arm]:
        """The arms whose controls wait for a frontier that is not known yet."""
        return self._drawn - self._frontiers.keys()

    def more(self, node: Node) -> list[Node]:
        """The runs that have become due by one that is whole."""
        self._done.add(node.hash)
        is_back = node.hash in self.plan.left_out  # what is there builds on it
        if node.hash not in self._deciding and not is_back:
            return []
        standing, before = self._standings(), self.due
        if standing == self._standing and not is_back:
            return []
        left = {each.hash: each.steps for each in self.plan.graph}
        self._decide(standing)
        now = {each.hash: each.steps for each in self.plan.graph}
        gone, come = left.keys() - now.keys(), now.keys() - left.keys() - self._done
        if gone or come:
            self._expect(sum(now[name] for name in come) - sum(left[name] for name in gone))
        return [n for n in self.due if n.hash not in before and n.hash not in self._done]

    def settle(self) -> None:
        """Bring the plan in line with the store, once nothing is due any more."""
        self._done = self.store.finished()
        self._decide(self._standings())

    def _standings(self) -> dict[Arm, Standing]:
        return {arm: self._stand(arm, ladder) for arm, ladder in self._ladders.items()}

    def _stand(self, arm: Arm, ladder: Ladder) -> Standing:
        """How far an arm may go by what is judged."""
        learnt = self._has_learnt(ladder)
        reach, stopped = self._reach(ladder) if learnt else (0, learnt is False)
        if learnt is not None and arm in self._drawn and arm not in self._frontiers:
            levels = enumerate(ladder.levels.values())
            own = [c for i, cells in levels for c in cells if self._is_due(c, i, reach)]
            every = (*ladder.dense.values(), *own)
            judged = (*(cell.evaluate for cell in every), *self.whole.trivial)
            if all(name in self._done for name in judged):  # then no more will be due
                self._frontiers[arm] = self._frontier(ladder, own)
        return Standing(reach, stopped, self._frontiers.get(arm), learnt)

    def _has_learnt(self, ladder: Ladder) -> bool | None:
        """Whether the dense networks of an arm have learnt, by themselves; None = not judged yet.

        A ticket that is better than they are may still show, in the end, that they had not.
        """
        if self.setting.config.search.anyway:
            return True
        names = frozenset(cell.evaluate for cell in ladder.dense.values())
        if not self._done.issuperset((*names, *self.whole.trivial)):
            return None
        if names not in self._learnt:
            self._learnt[names] = self._verdict(ladder, []).get("state") != "not trained"
        return self._learnt[names]

    def _reach(self, ladder: Ladder) -> tuple[int, bool]:
        """How many levels of an arm are due, and whether it stops at the last of them."""
        most, row = self.setting.config.search.worse_levels, 0
        for index, cells in enumerate(ladder.levels.values() if most else ()):
            against = [self._record(ladder.dense[cell.seed].evaluate) for cell in cells]
            found = [
                self._is_worse(self._record(cell.evaluate), dense)
                for cell, dense in zip(cells, against, strict=True)
                if dense is None or "values" in dense  # of a dense run that diverged none is told
            ]
            if False in found:  # not in every seed, whatever the others turn out to be
                row = 0
            elif None in found:
                return index + most - row, False
            else:
                row = row + 1 if found else 0
            if row == most:
                return index + 1, True
        return len(ladder.levels), False

    def _is_worse(
        self, own: Mapping[str, Any] | None, against: Mapping[str, Any] | None
    ) -> bool | None:
        """Whether a ticket is further than the margin from its dense run; None = not judged yet."""
        if own is None or against is None:
            return None
        if "values" not in own:  # it diverged, or one before it in its chain
            return True
        margins = self.setting.config.verdict.margins
        judged = [name for name in against["values"] if rule_of(name, margins)]
        metric = min(judged, key=by_importance, default="")
        rule = rule_of(metric, margins)
        return rule is not None and is_beyond(
            own["values"][metric], against["values"][metric], rule
        )

    def _record(self, name: str) -> Mapping[str, Any] | None:
        if name not in self._done:
            return None
        if name not in self._records:
            self._records[name] = self.store.record(name)
        return self._records[name]

    def _is_due(self, cell: Cell, index: int, reach: int) -> bool:
        """Whether a ticket or a control is due at the ``index``-th level of its arm."""
        return index < reach or cell.train in self._done

    def _frontier(self, ladder: Ladder, own: list[Cell]) -> int | None:
        """The round at the frontier of a whole chain, of which ``own`` tickets were trained."""
        return frontier_level(self._verdict(ladder, own).get("levels", ()))

    def _verdict(self, ladder: Ladder, own: list[Cell]) -> Mapping[str, Any]:
        """The verdict on a chain of which ``own`` tickets were trained, without its controls."""
        every = [cell for cells in ladder.levels.values() for cell in cells]
        left_out = {cell.evaluate for cell in every} - {cell.evaluate for cell in own}
        left_out |= {cell.cut for cell in every if cell.cut} - self._done
        cells = [*ladder.dense.values(), *every]
        plan = dataclasses.replace(
            self.whole, cells=cells, left_out=frozenset(left_out), resampled=[]
        )
        output = Output(self.setting, plan, self.store, self.store.folder.parent)
        found = summarise(output.rows(), evidence=output.evidence())
        verdict: Mapping[str, Any] = found["verdicts"].get(found["primary"], {})
        return verdict

    def _decide(self, standing: dict[Arm, Standing]) -> None:
        """Take a standing over into the plan and what is due of it."""
        self._standing = standing
        due, foreseen, shown = [], [], []
        left_out: set[str] = set()
        for cell in self.whole.cells:
            is_due, is_foreseen = self._place(cell)
            if is_due:
                due.append(cell)
            if is_foreseen:
                foreseen.append(cell)
            elif cell.draw is None:
                left_out |= {cell.evaluate, cell.train, cell.ticket or cell.train}
                left_out |= {cell.cut or cell.train}
            if is_foreseen or cell.draw is None:
                shown.append(cell)
        self.plan.cells, self.plan.left_out = shown, frozenset(left_out - self._done)
        self.plan.graph, self.due = part_of(self.whole, foreseen), part_of(self.whole, due)
        for text in self._decisions():
            self._note(text)

    def _place(self, cell: Cell) -> tuple[bool, bool]:
        """Whether a cell is due, and whether it is foreseen."""
        standing = self._standing.get(cell.arm)
        if standing is None or cell.kind == "dense":
            return True, True
        if cell.draw is not None:
            return (cell.round == standing.frontier,) * 2
        index = list(self._ladders[cell.arm].levels).index(cell.round)
        is_due = self._is_due(cell, index, standing.reach)
        return is_due, is_due or not standing.stopped

    def _decisions(self) -> Iterator[str]:
        """What was decided and has not been told, in words."""
        several = len(self.setting.config.train.precision) > 1
        texts = []
        for arm, ladder in self._ladders.items():
            levels = list(ladder.levels.values())
            name = arm.folder(levels[0][0].rewind_steps, several)
            standing = self._standing[arm]
            said = [*self._stop(standing, levels), *self._controls(arm, levels)]
            if standing.learnt is False:
                said = [
                    "no ticket is trained: the dense networks have not learnt, which is to be "
                    "better than a trivial answer; train longer, or go on with --anyway"
                ]
            texts += [f"{name}: {text}" if len(self._ladders) > 1 else text for text in said]
        yield from (text for text in texts if text not in self._told)
        self._told.update(texts)

    def _stop(self, standing: Standing, levels: list[list[Cell]]) -> Iterator[str]:
        if standing.stopped and standing.reach < len(levels):
            most, last = self.setting.config.search.worse_levels, levels[standing.reach - 1][0]
            others = "the one" if most == 2 else f"the {most - 1}"
            row = "it is" if most == 1 else f"it and {others} before are"
            yield (
                f"level {last.round} of {len(levels)} ({percent(last.sparsity)} sparsity) is the "
                f"last to be trained: {row} worse than dense in every seed"
            )

    def _controls(self, arm: Arm, levels: list[list[Cell]]) -> Iterator[str]:
        search = self.setting.config.search
        if search.controls_at == "frontier" and arm.method == "early-bird":
            yield "controls of early-bird are trained for every share of the channels"
        if arm not in self._frontiers:
            return
        level = self._frontiers[arm]
        if level is not None:
            yield f"controls are trained at level {level}, {len(search.control_draws)} draws a seed"
            return
        seeds = ", which takes three seeds" if len(levels[0]) < LEAST_SEEDS else ""
        yield f"no controls are trained: the first level is not shown to match dense{seeds}"


def frontier_level(levels: Sequence[Mapping[str, Any]]) -> int | None:
    """The round of the last of the leading levels that match dense; None if the first does not.

    ``levels``: those of a verdict, ascending in sparsity. A fixed sequence: what comes after the
    first level that is not shown to match is not looked at.
    """
    leading = itertools.takewhile(lambda level: level["state"] == "matches", levels)
    return max((int(level["round"]) for level in leading), default=None)


def _is_own(cell: Cell) -> bool:
    """Whether a cell decides how far its arm goes."""
    return cell.kind in ("dense", *OWN_ARMS)


def _ladders(cells: Iterable[Cell]) -> dict[Arm, Ladder]:
    """The arms that have tickets, and their levels."""
    found: dict[Arm, Ladder] = {}
    for cell in sorted((c for c in cells if _is_own(c)), key=lambda cell: cell.round):
        ladder = found.setdefault(cell.arm, Ladder({}, {}))
        if cell.kind == "dense":
            ladder.dense[cell.seed] = cell
        else:
            ladder.levels.setdefault(cell.round, []).append(cell)
    # A ticket from a file is held against no dense run.
    return {arm: ladder for arm, ladder in found.items() if ladder.levels and ladder.dense}


def part_of(whole: Plan, cells: Collection[Cell]) -> Graph:
    """The runs behind some cells of a plan and behind its trivial answers, and what adds to them.

    That are runs behind no cell, such as a comparison of an early-bird mask with the last one.
    """
    every = _behind(whole.graph, (cell.evaluate for cell in whole.cells))
    wanted = _behind(whole.graph, [*(cell.evaluate for cell in cells), *whole.trivial])
    for node in whole.graph:  # parents come first
        if node.hash not in every and wanted.issuperset(node.parents.values()):
            wanted.add(node.hash)
    graph = Graph()
    for node in whole.graph:
        if node.hash in wanted:
            graph.add(node)
    return graph


def _behind(graph: Graph, names: Iterable[str]) -> set[str]:
    """Runs and all that they build on."""
    found: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo.extend(graph[name].parents.values())
    return found
