"""The progress bar of a search: training steps done, and a live estimate of the time left."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from tombola.engine.search import Progress
from tombola.runs.plan import Node


class Bar(Progress):
    """Draws a bar on stderr; nothing where nothing is left to do."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def begin(self, steps: int, runs: int) -> None:
        """Start a bar over training steps."""
        if runs:
            self._bar = tqdm(
                total=max(steps, 1),
                unit="step",
                unit_scale=True,
                file=sys.stderr,
                dynamic_ncols=True,
                mininterval=0.5,
                smoothing=0.05,
                bar_format="{percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} steps, "
                "{elapsed} gone, {remaining} left{postfix}",
            )

    def note(self, text: str) -> None:
        """A line on stderr."""
        tqdm.write(f"note: {text}", file=sys.stderr)

    def advance(self, steps: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(steps)

    def expect(self, steps: int) -> None:
        """Make the bar longer, or shorter."""
        if self._bar is not None and steps:
            self._bar.total = max((self._bar.total or 0) + steps, self._bar.n, 1)
            self._bar.refresh()

    def finished(self, node: Node) -> None:
        """Show what was finished last."""
        if self._bar is not None and node.kind == "train":
            self._bar.set_postfix_str(node.label, refresh=False)

    def end(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
