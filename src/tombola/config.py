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

from tombola.errors import ConfigError, unknown
from tombola.learned_config import LEARNED, GatesSection, GradualSection
from tombola.limits import ascending, distinct, integer, number, one_of, place_of_controls, some
from tombola.registry import CRITERIA, DATA, FEATURES, TASKS, is_file_spec
from tombola.values import (
    check_finite,
    coerce,
    decimal_fraction,
    parse_margin,
    parse_rewind,
    split_networks,
)

AT_INIT = ("snip", "grasp", "synflow", "random")
"""Methods that prune before any training."""
METHODS = ("imp", "one-shot", "early-bird", *AT_INIT, *LEARNED)
CONTROLS = (
    "reinit", "shuffle", "erk", "reinit-chain", "thin-parameters", "dense-long",
    "thin-flops", "random-channels",
)  # fmt: skip
CHANNEL_CONTROLS = ("random-channels", "thin-flops", "thin-parameters")
"""What the smaller network of an early-bird ticket is held against."""
DOWNSTREAM = ("auto", "judge", "resnet18", "none")
PRESETS = ("quick", "paper", "shared")
SHARED = ("dcgan", "vae")
"""Registered tasks with the preset shared."""
PRECISIONS = ("fp32", "bf16", "fp16")
LEAST_DRAW_EPOCHS = 0.25
"""Channel masks that are drawn at shorter intervals agree whatever they are worth."""
MOST = 1000
"""More seeds, rounds, workers or threads than this are a slip of the hand."""


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


@dataclass(frozen=True, kw_only=True)
class PruneSection:
    """``prune.*``: which weights may go."""

    networks: tuple[str, ...] = ("all",)
    """One set per arm: all, or names of networks joined by commas."""
    exclude: tuple[str, ...] = ()
    """Layers that are never pruned: first, last (of each network) or parameter names."""
    criterion: str = "magnitude"
    """A registered criterion or path/to/file.py:NAME; of imp and one-shot."""
    score_batches: int = 10
    """Batches whose losses snip and grasp average."""
    score_draws: int = 1
    """Draws of latents (or of whatever else a loss draws) for each of those batches."""
    compress: tuple[str, ...] = ("0.5",)
    """Share of the channels that early-bird removes, a decimal in (0, 1); several are arms."""
    settle: str = "pooled"
    """Channels of all pruned networks compete (pooled), or those of each network (apart)."""
    rule: str = "paper"
    """Masks have settled when they differ by less than delta: paper, or corrected for chance."""
    delta: float = 0.1
    """Largest distance between the newest mask and the four before it."""
    draw_epochs: float = 0.25
    """Epochs between two masks, at least 0.25."""
    scale_l1: float = 0.0
    """Strength of an L1 pressure on the normalisation scales while masks are sought."""
    floor: int = 1
    """Channels that every layer keeps at least."""
    round_to: int = 1
    """Channels of every layer are rounded to a multiple of this when it is cut."""

    def __post_init__(self) -> None:
        CRITERIA.check(self.criterion)
        if not self.networks or not all(self.networks):
            raise ConfigError("prune.networks is empty; give all or names of networks")
        distinct("prune", self.networks, lambda _, text: frozenset(split_networks(text)))
        for text in self.networks:
            distinct("prune", split_networks(text))
        integer("prune.score_batches", self.score_batches, low=1, high=MOST)
        integer("prune.score_draws", self.score_draws, low=1, high=MOST)
        some("prune.compress", self.compress)
        distinct("compress", self.compress, decimal_fraction)
        one_of("prune.settle", self.settle, ("pooled", "apart"))
        one_of("prune.rule", self.rule, ("paper", "corrected"))
        number("prune.delta", self.delta, low=0.0, high=1.0, open_low=True)
        number("prune.draw_epochs", self.draw_epochs, low=LEAST_DRAW_EPOCHS)
        number("prune.scale_l1", self.scale_l1, low=0.0)
        integer("prune.floor", self.floor, low=1)
        integer("prune.round_to", self.round_to, low=1)


