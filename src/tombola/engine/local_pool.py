"""Workers on this machine: each is a process of its own, and the graph decides what comes next."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tombola import errors
from tombola.engine.executor import Work
from tombola.engine.surroundings import own_source
from tombola.errors import DamagedError, EndedError, UserError
from tombola.runs.plan import Node

MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
"""Keeps glibc from giving big tensors back to the kernel at every step (7 to 26% of a step)."""


class WorkerError(Exception):
    """A fault of ours in a worker; its traceback is shown if TOMBOLA_DEBUG is set."""


@dataclass
class _Worker:
    process: subprocess.Popen[str]
    node: Node | None = None


class LocalPool:
    """As many workers as asked, started when there is something for them to do."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._workers: list[_Worker] = []
        self._messages: queue.Queue[tuple[int, dict[str, Any] | None]] = queue.Queue()

    @property
    def free(self) -> bool:
        """Whether a worker is idle, or one more may be started."""
        idle = any(worker.node is None for worker in self._workers)
        return idle or len(self._workers) < self._work.workers

    def submit(self, node: Node) -> None:
        """Give a run to a worker that is idle, or to a new one."""
        worker = next((w for w in self._workers if w.node is None), None) or self._start()
        worker.node = node
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
        with contextlib.suppress(BrokenPipeError):
            worker.process.stdin.write(json.dumps(request) + "\n")
            worker.process.stdin.flush()

    def wait(self) -> Node:
        """Act on what workers tell until one tells that its run is whole.

        UserError (of its kind), OSError or WorkerError if a run fails or a worker is gone.
        """
        while True:
            index, message = self._messages.get()
            worker = self._workers[index]
            node = worker.node
            if message is None:
                assert worker.process.stdin is not None
                with contextlib.suppress(OSError):
                    worker.process.stdin.close()  # one that only fell silent ends now
                label = node.label if node else "nothing"
                raise EndedError(describe_end(worker.process.pid, worker.process.wait(), label))
            if message["event"] in ("progress", "expect"):
                work = self._work
                (work.progress if message["event"] == "progress" else work.expect)(message["steps"])
                continue
            assert node is not None
            if message["event"] == "error":
                _raise(node, message)
            worker.node = None
            return node

    def cancel(self) -> None:
        """End all workers, now: what they have under way is taken up by the next call."""
        for worker in self._workers:
            worker.process.kill()
        for worker in self._workers:
            worker.process.wait()

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
            [sys.executable, "-P", "-m", "tombola.engine.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            errors="backslashreplace",
            env=environment,
            pass_fds=(self._work.lock,),
            start_new_session=False,
        )
        worker = _Worker(process)
        self._workers.append(worker)
        index = len(self._workers) - 1
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
