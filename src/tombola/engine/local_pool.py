"""Workers on this machine: each is a process of its own, and the graph decides what comes next."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tombola import errors
from tombola.engine.surroundings import own_source
from tombola.errors import DamagedError, EndedError, UserError
from tombola.runs.plan import Graph, Node
from tombola.runs.store import Store

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
"""Keeps glibc from giving big tensors back to the kernel at every step (7 to 26% of a step)."""
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


class WorkerError(Exception):
    """A fault of ours in a worker; its traceback is shown if TOMBOLA_DEBUG is set."""


@dataclass
class Work:
    """What the pool needs to know to carry out a graph."""

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


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    node: Node | None = None


@dataclass
class _State:
    todo: dict[str, Node]
    done: set[str]
    workers: list[_Worker] = field(default_factory=list)
    messages: queue.Queue[tuple[int, dict[str, Any] | None]] = field(default_factory=queue.Queue)


def run(work: Work) -> list[str]:
    """Carry out every node that is not in the store; returns the hashes of those carried out.

    UserError (of its kind), OSError or WorkerError if a run fails: what is whole stays, workers
    are gone when this returns or raises.
    """
    done = work.store.finished()
    todo = {node.hash: node for node in work.graph.missing(done)}
    state = _State(todo=todo, done=done)
    carried_out: list[str] = []
    try:
        while state.todo or any(w.node for w in state.workers):
            _hand_out(work, state)
            index, message = state.messages.get()
            node = _take_in(work, state, index, message)
            if node is not None:
                carried_out.append(node.hash)
    finally:
        _stop(state.workers)
    return carried_out


def _hand_out(work: Work, state: _State) -> None:
    """Give every idle worker a ready run, starting workers while there are fewer than asked."""
    ready = [n for n in state.todo.values() if all(p in state.done for p in n.parents.values())]
    ready.sort(key=lambda node: FIRST[node.kind])
    for node in ready:
        worker = next((w for w in state.workers if w.node is None), None)
        if worker is None:
            if len(state.workers) >= work.workers:
                return
            worker = _start(work, state)
        worker.node = state.todo.pop(node.hash)
        request = {
            "node": {
                "kind": node.kind,
                "config": dict(node.config),
                "label": node.label,
                "parents": dict(node.parents),
                "steps": node.steps,
            },
            "context": dict(work.context),
            "path": [str(path) for path in sys.path],
        }
        assert worker.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.write(json.dumps(request) + "\n")
            worker.process.stdin.flush()
        work.started(node)


def _take_in(work: Work, state: _State, index: int, message: dict[str, Any] | None) -> Node | None:
    """Act on one message of a worker; the node if it is finished."""
    worker = state.workers[index]
    if message is None:
        assert worker.process.stdin is not None
        with contextlib.suppress(OSError):
            worker.process.stdin.close()  # one that only fell silent ends now
        label = worker.node.label if worker.node else "nothing"
        raise EndedError(describe_end(worker.process.pid, worker.process.wait(), label))
    if message["event"] in ("progress", "expect"):
        (work.progress if message["event"] == "progress" else work.expect)(message["steps"])
        return None
    node = worker.node
    assert node is not None
    if message["event"] == "error":
        _raise(node, message)
    worker.node = None
    state.done.add(node.hash)
    work.finished(node)
    state.todo.update({each.hash: each for each in work.more(node)})
    return node


def _raise(node: Node, message: Mapping[str, Any]) -> None:
    kind = getattr(errors, message["kind"], None)
    if kind is DamagedError:
        raise DamagedError(message["text"], message["run"])
    if isinstance(kind, type) and issubclass(kind, UserError):
        raise kind(message["text"])
    if message["kind"] == "OSError":
        raise OSError(message["code"], f"{node.label}: {message['text']}")
    if os.environ.get("TOMBOLA_DEBUG"):
        sys.stderr.write(message.get("trace", ""))
    raise WorkerError(f"{node.label}: {message['text']}")


def _start(work: Work, state: _State) -> _Worker:
    threads = str(work.threads)
    environment = {
        **MALLOC,
        **os.environ,
        **own_source(),
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "tombola.engine.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="backslashreplace",
        env=environment,
        pass_fds=(work.lock,),
        start_new_session=False,
    )
    worker = _Worker(process)
    state.workers.append(worker)
    index = len(state.workers) - 1
    threading.Thread(target=_listen, args=(process, index, state.messages), daemon=True).start()
    return worker


def _listen(
    process: subprocess.Popen[str],
    index: int,
    messages: queue.Queue[tuple[int, dict[str, Any] | None]],
) -> None:
    """Pass on what a worker tells; what else is printed while Python starts goes to stderr."""
    assert process.stdout is not None
    try:
        for line in process.stdout:
            try:
                message = json.loads(line)
            except ValueError:
                message = None
            if isinstance(message, dict) and "event" in message:
                messages.put((index, message))
            elif line.strip() and sys.stderr is not None:
                with contextlib.suppress(OSError, ValueError):
                    sys.stderr.write(line)
    finally:
        messages.put((index, None))


def describe_end(pid: int, code: int, label: str) -> str:
    """One line on a worker that is gone: ``code`` is below 0 for the signal that ended it."""
    known = {
        -9: "was killed (SIGKILL), as systems do that are short of memory",
        -15: "was ended from outside (SIGTERM)",
        -11: "crashed in native code (SIGSEGV)",
    }
    how = known.get(code, f"was ended by signal {-code}" if code < 0 else f"ended (code {code})")
    help = {-15: "", -9: ", if memory was short with fewer --workers, or in another --out with a "
            "smaller task.batch_size"}.get(code, "; if it ends there again, report it")  # fmt: skip
    return (
        f"worker {pid} {how} during: {label}; what is finished is kept: run the same command "
        f"again to go on{help}"
    )


def _stop(workers: list[_Worker]) -> None:
    """End all workers, now: what they have under way is taken up by the next call."""
    for worker in workers:
        worker.process.kill()
    for worker in workers:
        worker.process.wait()