@dataclass(frozen=True, kw_only=True)
class SearchSection:
    """``search.*``: how tickets are sought and against what they are held."""

    method: tuple[str, ...] = ("imp",)
    """imp, one-shot, early-bird, snip, grasp, synflow, random, gates or gradual; several values
    are arms."""
    rounds: int = 20
    """Levels of sparsity."""
    rate: str = "0.2"
    """Share of the remaining weights removed each round, a decimal in (0, 1)."""
    sparsity: tuple[str, ...] = ()
    """Levels given outright instead of by rounds and rate: decimals in (0, 1), ascending."""
    rewind: tuple[str, ...] = ("10it",)
    """Where the weights go back to: 500it, 2ep, 5% of the steps, 0it; several values are arms."""
    optimizer_at_rewind: str = "fresh"
    """fresh, or restore the optimizer's state at the rewind step."""
    controls: tuple[str, ...] = ("reinit", "shuffle")
    """reinit, shuffle, erk, reinit-chain, thin-parameters, dense-long, thin-flops,
    random-channels; empty = none. An early-bird arm takes its own: see ``controls_of``."""
    controls_at: str = "all"
    """Controls at all levels, or at the frontier alone: the last level that matches dense."""
    draws: int = 0
    """Draws of each control at the frontier; 0 = 3 below five seeds, else 2."""
    stop_after: int = -1
    """An arm stops after so many levels in a row that are worse than dense in every seed; 0 =
    never; -1 = 2, or as the folder was begun."""
    seeds: int = 3
    """Training seeds 0..seeds-1."""

    def __post_init__(self) -> None:
        some("search.method", self.method)
        some("search.rewind", self.rewind)
        for value in self.method:
            one_of("method", value, METHODS)
        distinct("method", self.method)
        for value in self.controls:
            one_of("control", value, CONTROLS)
        distinct("controls", self.controls)
        if "reinit-chain" in self.controls and {*self.method} & {*AT_INIT, *LEARNED}:
            raise ConfigError(
                "control reinit-chain takes its masks from trained networks, but a method of "
                f"{','.join(self.method)} does not; leave that control out"
            )
        strange = [c for c in self.controls if c in ("thin-flops", "random-channels")]
        if strange and "early-bird" not in self.method:
            raise ConfigError(
                f"control {strange[0]} is held against early-bird's smaller networks; add "
                "early-bird to the methods, or leave that control out"
            )
        integer("search.rounds", self.rounds, low=1, high=MOST)
        integer("search.seeds", self.seeds, low=1, high=MOST)
        decimal_fraction("rate", self.rate)
        ascending("sparsity", self.sparsity, decimal_fraction)
        for value in self.rewind:
            parse_rewind(value)
        distinct("rewind", self.rewind)
        one_of("optimizer_at_rewind", self.optimizer_at_rewind, ("fresh", "restore"))
        integer("search.stop_after", self.stop_after, low=-1, high=MOST)
        integer("search.draws", self.draws, low=0, high=MOST)
        place_of_controls(self.controls_at, self.draws, self.controls)

    @property
    def worse_levels(self) -> int:
        """How many levels in a row must be worse in every seed for an arm to stop; 0 = never."""
        return 2 if self.stop_after < 0 else self.stop_after

    @property
    def control_draws(self) -> tuple[int | None, ...]:
        """The draws of a control at a level: one without a number, at the frontier 1, 2, ..."""
        if self.controls_at == "all":
            return (None,)
        return tuple(range(1, 1 + (self.draws or (3 if self.seeds < 5 else 2))))

    def controls_of(self, method: str) -> tuple[str, ...]:
        """The controls of a method's arms, of those asked for.

        Whole channels have other opponents than single weights: where controls are asked for, but
        none that fits early-bird, its arms get all of theirs.
        """
        fitting = tuple(c for c in self.controls if c in CHANNEL_CONTROLS)
        if method == "early-bird":
            return fitting or (CHANNEL_CONTROLS if self.controls else ())
        return tuple(c for c in self.controls if c not in ("random-channels", "thin-flops"))


@dataclass(frozen=True, kw_only=True)
class RewindSection:
    """``rewind.*``: how a training goes on after its weights were rewound."""

    schedule: str = "continue"
    """continue: from the rewind step to N; restart: N steps from step 0, all but weights fresh."""

    def __post_init__(self) -> None:
        one_of("rewind.schedule", self.schedule, ("continue", "restart"))


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

    def __post_init__(self) -> None:
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
