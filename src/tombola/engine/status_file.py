"""A search under way tells other processes how far it is: ``OUT/status.json``."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from tombola.engine.progress import Judgement, Progress
from tombola.store.graph import Node
from tombola.store.runs import write_json
from tombola.store.status import STATUS

PAUSE_SECONDS = 2.0
"""It is written at most so often."""


class StatusFile(Progress):
    """Passes all on to another progress, and writes what ``store.status`` reads.

    No search ends because it cannot be written. It is gone when the search ends.
    """

    def __init__(self, inner: Progress, out: Path) -> None:
        self._inner, self._path = inner, out / STATUS
        self._steps = self._of_steps = self._runs = self._of_runs = 0
        self._under_way: dict[str, tuple[str, float]] = {}
        self._begun = time.monotonic()
        self._wrote = 0.0

    def begin(self, steps: int, runs: int) -> None:
        """The training steps and runs that are left; once more where more are added."""
        self._of_steps += steps
        self._of_runs += runs
        self._inner.begin(steps, runs)

    def note(self, text: str) -> None:
        """What is to be known."""
        self._inner.note(text)

    def _start_run(self, node: Node) -> None:
        """A run is under way."""
        self._under_way[node.hash] = node.label, time.time()
        self._inner.started(node)
        self._write()

    started = _start_run

    def lose(self, node: Node) -> None:
        """A run is not under way any more: its worker is gone."""
        self._under_way.pop(node.hash, None)
        self._inner.lose(node)
        self._write()

    def advance(self, steps: int) -> None:
        """Training steps done since the last call; below 0: lost with a worker."""
        self._steps += steps
        self._inner.advance(steps)
        self._write()

    def expect(self, steps: int) -> None:
        """So many more training steps are left than was told; below 0: fewer."""
        self._of_steps += steps
        self._inner.expect(steps)

    def _finish_run(self, node: Node) -> None:
        """A run is whole."""
        self._under_way.pop(node.hash, None)
        self._runs += 1
        self._inner.finished(node)
        self._write()

    finished = _finish_run

    def _tell_judged(self, found: Judgement) -> None:
        """A training is judged."""
        self._inner.judged(found)

    judged = _tell_judged

    def end(self) -> None:
        """All runs are done, or the search was interrupted."""
        self._inner.end()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        now = time.monotonic()
        if now - self._wrote < PAUSE_SECONDS:
            return
        self._wrote, left = now, None
        if self._steps > 0:
            left = (now - self._begun) / self._steps * max(0, self._of_steps - self._steps)
        told = [{"label": label, "since": since} for label, since in self._under_way.values()]
        with contextlib.suppress(OSError):
            write_json(
                self._path,
                {
                    "steps": {"done": self._steps, "of": self._of_steps},
                    "runs": {"done": self._runs, "of": self._of_runs},
                    "left_seconds": left,
                    "under_way": told,
                },
            )
