"""What does a search around somebody's own training keep? Its rounds, named by what was asked for.

A round is one training: the dense one, a ticket's or a control's, of one seed. It lies in
OUT/store as a run does, whole and marked or not there. ``folder.py`` writes from the rounds what
``tombola find`` leaves in its folder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tombola.config.values import content_hash, parse_rewind, percent_of
from tombola.errors import ConfigError
from tombola.loops.earlier import Earlier
from tombola.store.runs import Store

T = TypeVar("T")

SCHEMA = 1
"""Part of every round's name; raise it when what a round keeps would change."""
CONTROLS = ("reinit", "shuffle")
"""Controls that need nothing but a ticket and the training itself."""
TICKET, FINAL, REWIND, GRID = (
    "ticket.safetensors", "final.safetensors", "rewind.safetensors", "grid.png",
)  # fmt: skip
"""Files of a round: what it starts from, how it ends, the dense run's rewind point, its images."""
CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a search around a training is about: all that was asked, then what the training told."""

    task: str
    data: str = "own data"
    networks: str = "all"
    """The pruned networks, as ``--prune`` names them."""
    rewind_steps: int
    rounds: int
    rate: str = "0.2"
    sparsity: tuple[str, ...] = ()
    """Levels given outright, in the place of rounds and rate."""
    seeds: int = 1
    controls: tuple[str, ...] = CONTROLS
    steps: int = 0
    """Training length; 0 = as long as the training itself goes on."""
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else decides what a round is: JSON values; part of every round's name."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """What decides what the training does, by path: see ``capture.py``; part of every name."""
    state: tuple[str, ...] = ()
    """Paths of what the training itself changes: no part of any name."""
    meaning: Mapping[str, str] = field(default_factory=dict)
    """File of ``asked["files"]`` -> hash of its code, comments and descriptions apart."""
    same_script: bool = False
    """Whether to go on though the code of a file is another."""
    edited: tuple[str, ...] = ()
    """Files that were edited between trainings, and the search went on."""
    command: str = ""
    method: str = "imp"
    precision: str = ""
    parameters: Mapping[str, int] = field(default_factory=dict)
    """Network -> number of its parameters; known once a round has begun."""
    prunable: Mapping[str, int] = field(default_factory=dict)
    """``network.parameter`` of the pool -> number of weights; known once a round has begun."""

    def __post_init__(self) -> None:
        for name in self.controls:
            if name not in CONTROLS:
                raise ConfigError(
                    f"control {name!r} does not go with a training of your own; it has "
                    f"{', '.join(CONTROLS)}, or none"
                )

    @property
    def levels(self) -> tuple[str, ...]:
        """A name for every level, in order: its round, or the sparsity asked for."""
        return self.sparsity or tuple(str(k) for k in range(1, self.rounds + 1))

    def kept(self, level: int, pool: int | None = None) -> int:
        """How many weights are kept at a level, counted from 1; level 0 keeps all.

        Of the prunable weights, or of so many as ``pool``. ConfigError for a level that keeps none.
        """
        pool = sum(self.prunable.values()) if pool is None else pool
        if level == 0:
            return pool
        from tombola.sparsity.masks import kept_at, kept_count  # torch, not needed to be refused

        if self.sparsity:
            return kept_at(pool, self.sparsity[level - 1])
        return kept_count(pool, self.rate, level)

    def sparsities(self, level: int) -> tuple[float, float]:
        """(sparsity, sparsity_all) of a level, both in [0, 1)."""
        if not self.prunable:
            return 0.0, 0.0
        pool, total = sum(self.prunable.values()), sum(self.parameters.values())
        gone = pool - self.kept(level)
        return 1 - (pool - gone) / pool, 1 - (total - gone) / total

    def fixed(self) -> dict[str, Any]:
        """What may not change from call to call in one folder, by name."""
        return {
            "prune": self.networks,
            "rewind_steps": self.rewind_steps,
            "steps": self.steps,
            **({"sparsity": list(self.sparsity)} if self.sparsity else {"rate": self.rate}),
            "method": self.method,
            **self.asked,
            **({"given": content_hash(dict(self.given))[:16]} if self.given else {}),
        }


def rewind_steps(text: str, steps: int, trainer: str) -> int:
    """``500it`` or ``5%`` in steps; ConfigError if that is not known, or not before the end.

    ``steps``: the training length; 0 = only the ``trainer``, so named in errors, knows it.
    """
    value, unit = parse_rewind(text)
    if unit == "ep":
        raise ConfigError(
            f"rewind {text} counts epochs, which only {trainer} knows; give steps, such as 500it"
        )
    if unit == "%" and not steps:
        raise ConfigError(
            f"rewind {text} is a share of a length that only {trainer} knows; give --steps too, or "
            "a step such as 500it"
        )
    step = percent_of(value, steps) if unit == "%" else int(value)
    if steps and step >= steps:
        raise ConfigError(
            f"rewind {text} is not before the end of {steps} steps; give an earlier step, or "
            "train longer"
        )
    return step


@dataclass(frozen=True, kw_only=True)
class Round:
    """One training: which, how it ended and what was measured; JSON values."""

    arm: str
    """dense, ticket, reinit or shuffle."""
    seed: int
    round: int
    steps: int
    """Steps it was trained."""
    seconds: float
    values: Mapping[str, float] = field(default_factory=dict)
    """Metric -> the value that counts."""
    n: Mapping[str, int | None] = field(default_factory=dict)
    """Metric -> how many images stand behind it, where that is known."""
    at: Mapping[str, int] = field(default_factory=dict)
    """Metric -> the step at which it was measured, if not the last."""
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Metric without a rule -> ``better`` (lower or higher) and ``margin`` (a share)."""
    diverged: int | None = None
    """The step at which weights or values were found not finite."""
    why: str = ""
    not_run: bool = False
    """Its chain had diverged before."""
    eval_seconds: float | None = None
    """What judging it took."""
    device: str = ""
    """Where its networks were: cpu, cuda."""
    threads: int | None = None
    """Threads of its process."""
    shape: Sequence[int] = ()
    """Channels, height and width of its images; empty without any."""
    own: str = ""
    """Hash of the weights that a script came with, before it got those of its round."""
    end: str = ""
    """Hash of the weights that its networks ended with."""
    unlike: bool = False
    """Whether a script came with other weights than the dense training of its seed did."""
    idle: Sequence[str] = ()
    """Networks that could learn, and no optimizer took a step of."""
    log: Sequence[Mapping[str, Any]] = ()
    """Rows with a ``step``: what was measured on the way."""
    judged: str = ""
    """What was judged, where it is not what the last step left; kept only then."""

    @property
    def title(self) -> str:
        """The training in words."""
        where = "" if self.arm == "dense" else f" of round {self.round}"
        return f"{self.arm}{where}, seed {self.seed}"


