"""How are two ways compared on a machine that is not quiet? In turns, and with themselves as well.

A comparison is made of blocks. In each block ours runs, then the baseline, then ours again (in the
other order in every second block), so that what the machine does to one it does to the other. A
row shows the median over blocks of (ours + ours again) / 2 / baseline with its quartiles, and
beside it ours again / ours: the A/A row, which says how much of a difference is chance.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE.parent / "src"


@dataclass(frozen=True)
class Timing:
    """One measured stretch of work."""

    wall: float
    """Seconds on the clock."""
    cpu: float
    """Seconds of all processor cores together, of this process or of the child that worked."""


Side = Callable[[], Timing]


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over the blocks."""

    low: float
    middle: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) < 2:
            return Spread(values[0], values[0], values[0])
        low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
        return Spread(low, middle, high)

    def __str__(self) -> str:
        return f"{number(self.middle)} [{number(self.low)}, {number(self.high)}]"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Ours against a baseline, block by block."""

    ours: list[Timing]
    again: list[Timing]
    baseline: list[Timing]

    def ratio(self, clock: str = "wall") -> Spread:
        """Ours over the baseline; ``clock``: ``wall`` or ``cpu``."""
        return Spread.of(
            [
                (getattr(a, clock) + getattr(c, clock)) / 2 / max(getattr(b, clock), 1e-9)
                for a, b, c in zip(self.ours, self.baseline, self.again, strict=True)
            ]
        )

    def chance(self, clock: str = "wall") -> Spread:
        """Ours over ours: the A/A row."""
        return Spread.of(
            [
                getattr(c, clock) / max(getattr(a, clock), 1e-9)
                for a, c in zip(self.ours, self.again, strict=True)
            ]
        )

    def seconds(self) -> tuple[float, float]:
        """Median seconds of a stretch, ours and the baseline's."""
        both = [t.wall for t in (*self.ours, *self.again)]
        return statistics.median(both), statistics.median(t.wall for t in self.baseline)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a result: what was measured, against what, and what was asked for."""

    label: str
    value: Spread
    """Ratio, or seconds where ``unit`` says so."""
    target: float | None
    """None = shown for information."""
    unit: str = ""
    at_least: bool = False
    cpu: Spread | None = None
    """The same ratio of processor time: what a busy machine disturbs less."""
    chance: Spread | None = None
    seconds: tuple[float, float] | None = None
    verdict: bool | None = None
    """Whether the target is met where a comparison of numbers does not say it."""

    @property
    def met(self) -> bool | None:
        """Whether the median meets the target; None without one."""
        if self.verdict is not None or self.target is None:
            return self.verdict
        if self.at_least:
            return self.value.middle >= self.target
        return self.value.middle <= self.target

    def cells(self) -> list[str]:
        """The line's cells, in the order of HEADER."""
        ours, baseline = self.seconds or (None, None)
        sign = ">=" if self.at_least else "<="
        unit = f" {self.unit}" if self.unit else ""
        return [
            self.label,
            f"{self.value}{unit}",
            str(self.cpu) if self.cpu else "",
            str(self.chance) if self.chance else "",
            duration(ours),
            duration(baseline),
            f"{sign} {number(self.target)}{unit}" if self.target is not None else "",
            {True: "yes", False: "NO", None: ""}[self.met],
        ]


HEADER = ["what", "ratio", "of CPU time", "A/A", "ours", "baseline", "target", "met"]


@dataclass(frozen=True, kw_only=True)
class Section:
    """What one benchmark found: its question, its rows, and how it was done."""

    title: str
    rows: list[Row]
    notes: list[str]


def compare(ours: Side, baseline: Side, blocks: int, again: Side | None = None) -> Comparison:
    """Run blocks of ours, baseline, ours again, with the order turned in every second block."""
    again = again or ours
    found: dict[str, list[Timing]] = {"ours": [], "baseline": [], "again": []}
    order = [("ours", ours), ("baseline", baseline), ("again", again)]
    for block in range(blocks):
        for name, side in order if block % 2 == 0 else reversed(order):
            found[name].append(side())
    return Comparison(**found)


def row(label: str, found: Comparison, target: float | None, repeats: int = 1) -> Row:
    """A row of the ratio of two ways; ``repeats``: how often a stretch did what is named."""
    ours, baseline = found.seconds()
    return Row(
        label=label,
        value=found.ratio(),
        target=target,
        cpu=found.ratio("cpu"),
        chance=found.chance(),
        seconds=(ours / repeats, baseline / repeats),
    )


def timed(work: Callable[[], object], repeats: int = 1) -> Side:
    """A side of this process: so many calls of ``work`` in a stretch, after one to warm up."""
    work()

    def side() -> Timing:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            work()
        return Timing(time.perf_counter() - wall, time.process_time() - cpu)

    return side


class Child:
    """A process that holds one side of a comparison: a line in is a stretch, a line out its time.

    The first line out says that it has warmed up.

    For sides that need surroundings of their own: threads, or settings of the allocator, which a
    process reads once at its start. While one child works the others wait for their line.
    """

    def __init__(
        self, script: str, setting: Mapping[str, object], environment: Mapping[str, str]
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / script), json.dumps(setting)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**plain_environment(), **environment},
        )

    def ask(self, steps: int) -> None:
        """Begin a stretch of so many steps; ``answer`` waits for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()

    def answer(self) -> Timing:
        """The time of the stretch that was asked for."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a benchmark's process ended with code {self._process.wait()}")
        return Timing(**json.loads(line))

    def run(self, steps: int) -> Timing:
        """One stretch from beginning to end."""
        self.ask(steps)
        return self.answer()

    def close(self) -> None:
        """End the process and wait for it."""
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        self._process.wait()


@contextlib.contextmanager
def children(
    script: str, *settings: tuple[Mapping[str, object], Mapping[str, str]]
) -> Iterator[list[Child]]:
    """Children by (setting, environment), ended whatever happens."""
    started: list[Child] = []
    try:
        for setting, environment in settings:
            started.append(Child(script, setting, environment))
        for child in started:
            child.answer()
        yield started
    finally:
        for child in started:
            child.close()


def serve(step: Callable[[], object], warm_up: int = 3) -> None:
    """A child's side of the conversation: warm up, then answer every line with its time."""
    for _ in range(warm_up):
        step()
    print(json.dumps({"wall": 0.0, "cpu": 0.0}), flush=True)
    for line in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            step()
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps(spent), flush=True)


def plain_environment() -> dict[str, str]:
    """The caller's surroundings without what a benchmark sets, and with this source tree first."""
    ours = ("MALLOC_", "OMP_", "MKL_", "OPENBLAS_", "TOMBOLA_")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    paths = [str(SOURCE), kept.get("PYTHONPATH", "")]
    return {**kept, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def threads(count: int) -> dict[str, str]:
    """Surroundings that hold a process to so many threads."""
    return {f"{library}_NUM_THREADS": str(count) for library in ("OMP", "MKL", "OPENBLAS")}


def number(value: float | None) -> str:
    """Three figures, and no more than the number needs."""
    if value is None:
        return ""
    return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them."""
    if seconds is None:
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds * 1e9)} ns"
