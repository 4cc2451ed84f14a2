"""How does a training go on for minutes or days: its clock, its progress, its checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tombola.config.atomic import sync_path
from tombola.engine.context import Context
from tombola.errors import EndedError
from tombola.training.checkpoint import save_state
from tombola.training.starting import Start
from tombola.training.trainer import Trainer

FIRST_SECONDS, CHECKPOINT_SECONDS = 2.0, 60.0
"""When the first checkpoint is written, and, as the time doubles, how often later ones."""
MOST_SHARE = 1 / 20
"""What checkpoints may take of the time."""
PROGRESS_SECONDS = 0.5


class Loop:
    """A training's clock, progress reports and checkpoints.

    ``context`` is told of steps done, and asked whether to end; ``path`` is where checkpoints go;
    ``seconds`` were spent before, ``first`` is the step that the training began at, and ``rewound``
    whether its weights come from another training. ConfigError from within if they are changed
    before they are used.
    """

    def __init__(
        self,
        trainer: Trainer,
        context: Context,
        path: Path,
        seconds: float,
        first: int,
        *,
        rewound: bool = False,
        looked_at: bool = True,
    ) -> None:
        self.trainer, self.context, self.path = trainer, context, path
        self.seconds = seconds
        self.extra: Callable[[], dict[str, Any]] = dict
        """What else a checkpoint's manifest has."""
        self._unsynced: list[Path] = []
        self._lap = self._saved = self._told = time.perf_counter()
        self._told_step = first
        self._pause_seconds = min(FIRST_SECONDS, CHECKPOINT_SECONDS)
        advice = "initialise and load weights in the task's networks(), not in its loss()"
        self._start = Start(trainer.networks, own=not rewound, advice=advice)
        if looked_at:  # a search for masks itself puts w * z in the place of w
            self._start.watch(Start.check, trainer.optimizers.values())

    def advance(self) -> None:
        """One step, and a checkpoint where one is due; EndedError once the process is to end."""
        self.trainer.advance()
        now = time.perf_counter()
        if now - self._told > PROGRESS_SECONDS:
            self._tell(now)
        ending = self.context.ending()
        if ending or now - self._saved > self._pause_seconds:
            self._save()
        if ending:
            raise EndedError(f"asked to end, at step {self.trainer.step}")

    def lose(self, path: Path) -> None:
        """A file that was written without a wait for the disk: it may be lost with the training.

        It is waited for with the next checkpoint, after which the training would not write it
        again; one that ends before its first checkpoint is soon made anew.
        """
        self._unsynced.append(path)

    def sync(self) -> None:
        """Wait for such files, if a checkpoint was written: the training was long."""
        if self.path.exists():
            self._wait()

    def _wait(self) -> None:
        for path in self._unsynced:
            sync_path(path)
        self._unsynced.clear()

    def _save(self) -> None:
        self.close()
        begin = time.perf_counter()
        self.trainer.forget_gradients()
        self._wait()
        save_state(self.path, self.trainer, {"seconds": self.seconds, **self.extra()})
        self._saved = time.perf_counter()
        least = (self._saved - begin) / MOST_SHARE
        self._pause_seconds = max(min(2 * self._pause_seconds, CHECKPOINT_SECONDS), least)

    def close(self) -> None:
        """Bring the clock and the progress up to date."""
        self._start.close()
        now = time.perf_counter()
        self.seconds += now - self._lap
        self._lap = now
        self._tell(now)

    def _tell(self, now: float) -> None:
        self.context.progress(self.trainer.step - self._told_step)
        self._told, self._told_step = now, self.trainer.step
