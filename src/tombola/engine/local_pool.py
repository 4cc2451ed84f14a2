"""Workers on this machine: each is a process of its own, and the graph decides what comes next."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tombola import errors
from tombola.engine.agenda import Agenda
from tombola.engine.losses import ENDED, TRIES, Losses, describe_end
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
GRACE_SECONDS = 6.0
"""How long workers may take to save what they have, when the search is to end."""
MOST_STILLBORN = 12
"""So many workers in a row may end before they began a run; then nothing can be carried out."""


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
    lost: Callable[[Node], None] = lambda node: None
    """Told of a run that was started and is not under way any more."""
    note: Callable[[str], None] = lambda text: None
    more: Callable[[Node], Iterable[Node]] = lambda node: ()
    """The runs beside the graph's own that have become due by one that is whole."""


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    node: Node | None = None
    begun: bool = False
    """Whether it told that it works at its run."""
    steps: int = 0
    expected: int = 0
    """What it told of its run: steps done, and by how many the run is longer than planned."""


@dataclass
class _State:
    agenda: Agenda
    losses: Losses
    workers: dict[int, _Worker] = field(default_factory=dict)
    messages: queue.Queue[tuple[int, dict[str, Any] | None]] = field(default_factory=queue.Queue)
    started: int = 0
    """How many workers were started, which is the number of the next."""
    stillborn: int = 0
    """How many in a row ended before they began a run."""


def run(work: Work) -> list[str]:
    """Carry out every node that is not in the store; returns the hashes of those carried out.

    A worker that is gone is started again, and its run with it. EndedError at the end if runs were
    given up (``losses.Losses``): all that does not build on them is whole. UserError (of its kind),
    OSError or WorkerError if a run fails by itself. What is whole stays, and workers are gone when
    this returns or raises; interrupted, they save what they have under way.
    """
    done = work.store.finished()
    state = _State(Agenda(work.graph.missing(done), done), Losses(work.store))
    carried_out: list[str] = []
    grace_seconds = 0.0
    try:
        while True:
            _hand_out(work, state)
            if not any(worker.node for worker in state.workers.values()):
                break
            index, message = state.messages.get()
            node = _take_in(work, state, index, message)
            if node is not None:
                carried_out.append(node.hash)
        state.losses.check(state.agenda.waiting)
        assert not state.agenda.waiting, "runs wait for others that are not in the graph"
    except KeyboardInterrupt:
        grace_seconds = GRACE_SECONDS
        raise
    finally:
        _stop(state.workers.values(), grace_seconds)
    return carried_out


def _hand_out(work: Work, state: _State) -> None:
    """Give every idle worker a ready run, starting workers while there are fewer than asked."""
    idle = [worker for worker in state.workers.values() if worker.node is None]
    while idle or len(state.workers) < work.workers:
        node = state.agenda.take()
        if node is None:
            return
        worker = idle.pop(0) if idle else _start(work, state)
        worker.node, worker.begun, worker.steps, worker.expected = node, False, 0, 0
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
    worker = state.workers.get(index)
    if worker is None:  # it was given up before
        return None
    if message is None:
        _lose(work, state, index, "")
        return None
    if message["event"] == "progress":
        worker.steps += message["steps"]
        work.progress(message["steps"])
        return None
    if message["event"] == "expect":
        worker.expected += message["steps"]
        work.expect(message["steps"])
        return None
    if message["event"] == "begun":
        worker.begun, state.stillborn = True, 0
        return None
    node = worker.node
    assert node is not None
    if message["event"] == "lost":
        _lose(work, state, index, message["text"])
        return None
    if message["event"] == "error":
        _raise(node, message)
    worker.node = None
    state.agenda.finish(node)
    work.finished(node)
    state.agenda.add(work.more(node))
    return node


def _lose(work: Work, state: _State, index: int, why: str) -> None:
    """Give up a worker that is gone, or of no use any more, and have its run begun again.

    ``why``: what it told itself; else how it ended is asked. EndedError if workers cannot be
    started at all.
    """
    worker = state.workers.pop(index)
    if why:
        worker.process.kill()
    assert worker.process.stdin is not None
    with contextlib.suppress(OSError):
        worker.process.stdin.close()  # one that only fell silent ends now
    code = worker.process.wait()
    why = why or describe_end(worker.process.pid, code)
    if not worker.begun:
        state.stillborn += 1
        if (code >= 0 and code != ENDED) or state.stillborn == MOST_STILLBORN:
            raise EndedError(f"{why} before it began a run; the same command goes on")
    node = worker.node
    if node is None:
        return
    work.lost(node)
    work.progress(-worker.steps)
    work.expect(-worker.expected)
    next_try = state.losses.again(node, why) if worker.begun else 1
    if next_try:
        state.agenda.give_back(node)
        count = f" (try {next_try} of {TRIES})" if worker.begun else ""
        work.note(f"{why} during: {node.label}; it is begun again{count}")
    else:
        work.note(f"{why} during: {node.label}; given up after {TRIES} tries")


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
    worker, index = _Worker(process), state.started
    state.workers[index], state.started = worker, index + 1
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


def _stop(workers: Collection[_Worker], grace_seconds: float) -> None:
    """End all workers; those that may take a while are asked to save what they have under way."""
    end = time.monotonic() + grace_seconds
    try:
        for worker in workers if grace_seconds else ():
            worker.process.terminate()
        for worker in workers if grace_seconds else ():
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, end - time.monotonic()))
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.wait()
