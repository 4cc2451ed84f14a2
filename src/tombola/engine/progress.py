"""What is told of a search while it is under way, for a bar, a log or a caller of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tombola.metrics.rules import by_importance, metric_words, rule_of
from tombola.store.graph import Node

Record = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What came of a training, as soon as it is judged."""

    label: str
    """Which training: ``ticket of level 3, seed 1``."""
    width: int = 0
    """Length of the longest label of the search, for lines one below the other."""
    metric: str | None = None
    """The metric that decides, as in results.csv; None where there is no value."""
    value: float | None = None
    dense: float | None = None
    """The same of the dense training of its seed, where that is another one and known."""
    diverged_step: int | None = None

    def __str__(self) -> str:
        """``ticket of level 3, seed 1: reconstruction error 0.0312 (dense 0.0298)``."""
        return f"{self.label + ':':<{self.width + 1}} {self._end()}"

    def _end(self) -> str:
        if self.diverged_step is not None:
            return f"diverged at step {self.diverged_step:,}"
        if self.metric is None or self.value is None:
            return "not run, as its chain had diverged"
        beside = "" if self.dense is None else f" (dense {_number(self.dense)})"
        return f"{metric_words(self.metric)} {_number(self.value)}{beside}"


def _number(value: float) -> str:
    """Four significant digits, zeros too: one below the other they are as long."""
    return f"{value:#.4g}".removesuffix(".")


def judgement(label: str, width: int, record: Record, dense: Record | None) -> Judgement:
    """What the record of a judgement says of a training, beside that of its dense one."""
    values = record.get("values", {})
    judged = [metric for metric in values if rule_of(metric)]
    metric = min(judged or values, key=by_importance, default=None)
    return Judgement(
        label=label,
        width=width,
        metric=metric,
        value=values.get(metric),
        dense=(dense or {}).get("values", {}).get(metric),
        diverged_step=record.get("diverged"),
    )


class Progress:
    """What is told while runs are carried out; the command line draws a bar from it."""

    def begin(self, steps: int, runs: int) -> None:
        """The training steps and runs that are left; once more where more are added."""

    def note(self, text: str) -> None:
        """What is to be known before the runs begin."""

    def started(self, node: Node) -> None:
        """A run is under way."""

    def lose(self, node: Node) -> None:
        """A run is not under way any more: its worker is gone."""

    def advance(self, steps: int) -> None:
        """Training steps done since the last call; below 0: lost with a worker."""

    def expect(self, steps: int) -> None:
        """So many more training steps are left than was told; below 0: fewer."""

    def finished(self, node: Node) -> None:
        """A run is whole."""

    def judged(self, found: Judgement) -> None:
        """A training is judged; ``str(found)`` is a line on it."""

    def end(self) -> None:
        """All runs are done, or the search was interrupted."""
