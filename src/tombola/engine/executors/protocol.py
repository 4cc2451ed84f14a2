"""Who carries out the runs of a graph, and in which order? A small protocol and the serial one.

An executor is told to begin a run, tells of progress and of its end, and can be told to end all
that is under way: ``local_pool.LocalPool`` has a process for each worker, ``Serial`` is this one.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from tombola.config.registry import EXECUTORS, is_file_spec, split_file_spec
from tombola.engine.executors.agenda import Agenda
from tombola.engine.executors.losses import TRIES, Losses, describe_loss, what_was_lost
from tombola.errors import ConfigError, UserError
from tombola.store.graph import Graph, Node
from tombola.store.runs import Store


@dataclass
class Work:
    """What an executor needs to know to carry out a graph."""

    graph: Graph
    store: Store
    context: Mapping[str, Any]
    """The plain fields of stages.Context."""
    workers: int
    threads: int
    lock: int
    """Descriptor of the folder's lock: workers inherit it, so it is held until the last ends."""
    progress: Callable[[int], None] = lambda steps: None
    expect: Callable[[int], None] = lambda steps: None
    started: Callable[[Node], None] = lambda node: None
    finished: Callable[[Node], None] = lambda node: None
    lost: Callable[[Node], None] = lambda node: None
    """Told of a run that was started and is not under way any more."""
    note: Callable[[str], None] = lambda text: None
    more: Callable[[Node], Iterable[Node]] = lambda node: ()
    """The runs beside the graph's own that have become due by one that is whole."""


@dataclass(frozen=True)
class End:
    """What an executor tells of a run that is not under way any more."""

    node: Node
    lost: str = ""
    """How it lost the process that carried it out; empty if it is whole."""


class Executor(Protocol):
    """Where runs are carried out. Runs meet in the store: no tensors pass through here."""

    @property
    def free(self) -> bool:
        """Whether another run can be submitted now."""
        ...

    def submit(self, node: Node) -> None:
        """Begin a run whose parents are whole; one that was lost is taken up where it was."""
        ...

    def wait(self) -> End:
        """Wait for the next run that ends, telling ``Work.progress`` and ``expect`` meanwhile.

        UserError (of its kind) or OSError if a run fails by itself.
        """
        ...

    def cancel(self, *, grace: bool) -> None:
        """End all that is under way; with grace it may take seconds to save what it has."""
        ...


def load_executor(spec: str) -> Callable[[Work], Executor]:
    """The executor class behind a name or ``path/file.py:NAME``; ConfigError for what is none."""
    made = EXECUTORS.load(spec)
    parts = ("free", "submit", "wait", "cancel")
    if lacking := [name for name in parts if not hasattr(made, name)]:
        raise ConfigError(
            f"executor {spec} is no executor: it has no {', '.join(lacking)}; docs/extending.md "
            "shows one"
        )
    return cast(Callable[[Work], Executor], made)


def carry_out(work: Work, executor: Executor) -> list[str]:
    """Carry out every node that is not in the store; returns the hashes of those carried out.

    A run that loses its process is begun again. EndedError at the end if runs were given up
    (``losses.Losses``): all that does not build on them is whole. Raises what a run raises. What is
    whole stays, nothing is under way when this returns or raises; interrupted, what is under way is
    saved.
    """
    done = work.store.finished()
    agenda, losses = Agenda(work.graph.missing(done), done), Losses(work.store)
    under_way, carried_out, grace = 0, [], False
    try:
        while True:
            while executor.free and (node := agenda.take()):
                executor.submit(node)
                work.started(node)
                under_way += 1
            if not under_way:
                break
            end = executor.wait()
            under_way -= 1
            if end.lost:
                work.lost(end.node)
                _begin_again(end, work, agenda, losses)
                continue
            carried_out.append(end.node.hash)
            agenda.finish(end.node)
            work.finished(end.node)
            agenda.add(work.more(end.node))
        losses.check(agenda.waiting)
        assert not agenda.waiting, "runs wait for others that are not in the graph"
    except KeyboardInterrupt:
        grace = True
        raise
    finally:
        executor.cancel(grace=grace)
    return carried_out


def _begin_again(end: End, work: Work, agenda: Agenda, losses: Losses) -> None:
    """Put a run that was lost back on the agenda, or give it up."""
    next_try, label = losses.again(end.node, end.lost), end.node.label
    if next_try:
        agenda.give_back(end.node)
        work.note(f"{end.lost} during: {label}; it is begun again (try {next_try} of {TRIES})")
    else:
        work.note(f"{end.lost} during: {label}; given up after {TRIES} tries")


class Serial:
    """One run after another in this process: for tests, debuggers and tiny searches.

    Global generators are as they were after each run. A signal that ends the process ends the run.
    """

    def __init__(self, work: Work) -> None:
        self._work = work
        self._node: Node | None = None

    @property
    def free(self) -> bool:
        """Whether no run waits to be carried out."""
        return self._node is None

    def submit(self, node: Node) -> None:
        """Let the next wait carry this run out."""
        self._node = node

    def wait(self) -> End:
        """Carry out the run that was submitted."""
        from tombola.config.runtime import generators_as_found
        from tombola.engine.context import open_context
        from tombola.engine.stages import execute

        node, work = self._node, self._work
        assert node is not None, "nothing was submitted"
        self._node = None
        try:
            with generators_as_found(), blame_users_file(work.context), flush_denormals():
                execute(node, open_context(work.context, work.progress, work.expect))
        except Exception as error:
            lost = describe_loss(error)
            if not lost:
                raise
            return End(node, lost)
        return End(node)

    def cancel(self, *, grace: bool) -> None:
        """Forget what was submitted."""
        self._node = None


@contextlib.contextmanager
def flush_denormals() -> Iterator[None]:
    """Compute without denormal numbers, as workers do, and as before afterwards."""
    import torch

    tiny = torch.full((1,), 1e-39, dtype=torch.float32, device="cpu")
    before = not bool((tiny * 1.0).count_nonzero())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


@contextlib.contextmanager
def blame_users_file(context: Mapping[str, Any]) -> Iterator[None]:
    """What comes from a line of the user's task is a ConfigError in one line that names it."""
    try:
        yield
    except (UserError, OSError, KeyboardInterrupt):
        raise
    except BaseException as error:
        specs = {context["task"], *(context.get("tasks") or {}).values()}
        blame = next(filter(None, (_place_in(error, spec) for spec in sorted(specs))), None)
        if blame is None or what_was_lost(error):
            raise
        raise ConfigError(blame) from error


def _place_in(error: BaseException, task: str) -> str | None:
    """One line that names the place in the user's task where an error came from, if it did."""
    if not is_file_spec(task):
        return None
    path = split_file_spec(task)[0].absolute()
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if Path(frame.filename).absolute() == path:
            return (
                f"{path.name}, line {frame.lineno}: {type(error).__name__}: {error}; "
                "mend the task and run the same command again"
            )
    return None
