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
from typing import Any, Protocol

from tombola.errors import ConfigError, UserError
from tombola.registry import is_file_spec, split_file_spec
from tombola.runs.plan import Graph, Node
from tombola.runs.store import Store

FIRST = {
    "import": 0,
    "rewind": 1,
    "scores": 2,
    "mask": 2,
    "cut": 2,
    "thin": 2,
    "transfer": 2,
    "overlap": 3,
    "evaluate": 3,
    "floor": 3,
    "trivial": 3,
    "judge": 4,
    "search": 5,
    "watch": 5,
    "train": 5,
}
"""Which kind of ready run goes first: the short ones, which others wait for."""


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
    more: Callable[[Node], Iterable[Node]] = lambda node: ()
    """The runs beside the graph's own that have become due by one that is whole."""


class Executor(Protocol):
    """Where runs are carried out."""

    @property
    def free(self) -> bool:
        """Whether another run can be submitted now."""
        ...

    def submit(self, node: Node) -> None:
        """Begin a run whose parents are whole."""
        ...

    def wait(self) -> Node:
        """Wait for the next run that is whole, telling ``Work.progress`` and ``expect`` meanwhile.

        UserError (of its kind) or OSError if a run fails.
        """
        ...

    def cancel(self) -> None:
        """End all that is under way, now: the next call takes it up."""
        ...


def carry_out(work: Work, executor: Executor) -> list[str]:
    """Carry out every node that is not in the store; returns the hashes of those carried out.

    Raises what a run raises: what is whole stays, nothing is under way when this returns or raises.
    """
    done = work.store.finished()
    todo = {node.hash: node for node in work.graph.missing(done)}
    under_way: set[str] = set()
    carried_out: list[str] = []
    try:
        while todo or under_way:
            ready = [n for n in todo.values() if all(p in done for p in n.parents.values())]
            for node in sorted(ready, key=lambda node: FIRST[node.kind]):
                if not executor.free:
                    break
                under_way.add(node.hash)
                executor.submit(todo.pop(node.hash))
                work.started(node)
            node = executor.wait()
            under_way.remove(node.hash)
            done.add(node.hash)
            carried_out.append(node.hash)
            work.finished(node)
            todo.update({each.hash: each for each in work.more(node)})
    finally:
        executor.cancel()
    return carried_out


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

    def wait(self) -> Node:
        """Carry out the run that was submitted."""
        from tombola.engine.context import open_context
        from tombola.engine.stages import execute
        from tombola.runtime import generators_as_found

        node, work = self._node, self._work
        assert node is not None, "nothing was submitted"
        with generators_as_found(), blame_users_file(work.context), flush_denormals():
            execute(node, open_context(work.context, work.progress, work.expect))
        self._node = None
        return node

    def cancel(self) -> None:
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
        if blame is None:
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
