"""The progress of a search on stderr: a bar with the time left, a line a training that was judged.

On a terminal the bar moves; into a file or a pipe goes a line a minute. What cannot be written is
dropped: see ``streams``.
"""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from tombola.config.streams import careful
from tombola.engine.progress import Judgement, Progress
from tombola.store.graph import Node

MOVES_SECONDS, LINES_SECONDS = 0.5, 60.0
_DRAWN, _WRITTEN = "{percentage:3.0f}% |{bar}| ", "{percentage:3.0f}%  "
_COUNT = "{n_fmt}/{total_fmt} steps, {elapsed} gone, {remaining} left{postfix}"
_FIXED = 56
"""Columns of a bar of five with its counts: the rest of a terminal's are for what is under way."""


class Bar(Progress):
    """Draws a bar on stderr; nothing where nothing is left to do."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._stream = careful(sys.stderr)
        self._moves = bool(self._stream.isatty())
        self._under_way: dict[str, str] = {}

    def begin(self, steps: int, runs: int) -> None:
        """Start a bar over training steps, or make the one there is longer."""
        if self._bar is not None:
            self.expect(steps)
        elif runs:
            self._bar = tqdm(
                total=max(steps, 1),
                unit="step",
                unit_scale=True,
                file=self._stream if self._moves else _Lines(self._stream),
                dynamic_ncols=self._moves,
                position=0,
                mininterval=MOVES_SECONDS if self._moves else LINES_SECONDS,
                miniters=1,
                smoothing=0.05,
                bar_format=(_DRAWN if self._moves else _WRITTEN) + _COUNT,
            )

    def note(self, text: str) -> None:
        """A line on stderr."""
        self._say(f"note: {text}")

    def _say(self, line: str) -> None:
        if self._moves:
            tqdm.write(line, file=self._stream)
        else:  # tqdm would show the bar again
            self._stream.write(f"{line}\n")
            self._stream.flush()

    def advance(self, steps: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(steps)

    def expect(self, steps: int) -> None:
        """Make the bar longer, or shorter."""
        if self._bar is not None and steps:
            self._bar.total = max((self._bar.total or 0) + steps, self._bar.n, 1)
            if self._moves:
                self._bar.refresh()

    def started(self, node: Node) -> None:
        """Show what is under way."""
        self._under_way[node.hash] = node.label
        self._name()

    def finished(self, node: Node) -> None:
        """Show it no longer."""
        self._under_way.pop(node.hash, None)
        self._name()

    lose = finished

    def _name(self) -> None:
        """Name what is under way, cut to the terminal's width."""
        if self._bar is None:
            return
        text = f"[{len(self._under_way)} under way: {'; '.join(self._under_way.values())}]"
        columns = self._bar.format_dict["ncols"]  # None: as many as it takes
        if columns is not None and len(text) > columns - _FIXED:
            text = f"{text[: max(columns - _FIXED, 16) - 4]}...]"
        self._bar.set_postfix_str(text if self._under_way else "", refresh=False)

    def judged(self, found: Judgement) -> None:
        """A line on stderr."""
        self._say(str(found))

    def end(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._under_way.clear()
            self._name()
            self._bar.close()
            self._bar = None


class _Lines:
    """A stream that is no terminal: what a bar would draw over the same line again is a new one."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write a line, if there is anything in it."""
        if text.strip():
            self._stream.write(text.strip("\r\n").rstrip() + "\n")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
