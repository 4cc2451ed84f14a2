"""What becomes of a run whose worker is gone: killed, out of memory, or without its device?"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from tombola.errors import EndedError
from tombola.store.graph import Node
from tombola.store.runs import Store

TRIES = 3
ENDED = 143
"""The exit code of a worker that was asked to end (SIGTERM) and saved what it had."""
MEMORY = (
    r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory|_ALLOC_FAILED"
)
DEVICE = r"(CUDA|HIP|XPU|MPS|cuDNN|CUBLAS|NCCL)( driver)? error|unspecified launch failure"
LESS_MEMORY = (
    "if memory is short, use --workers 1, close other programs, or take a smaller batch (--set "
    "task.batch_size=..., in another --out)"
)


def what_was_lost(error: BaseException | None) -> str:
    """``memory`` or ``device`` if it was the want of these that ended a run; else empty.

    Also where that was the cause of another error. torch has no class of its own for either on all
    devices, so its text decides.
    """
    while error is not None:
        short = isinstance(error, MemoryError) or getattr(error, "errno", 0) == errno.ENOMEM
        if short or (isinstance(error, RuntimeError) and re.search(MEMORY, str(error))):
            return "memory"
        if isinstance(error, RuntimeError) and re.search(DEVICE, str(error)):
            return "device"
        error = error.__cause__
    return ""


def describe_loss(error: BaseException) -> str:
    """How this process came to be of no use any more by an error; empty if it is not."""
    lost = what_was_lost(error)
    if not lost:
        return ""
    how = {"memory": "ran out of memory", "device": "lost its device"}[lost]
    first = (str(error).splitlines() or [""])[0][:200]
    return f"worker {os.getpid()} {how} ({first})"


def describe_end(pid: int, code: int) -> str:
    """How a worker ended: ``code`` is below 0 for the signal that ended it."""
    known = {
        -9: "was killed (SIGKILL), as systems do that are short of memory",
        -15: "was ended from outside (SIGTERM)",
        ENDED: "was asked to end (SIGTERM)",
        -11: "crashed in native code (SIGSEGV)",
    }
    how = known.get(code, f"was ended by signal {-code}" if code < 0 else f"ended (code {code})")
    return f"worker {pid} {how}"


class Losses:
    """The runs that lost their workers, and how often.

    A run is begun again from its checkpoint, and given up when it has lost three workers without
    getting further: a newer checkpoint than at the last loss begins the count anew, so a long run
    may lose any number of them.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._tries: dict[str, int] = {}
        self._seen: dict[str, tuple[int, int] | None] = {}
        self.failed: dict[str, tuple[Node, str]] = {}
        """Those that were given up, and why."""

    def again(self, node: Node, why: str) -> int:
        """The number of the try that is next, from 2; 0 if the run is given up."""
        saved = self._store.checkpoint(node.hash)
        further = node.hash in self._seen and saved != self._seen[node.hash]
        tries = 1 if further else self._tries.get(node.hash, 0) + 1
        self._tries[node.hash], self._seen[node.hash] = tries, saved
        if tries < TRIES:
            return tries + 1
        self.failed[node.hash] = node, why
        self._store.fail(node.hash, {"label": node.label, "why": why, "tries": tries})
        return 0

    def check(self, waiting: int) -> None:
        """EndedError that says which runs failed, if any did; ``waiting``: for these, in vain."""
        if self.failed:
            raise EndedError("; ".join(self._sentences(waiting)))

    def _sentences(self, waiting: int) -> Iterator[str]:
        told = [f"{node.label} ({why})" for node, why in list(self.failed.values())[:3]]
        more = ", ..." if len(self.failed) > 3 else ""
        runs = "a run" if len(self.failed) == 1 else f"{len(self.failed)} runs"
        yield f"{runs} failed in {TRIES} tries: {', '.join(told)}{more}"
        if waiting:
            yield f"{waiting} more build on what failed; all others are whole"
        if any(re.search("memory", why) for _, why in self.failed.values()):
            yield LESS_MEMORY
        yield "the same command tries again"
