"""What one search is: frozen sections with their defaults, read from flags, TOML and --set.

Nothing here imports torch, so that every name and number is checked before anything heavy starts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tombola.config.learned import LEARNED, GatesSection, GradualSection
from tombola.config.limits import distinct, integer, number, one_of, some
from tombola.config.registry import DATA, EXECUTORS, FEATURES, TASKS, is_file_spec
from tombola.config.search import (
    MOST,
    PruneSection,
    RewindSection,
    SearchSection,
)
from tombola.config.values import check_finite, coerce, parse_margin
from tombola.errors import ConfigError, unknown

DOWNSTREAM = ("auto", "judge", "resnet18", "none")
PRESETS = ("quick", "paper", "shared")
SHARED = ("dcgan", "vae")
"""Registered tasks with the preset shared."""
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class TaskSection:
    """``task.*``: which model; every other key is an option of the task itself."""

    name: str = "linear-ae"
    """A registered name or path/to/file.py:ClassName."""
    preset: str = "quick"
    """quick (a laptop's size), paper, or shared: decoder and generator are one network."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the task, such as width or learning_rate."""

    def __post_init__(self) -> None:
        TASKS.check(self.name)
        one_of("preset", self.preset, PRESETS)
        if self.preset == "shared" and self.name not in SHARED and not is_file_spec(self.name):
            raise ConfigError(
                f"task {self.name} has no preset 'shared', which makes decoder and generator one "
                f"network; the tasks that have it: {', '.join(SHARED)}"
            )


@dataclass(frozen=True, kw_only=True)
class DataSection:
    """``data.*``: which images."""

    name: str = "digits"
    """A registered name, folder:PATH or path/to/file.py:NAME."""
    skip_broken: bool = False
    """Leave broken images of a folder out instead of stopping."""
    white: int = 0
    """The value of white in image files; 0 = the largest of their type, 255 or 65535."""

    def __post_init__(self) -> None:
        integer("data.white", self.white, low=0, high=65535)
        if not self.name.startswith(("folder:", "tensor:")):
            if not is_file_spec(self.name) and self.name not in DATA.names():
                hint = "or path/to/file.py:NAME"
                if self.name and Path(self.name).is_dir():
                    hint = f"for the images in that folder give folder:{self.name}"
                raise unknown("data source", self.name, [*DATA.names(), "folder:PATH"], hint)
            DATA.check(self.name)


@dataclass(frozen=True, kw_only=True)
class TrainSection:
    """``train.*``: how long and in which arithmetic."""

    steps: int = 0
    """Training length in steps; 0 = by epochs, or as the preset says."""
    epochs: float = 0.0
    """Training length in epochs; 0 = by steps, or as the preset says."""
    precision: tuple[str, ...] = ("fp32",)
    """fp32, bf16, or fp16 on CUDA; several values are arms."""
    ema: float = 0.0
    """Decay of the averaged weights that are judged; 0 = none are kept."""

    def __post_init__(self) -> None:
        integer("train.steps", self.steps, low=0)
        number("train.epochs", self.epochs, low=0.0)
        if self.steps and self.epochs:
            raise ConfigError(
                f"both steps ({self.steps}) and epochs ({self.epochs:g}) are given; "
                "give --steps or --epochs, not both"
            )
        some("train.precision", self.precision)
        for value in self.precision:
            one_of("precision", value, PRECISIONS)
        distinct("precision", self.precision)
        number("train.ema", self.ema, low=0.0, high=1.0, open_high=True)


MOST_FAKES = 1_000_000
"""Their latents and features are held together."""


@dataclass(frozen=True, kw_only=True)
class JudgeSection:
    """``judge.*``: how trained networks are judged."""

    samples: int = 0
    """At most this many real images; 0 = 50,000, or fewer as the task says."""
    fakes: int = 0
    """How many samples are compared with them; 0 = as many where ``samples`` is given or an image
    is dear to make, else five times as many, up to 50,000."""
    validation_samples: int = 2000
    """At most this many validation images, and as many samples, judge a training's course; 0 = it
    is not judged."""
    sampling_seeds: int = 3
    """How often one dense network is sampled to show the judge's own noise: 3 times at least."""
    downstream: str = "auto"
    """Which classifier says what images are of: auto (one at hand), judge, resnet18 or none."""
    steps: int = 0
    """Training length of a data set's own classifier; 0 = as its recipe says, at least 1,500."""
    features: str = ""
    """A feature network of one's own that compares samples, path/to/file.py:NAME; empty = none."""

    def __post_init__(self) -> None:
        if self.features:
            FEATURES.check(self.features)
        integer("judge.samples", self.samples, low=2 if self.samples else 0)
        integer("judge.fakes", self.fakes, low=2 if self.fakes else 0, high=MOST_FAKES)
        integer("judge.validation_samples", self.validation_samples, low=0)
        if self.validation_samples == 1:
            raise ConfigError("judge.validation_samples got 1; it takes 0, or 2 and more")
        integer("judge.sampling_seeds", self.sampling_seeds, low=1)
        integer("judge.steps", self.steps, low=0)
        one_of("judge.downstream", self.downstream, DOWNSTREAM)


@dataclass(frozen=True, kw_only=True)
class VerdictSection:
    """``verdict.*``: margins by kind of metric (reconstruction_error, elbo, fcd, ...)."""

    margins: Mapping[str, float] = field(default_factory=dict)
    """A share of the dense mean (0.05 or 5%), or absolute where the metric's margin is absolute."""

    def __post_init__(self) -> None:
        margins = {name: parse_margin(name, value) for name, value in self.margins.items()}
        object.__setattr__(self, "margins", margins)


@dataclass(frozen=True, kw_only=True)
class RunSection:
    """``run.*``: where it runs; of these only device type and threads make a run another run."""

    workers: int = 0
    """Processes; 0 = as many as there are independent chains, up to the cores."""
    threads: int = 0
    """Threads of each worker; 0 = cores divided by workers."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:i."""
    keep: str = "final"
    """final, or all: every trained network and every state that was judged."""
    executor: str = "local"
    """Where runs are carried out: local (workers), serial (this process), or path/file.py:NAME."""

    def __post_init__(self) -> None:
        EXECUTORS.check(self.executor)
        integer("run.workers", self.workers, low=0, high=MOST)
        integer("run.threads", self.threads, low=0, high=MOST)
        one_of("keep", self.keep, ("final", "all"))
        if not re.fullmatch("auto|cpu|cuda(:[0-9]{1,3})?", self.device):
            raise ConfigError(f"unknown device {self.device!r}; choose auto, cpu, cuda or cuda:0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """One search, whole."""

    task: TaskSection = field(default_factory=TaskSection)
    data: DataSection = field(default_factory=DataSection)
    train: TrainSection = field(default_factory=TrainSection)
    prune: PruneSection = field(default_factory=PruneSection)
    search: SearchSection = field(default_factory=SearchSection)
    rewind: RewindSection = field(default_factory=RewindSection)
    gates: GatesSection = field(default_factory=GatesSection)
    gradual: GradualSection = field(default_factory=GradualSection)
    judge: JudgeSection = field(default_factory=JudgeSection)
    verdict: VerdictSection = field(default_factory=VerdictSection)
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        if self.rewind.schedule == "restart" and self.search.optimizer_at_rewind == "restore":
            raise ConfigError(
                "rewind.schedule=restart begins with a fresh optimizer, but "
                "search.optimizer_at_rewind is 'restore'; leave one of the two out"
            )

    def tables(self) -> dict[str, dict[str, Any]]:
        """The config as plain tables, as ``--config`` reads them and ``config.json`` keeps them.

        The section of a method that is not searched with is left out.
        """
        tables: dict[str, dict[str, Any]] = {}
        for section in dataclasses.fields(self):
            if section.name in LEARNED and section.name not in self.search.method:
                continue
            values = getattr(self, section.name)
            table = {f.name: _plain(getattr(values, f.name)) for f in dataclasses.fields(values)}
            table.update(table.pop(_OPEN.get(section.name, ""), {}))
            tables[section.name] = table
        return tables


_SECTIONS: dict[str, type[Any]] = {
    "task": TaskSection,
    "data": DataSection,
    "train": TrainSection,
    "prune": PruneSection,
    "search": SearchSection,
    "rewind": RewindSection,
    "gates": GatesSection,
    "gradual": GradualSection,
    "judge": JudgeSection,
    "verdict": VerdictSection,
    "run": RunSection,
}
_OPEN = {"task": "options", "verdict": "margins"}
"""Sections that take keys beyond their fields, and the field that gathers them."""


def build(tables: Mapping[str, Mapping[str, Any]]) -> Config:
    """Tables of values (from TOML, flags or ``--set``) -> a checked Config; ConfigError if not."""
    sections: dict[str, Any] = {}
    for name, table in tables.items():
        if name not in _SECTIONS:
            raise unknown("config section", name, _SECTIONS)
        if not isinstance(table, Mapping):
            raise ConfigError(f"config section {name!r} got {table!r}; it takes key = value lines")
        sections[name] = _section(name, table)
        check_finite(name, table)
    return Config(**sections)


def _section(name: str, table: Mapping[str, Any]) -> Any:
    kind = _SECTIONS[name]
    fields = {f.name: f for f in dataclasses.fields(kind)}
    open_field = _OPEN.get(name)
    values: dict[str, Any] = {}
    rest: dict[str, Any] = {}
    for key, value in table.items():
        if key in fields and key != open_field:
            values[key] = coerce(f"{name}.{key}", value, str(fields[key].type))
        elif open_field is not None:
            rest[key] = value
        else:
            raise unknown(f"key of section [{name}]", key, fields)
    if open_field is not None:
        values[open_field] = rest
    return kind(**values)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value
