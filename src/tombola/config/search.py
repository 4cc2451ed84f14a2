"""How are tickets sought? The sections ``prune``, ``search`` and ``rewind`` of a config."""

from __future__ import annotations

from dataclasses import dataclass

from tombola.config.learned import LEARNED
from tombola.config.limits import (
    ascending,
    distinct,
    integer,
    number,
    one_of,
    place_of_controls,
    some,
)
from tombola.config.registry import CRITERIA
from tombola.config.values import decimal_fraction, parse_rewind, split_networks
from tombola.errors import ConfigError

AT_INIT = ("snip", "grasp", "synflow", "random")
"""Methods that prune before any training."""
METHODS = ("imp", "one-shot", "early-bird", *AT_INIT, *LEARNED)
CONTROLS = (
    "reinit", "shuffle", "erk", "reinit-chain", "thin-parameters", "dense-long",
    "thin-flops", "random-channels",
)  # fmt: skip
CHANNEL_CONTROLS = ("random-channels", "thin-flops", "thin-parameters")
"""What the smaller network of an early-bird ticket is held against."""
LEAST_DRAW_EPOCHS = 0.25
"""Channel masks that are drawn at shorter intervals agree whatever they are worth."""
MOST = 1000
"""More seeds, rounds, workers or threads than this are a slip of the hand."""


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
    anyway: bool = False
    """Whether tickets are trained of dense networks that have not learnt."""
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
