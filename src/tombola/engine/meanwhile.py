"""What is known of a search while it is under way: a line a training, tables and page now and then.

Tables and page are written beside the search, by a thread: runs are handed out meanwhile. Each of
the two is written at most every so many seconds and takes at most a fortieth of the time, however
long a large page is in the drawing; what fails in it ends no search.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tombola.engine.progress import Progress, judgement
from tombola.errors import EndedError, PreemptedError
from tombola.plan.cells import Cell, Plan, keep_done
from tombola.results.output import Output
from tombola.store.graph import Node
from tombola.store.runs import Store

Tables = TypeVar("Tables", bound=Output)
TABLES_SECONDS, PAGE_SECONDS = 10.0, 60.0
PREEMPTED_SECONDS = 2.0
"""How long what is being written may take where the process has to end soon."""
SHARE = 1 / 40
"""What tables and page may each take of the time."""


@dataclass(frozen=True)
class Known:
    """What is done of a search."""

    done: Collection[str]
    runs: Mapping[str, int]
    progress: Mapping[str, int]


@dataclass
class _Job:
    write: Callable[[], object]
    pause_seconds: float
    at_seconds: float
    due: bool = False


class Meanwhile:
    """Has a search told of and written while it is under way, as its runs are ``finished``.

    ``plans``: of one graph, which may grow; a cell of any of them is a training to be told of.
    ``tables`` gets what is known, ``page`` is called behind it. A context: what is left to be
    written when a search is interrupted is written at its end, unless it has to end soon.
    """

    def __init__(
        self,
        progress: Progress,
        plans: Sequence[Plan],
        store: Store,
        *,
        tables: Callable[[Known], None],
        page: Callable[[], object],
    ) -> None:
        self.progress, self._plans, self._store = progress, plans, store
        begin = time.monotonic()
        self._tables = _Job(lambda: tables(self._known()), TABLES_SECONDS, begin)
        self._page = _Job(page, PAGE_SECONDS, begin + PAGE_SECONDS)
        self._changed, self._ended = threading.Condition(), False
        self._thread: threading.Thread | None = None
        self._failed, self._complained = "", False
        self._labelled: list[list[Cell]] = []
        self._labels: dict[str, str] = {}
        self._cells: dict[str, tuple[Plan, Cell]] = {}
        self._width = 0
        """Of the longest label."""

    def __enter__(self) -> Meanwhile:
        self._before = self._store.finished()
        self._done = set(self._before)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        preempted = kind is PreemptedError
        if self._thread is not None:
            self._thread.join(PREEMPTED_SECONDS if preempted else None)
        if preempted or kind is None:
            return
        if self._tables.due:
            self._carry_out(self._tables)
        if kind is EndedError:
            self._carry_out(self._page)

    def finished(self, node: Node) -> None:
        """Of a judgement tell, and have it written."""
        self._done.add(node.hash)
        if self._failed and not self._complained:
            self._complained = True
            self.progress.note(
                f"the results so far could not be written ({self._failed}); the search goes on"
            )
        self._label()
        if node.hash not in self._labels:
            return
        with self._changed:
            self._tables.due = True
            self._changed.notify()
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_writing, daemon=True)
            self._thread.start()
        self._tell(*self._cells[node.hash])

    def _label(self) -> None:
        """Learn which judgement is of which training, when the plans have changed."""
        now = [plan.cells for plan in self._plans]
        same = len(now) == len(self._labelled)
        if same and all(a is b for a, b in zip(now, self._labelled, strict=True)):
            return
        self._labelled, self._labels = now, labels_of(self._plans)
        self._width = max(map(len, self._labels.values()), default=0)
        self._cells = {
            cell.evaluate: (plan, cell)
            for plan in reversed(self._plans)
            for cell in reversed(plan.cells)
        }

    def _tell(self, plan: Plan, cell: Cell) -> None:
        """Tell of a training that was judged, beside the dense one."""
        dense = dense_of(plan, cell)
        beside = None if dense in (None, cell.evaluate) or dense not in self._done else dense
        self.progress.judged(
            judgement(
                self._labels[cell.evaluate],
                self._width,
                self._store.record(cell.evaluate),
                self._store.record(beside) if beside else None,
            )
        )

    def _known(self) -> Known:
        done, graph = frozenset(self._done), self._plans[0].graph
        cells = [cell for plan in self._plans for cell in plan.cells]
        waiting = {cell.train for cell in cells if cell.evaluate not in done}
        trainings = [node.hash for node in graph if node.kind == "train"]
        whole = [name for name in trainings if name in done]
        return Known(
            done=done,
            runs=count_trainings(whole, self._before, self._store),
            progress={
                "done": sum(name not in waiting for name in whole),
                "of": len(trainings),
            },
        )

    def _keep_writing(self) -> None:
        """Write what is due when its time has come, until the search ends."""
        while (job := self._next_job()) is not None:
            self._carry_out(job)
            if job is self._tables:
                self._page.due = True

    def _next_job(self) -> _Job | None:
        """Wait for the job whose time has come; None if the search has ended."""
        with self._changed:
            while not self._ended:
                due = [job for job in (self._tables, self._page) if job.due]
                first = min(due, key=lambda job: job.at_seconds, default=None)
                left = None if first is None else first.at_seconds - time.monotonic()
                if first is not None and left is not None and left <= 0:
                    return first
                self._changed.wait(left)
        return None

    def _carry_out(self, job: _Job) -> None:
        """Write, and say when at the earliest it is to be written again."""
        job.due, begin = False, time.monotonic()
        try:
            job.write()
        except Exception as error:  # whatever it is, the search is worth more
            self._failed = f"{type(error).__name__}: {error}"
        end = time.monotonic()
        job.at_seconds = end + max(job.pause_seconds, (end - begin) / SHARE)


def part_of(output: Tables, done: Collection[str]) -> Tables:
    """What writes the tables of the runs that are done; what it or the other has read is known."""
    part = copy.copy(output)
    part.plan = keep_done(output.plan, done)
    return part


def count_trainings(names: Iterable[str], before: Collection[str], store: Store) -> dict[str, int]:
    """How many of some whole trainings are new, and how many were there ``before``.

    One that could not begin, as one before it diverged, is neither.
    """
    reused = [name in before for name in names if "not_run" not in store.record(name)]
    return {"trained": reused.count(False), "reused": reused.count(True)}


def labels_of(plans: Sequence[Plan]) -> dict[str, str]:
    """Judgement -> which training it is of, also among those of other tasks and arms."""
    found: dict[str, str] = {}
    for plan in plans:
        several = len({arm.precision for arm in plan.arms}) > 1
        arms: dict[str, set[str]] = {}
        for cell in plan.cells:
            arms.setdefault(cell.evaluate, set()).add(cell.arm.folder(cell.rewind_steps, several))
        for cell in plan.cells:
            if cell.train not in plan.graph:
                continue
            training = plan.graph[cell.train]
            words = [training.label]
            if len(plan.arms) > 1:
                own = arms[cell.evaluate]
                # The dense training is of all arms alike, but for precisions.
                shared = [cell.arm.precision] if several else []
                words = [*(own if len(own) == 1 else shared), *words]
            if len(plans) > 1:
                words = [training.config["task"]["name"], *words]
            found.setdefault(cell.evaluate, ", ".join(words))
    return found


def dense_of(plan: Plan, cell: Cell) -> str | None:
    """The judgement of the dense training beside a cell: of its arm and seed."""
    own = (each for each in plan.cells if each.kind == "dense")
    return next((e.evaluate for e in own if (e.arm, e.seed) == (cell.arm, cell.seed)), None)
