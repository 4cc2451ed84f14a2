"""Workers on this machine, each a process of its own; those that die are started again."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tombola import errors
from tombola.config.surroundings import own_source
from tombola.engine.executors.losses import ENDED, describe_end
from tombola.engine.executors.protocol import End, Work
from tombola.errors import DamagedError, EndedError, UserError
from tombola.store.graph import Node

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
class _Worker:
    process: subprocess.Popen[str]
    node: Node | None = None
    begun: bool = False
    """Whether it told that it works at its run."""
    steps: int = 0
    expected: int = 0
    """What it told of its run: steps done, and by how many the run is longer than planned."""


class LocalPool:
    """As many workers as asked, started when there is something for them to do."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._workers: dict[int, _Worker] = {}
        self._messages: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()
        self._started = 0
        """How many workers were started, which is the number of the next."""
        self._stillborn = 0
        """How many in a row ended before they began a run."""

    @property
    def free(self) -> bool:
        """Whether a worker is idle, or one more may be started."""
        idle = any(worker.node is None for worker in self._workers.values())
        return idle or len(self._workers) < self._work.workers

    def submit(self, node: Node) -> None:
        """Give a run to a worker that is idle, or to a new one."""
        idle = (worker for worker in self._workers.values() if worker.node is None)
        worker = next(idle, None) or self._start()
        worker.node, worker.begun, worker.steps, worker.expected = node, False, 0, 0
        request = {
            "node": {
                "kind": node.kind,
                "config": dict(node.config),
                "label": node.label,
                "parents": dict(node.parents),
                "steps": node.steps,
            },
            "context": dict(self._work.context),
            "path": [str(path) for path in sys.path],
        }
        assert worker.process.stdin is not None
        # A worker that is gone already is told of by its message, not here.
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.write(json.dumps(request) + "\n")
            worker.process.stdin.flush()

    def wait(self) -> End:
        """Act on what workers tell until a run is whole, or has lost its worker.

        UserError (of its kind), OSError or WorkerError if a run fails by itself; EndedError if
        workers cannot be started at all.
        """
        while True:
            index, message = self._messages.get()
            end = self._take_in(index, message)
            if end is not None:
                return end

    def cancel(self, *, grace: bool) -> None:
        """End all workers; with grace they are asked to save what they have under way."""
        end = time.monotonic() + GRACE_SECONDS
        workers = self._workers.values()
        try:
            for worker in workers if grace else ():
                worker.process.terminate()
            for worker in workers if grace else ():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    worker.process.wait(max(0.0, end - time.monotonic()))
        finally:
            for worker in workers:
                worker.process.kill()
            for worker in workers:
                worker.process.wait()

    def _take_in(self, index: int, message: dict[str, Any] | None) -> End | None:
        """Act on one message of a worker; the end of its run if it is one."""
        worker = self._workers.get(index)
        if worker is None:  # it was given up before
            return None
        if message is None:
            return self._lose(index, "")
        event, work = message["event"], self._work
        if event == "progress":
            worker.steps += message["steps"]
            work.progress(message["steps"])
            return None
        if event == "expect":
            worker.expected += message["steps"]
            work.expect(message["steps"])
            return None
        if event == "begun":
            worker.begun, self._stillborn = True, 0
            return None
        if event == "lost":
            return self._lose(index, message["text"])
        node = worker.node
        assert node is not None
        if event == "error":
            _raise(node, message)
        worker.node = None
        return End(node)

    def _lose(self, index: int, why: str) -> End | None:
        """Give up a worker that is gone, or of no use any more.

        ``why``: what it told itself; else how it ended is asked. A run that it had not begun goes
        to the next worker.
        """
        worker = self._workers.pop(index)
        if why:
            worker.process.kill()
        assert worker.process.stdin is not None
        with contextlib.suppress(OSError):
            worker.process.stdin.close()  # one that only fell silent ends now
        code = worker.process.wait()
        why = why or describe_end(worker.process.pid, code)
        node, work = worker.node, self._work
        if worker.begun:
            if node is None:
                return None
            work.progress(-worker.steps)
            work.expect(-worker.expected)
            return End(node, lost=why)
        self._stillborn += 1
        if (code >= 0 and code != ENDED) or self._stillborn == MOST_STILLBORN:
            raise EndedError(f"{why} before it began a run; the same command goes on")
        if node is not None:
            work.note(f"{why} before it began: {node.label}; another takes it")
            self.submit(node)
        return None

    def _start(self) -> _Worker:
        threads = str(self._work.threads)
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
            [sys.executable, "-P", "-m", "tombola.engine.executors.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            env=environment,
            pass_fds=(self._work.lock,),
            start_new_session=False,
        )
        worker, index = _Worker(process), self._started
        self._workers[index], self._started = worker, index + 1
        threading.Thread(target=_listen, args=(process, index, self._messages), daemon=True).start()
        return worker


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