class Book:
    """The rounds of one search in their folder."""

    def __init__(self, out: Path, facts: Facts) -> None:
        self.out, self.store = out, Store(out / "store")
        # As long as no round is whole, words may change: a first round that failed is mended so.
        begun = bool(self.store.finished())
        self._earlier = Earlier.read(out / CONFIG) if begun else Earlier()
        self.facts = self._earlier.adopt(facts)

    def rounds(self) -> Iterator[tuple[str, int, int]]:
        """(arm, seed, level) of all rounds, each after those it needs."""
        for seed in range(self.facts.seeds):
            yield "dense", seed, 0
            for level in range(1, len(self.facts.levels) + 1):
                for arm in ("ticket", *self.facts.controls):
                    yield arm, seed, level

    def name(self, arm: str, seed: int, level: int) -> str:
        """The name of a round in the store: what was asked for, arm, seed and level."""
        config = {**self.facts.fixed(), "arm": arm, "seed": seed, "level": level}
        return content_hash({"kind": "round", "schema": SCHEMA, "config": config})[:32]

    def has(self, arm: str, seed: int, level: int) -> bool:
        """Whether a round is there, whole."""
        return self.store.has(self.name(arm, seed, level))

    def path(self, arm: str, seed: int, level: int) -> Path:
        """The folder of a round that is whole."""
        return self.store.path(self.name(arm, seed, level))

    def load(self, which: tuple[str, int, int], file: str, load: Callable[[Path], T]) -> T:
        """What a reader makes of a file of a round (arm, seed, level); DamagedError if unsound."""
        return self.store.read(self.name(*which), file, load)

    def wrote(self, which: tuple[str, int, int], file: str) -> bool:
        """Whether a round that is whole left a file."""
        return self.store.wrote(self.name(*which), file)

    def read(self, arm: str, seed: int, level: int) -> Round:
        """A round that is whole."""
        record = self.store.record(self.name(arm, seed, level))
        return Round(**record["round"])

    def begin(self, arm: str, seed: int, level: int) -> Path:
        """The folder in which a round is made, emptied: a round that was cut off starts anew."""
        part = self.store.begin(self.name(arm, seed, level))
        for path in part.iterdir():
            path.unlink()
        return part

    def commit(self, made: Round) -> None:
        """Mark a round as whole, with what was learned of the networks."""
        name = self.name(made.arm, made.seed, made.round)
        self.store.begin(name)
        # As lists: JSON's objects are sorted, and ties among scores go by the order of the pool.
        told = {key: list(getattr(self.facts, key).items()) for key in ("parameters", "prunable")}
        kept = {k: v for k, v in dataclasses.asdict(made).items() if v or k != "judged"}
        self.store.commit(name, {"round": kept, **told})

    def learn(self, parameters: Mapping[str, int], prunable: Mapping[str, int]) -> None:
        """Take in what the training's networks are; ConfigError if a level would keep no weight."""
        self.facts = dataclasses.replace(self.facts, parameters=parameters, prunable=prunable)
        for level in range(1, len(self.facts.levels) + 1):
            self.facts.kept(level)

    def know_state(self, paths: Iterable[str]) -> None:
        """Take in what the training changes of what it is given, which is no part of a name."""
        state = tuple(sorted({*self.facts.state, *paths}))
        self.facts = dataclasses.replace(self.facts, state=state)

    def ends(self) -> dict[str, list[Round]]:
        """Hash of weights -> the trainings that are there and ended with them."""
        found: dict[str, list[Round]] = {}
        for each in self.rounds():
            made = self.read(*each) if self.has(*each) else None
            if made is not None and made.end and made.diverged is None:
                found.setdefault(made.end, []).append(made)
        return found

    def recall(self) -> bool:
        """Take in what an earlier call learned of the networks; False if nothing is there."""
        for arm, seed, level in self.rounds():
            if self.has(arm, seed, level):
                record = self.store.record(self.name(arm, seed, level))
                self.learn(dict(record["parameters"]), dict(record["prunable"]))
                return True
        return False

    def check(self) -> None:
        """ConfigError that shows the difference, if the folder is of another search."""
        Earlier.read(self.out / CONFIG)  # refuses one of something else
        changed = self._earlier.differences(self.facts)
        if changed:
            raise ConfigError(
                f"{self.out} holds a search with other words ({'; '.join(changed)}); choose "
                "another out folder, or give the words it was begun with"
            )
