"""How far is a training loop that Tombola does not own? Steps counted, masks held, states kept.

torch tells of every optimizer step by its global hooks, so a loop need not be changed. An optimizer
belongs to a network by the identity of the parameters that it holds, whatever wraps the network.
Without a network that is counted, a step is a round: see ``turns.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Iterable, Mapping
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from tombola.errors import ConfigError, unknown
from tombola.loops.met import Met, parameters_of, size_of
from tombola.loops.turns import Rounds
from tombola.sparsity.guard import Guard
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import Masks
from tombola.sparsity.names import plain_parameters
from tombola.training.starting import Start
from tombola.training.trainer import load_weights, named_state

PATIENCE = 1000
"""After so many optimizer steps without one of a network that could learn, none is expected."""
AUDIT_TURNS = 64
"""Pruned weights are looked at before each so manieth turn, and the 1st, 2nd, 4th ... 32nd."""
T = TypeVar("T")


class Stopped(BaseException):
    """Ends a loop that goes on beyond its last step; ``except Exception`` does not swallow it."""


class Clock:
    """Counts and holds while a ``with`` block trains ``networks`` in any way.

    ``masks``: "network.parameter" -> bool; the pruned weights are zero from the start and after
    each step of an optimizer. ``counted``: the network whose optimizer steps are counted, exactly;
    without one, rounds are. ``rewind_steps``: ``snapshot`` gets the weights and buffers of all
    networks when the count reaches it, and what else belongs to its round is done; 0 = at the
    start. ``total_steps``: ``final`` gets them likewise, the loop is stopped if it begins another
    step, and the networks are left in that state; what ends by itself is left as it ended, with
    the evaluation weights of optimizers that have ``eval()`` and ``train()``. ``optimizers``:
    objects with ``step()`` that are no torch optimizers. ``pruned``: the weights that are or will
    be pruned, whose layers are looked at when they are first called. ``rewound``: the weights come
    from another training.

    A skipped step of a gradient scaler is none; of accumulated gradients only the optimizer's
    steps count. ConfigError for an unknown network, also from within the loop if a network that
    requires gradients is never stepped, if optimizers begin at different times and no network is
    ``counted``, if the weights are changed before the first step (see ``starting.py``), and if
    pruned ones are not zero before a step. TicketError if a mask fits no parameter.
    """

    advice = "initialise and load the networks before, not in the training"
    """What to do where weights are changed before the first step."""

    def __init__(
        self,
        networks: Mapping[str, nn.Module],
        *,
        masks: Masks | None = None,
        counted: str | None = None,
        rewind_steps: int | None = None,
        total_steps: int | None = None,
        optimizers: Iterable[Any] = (),
        pruned: Iterable[str] = (),
        rewound: bool = False,
    ) -> None:
        if counted is not None and counted not in networks:
            raise unknown("network", counted, networks, "for the clock")
        self.networks = dict(networks)
        self.snapshot: dict[str, Tensor] | None = None
        """``network.name`` -> copy on the CPU, at the rewind step."""
        self.final: dict[str, Tensor] | None = None
        """The same after the last step."""
        self.turns = dict.fromkeys(networks, 0)
        """Optimizer steps of each network."""
        self.judged: list[str] = []
        """Kinds of optimizers whose evaluation weights the networks were left with."""
        self.foreign = 0
        """Optimizer steps that held no parameter of the networks."""
        self._masks, self._counted = masks, counted
        self._rewind, self._total, self._rewound = rewind_steps, total_steps, rewound
        self._owners: dict[int, set[str]] = {}
        for name, network in networks.items():
            for leaf in plain_parameters(network).values():
                self._owners.setdefault(id(leaf), set()).add(name)
        learning = [
            name
            for name, network in networks.items()
            if any(leaf.requires_grad for leaf in plain_parameters(network).values())
        ]
        self.rounds = Rounds(learning)
        self._latest: dict[str, Tensor] | None = None
        self._hold: Hold | None = None
        self._pruned = {*(masks or {}), *pruned}
        self._guard = Guard(networks, ())
        self._hooks: list[Any] = []
        self._wrapped: list[Any] = []
        self._known: dict[int, Met] = {}
        self._given = tuple(optimizers)
        self._ours = self._cut_off = False
        self._whole = self._audits = 0
        self._start: Start | None = None

    @property
    def steps(self) -> int:
        """Steps done at the end of the last whole round."""
        return self._whole

    @property
    def running(self) -> int:
        """The step that the loop is in, or has just done."""
        return self._count()

    def start(self) -> Clock:
        """Hold the masks and begin to count; ``close`` ends it. The same as ``with``."""
        self._guard = Guard(self.networks, self._pruned)
        self._fit()
        self.hold()
        if self._rewind == 0:
            self.snapshot = self._state()
        self._hooks = [
            register_optimizer_step_pre_hook(self._before),
            register_optimizer_step_post_hook(lambda optimizer, *_: self._after(optimizer)),
        ]
        for optimizer in self._given:
            self.watch(optimizer)
        self._start = Start(self.networks, own=not self._rewound, advice=self.advice)
        self._start.watch(self._check_start)
        return self

    def close(self) -> None:
        """Take the hooks away; the round under way counts if it was not cut off."""
        self._forget_start()
        for hook in self._hooks:
            hook.remove()
        for optimizer in self._wrapped:
            del optimizer.step
        self._hooks, self._wrapped = [], []
        if self.rounds.whole():
            self._end_round()
        elif self._counted is not None and self.rounds.open:
            self._reach(self._count())
        if self.final is not None and self._cut_off:
            load_weights(self.networks, self.final)
        self.judged = self._guard.evaluate()
        self._guard.close()
        self.hold()

    def __enter__(self) -> Clock:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self.close()
        return kind is not None and issubclass(kind, Stopped)

    def watch(self, optimizer: T) -> T:
        """Take part in each ``step()`` of an object that is no torch optimizer; returns it.

        Its networks are those of the parameters in its ``param_groups`` or attributes; all, if
        none is found. ConfigError for an object without ``step``.
        """
        if isinstance(optimizer, Optimizer):
            return optimizer
        own = getattr(optimizer, "step", None)
        if not callable(own):
            raise ConfigError(
                f"the clock got a {type(optimizer).__name__} without a step() method; give an "
                "optimizer, or call apply() after each of your own updates"
            )

        @functools.wraps(own)
        def step(*args: Any, **kwargs: Any) -> Any:
            given = (optimizer, *args), kwargs
            (_, *args), kwargs = self._before(optimizer, *given) or given  # type: ignore[assignment]
            made = own(*args, **kwargs)
            self._after(optimizer)
            return made

        optimizer.step = step  # type: ignore[attr-defined]
        self._wrapped.append(optimizer)
        return optimizer

    def apply(self, network: str | None = None) -> None:
        """What a loop without optimizers calls after each update, of a network or of all.

        In a loop with optimizers it only zeroes the pruned weights once more.
        """
        if network is not None and network not in self.networks:
            raise unknown("network", network, self.networks)
        names = frozenset(self.networks if network is None else [network])
        if self._ours:
            self.hold(names)
            return
        if self._start is not None and self._start.moved:
            self._start.check()
        self._forget_start()  # the weights have been changed already
        self._turn_begins(names, names)
        self.hold(names)
        self._turn_ends(names, names)

    def hold(self, networks: Iterable[str] | None = None) -> None:
        """Zero the pruned weights now, of some networks or of all."""
        if self._hold is None:
            return
        if networks is None:
            self._guard.apply(self._hold)
        else:
            parts = (plain_parameters(self.networks[name]).values() for name in networks)
            self._guard.apply(self._hold.part(leaf for part in parts for leaf in part))

    def leaks(self) -> list[str]:
        """Names of the parameters with a pruned entry that is not zero."""
        return self._hold.leaks() if self._hold is not None else []

    def audit(self) -> None:
        """ConfigError naming the weights that are not zero though they are pruned.

        Not those of a training that diverged: a mask leaves no zero of what is no number.
        """
        leaks = self.leaks()
        if not leaks:
            return
        state = named_state(self.networks)
        if all(bool(state[name].isfinite().all()) for name in leaks):
            raise ConfigError(
                f"pruned weights are not zero at step {self.running} in {', '.join(leaks[:3])}: "
                "something changes them outside of an optimizer's step; call apply() of the "
                "clock, or of what attach returned, after each such change"
            )

    def _check_start(self, start: Start) -> None:
        """The weights are about to be used, or changed, for the first time."""
        start.check()

    def _forget_start(self) -> None:
        if self._start is not None:
            self._start.close()
            self._start = None

    def _look(self) -> None:
        """Before a turn of an optimizer: is all as it is held to be?"""
        if self._start is not None:
            try:
                self._check_start(self._start)
            finally:
                self._forget_start()
        seen, self._audits = self._audits, self._audits + 1
        if seen % AUDIT_TURNS == 0 or (seen < AUDIT_TURNS and seen & (seen - 1) == 0):
            self.audit()

    def _fit(self) -> None:
        """Make the hold for the parameters as they are now: their device and dtype may change."""
        if self._masks is not None:
            self._hold = Hold(self.networks, self._masks)
            self._guard.fit(self._hold)
            for known in self._known.values():
                known.hold = self._hold.part(known.leaves) if known.leaves else self._hold

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        """A step begins; (args, kwargs) if its closure is to be another one."""
        known = self._known.get(id(optimizer))
        if known is None or known.size != size_of(optimizer):
            known = self._meet(optimizer)
        if not known.networks:
            self._strange()
            return None
        known.depth = known.depth + 1 if known.nested else 1
        # The step of another optimizer of the same weights may call this one's: SAM its base's.
        others = (other for other in self._known.values() if other is not known)
        known.within = any(other.depth and other.key == known.key for other in others)
        if known.depth == 1 and not known.within:
            self._look()
            self._turn_begins(known.key, known.networks)
        return self._guard.held(known.hold, args, kwargs)

    def _after(self, optimizer: Any) -> None:
        known = self._known.get(id(optimizer))
        if known is None or not known.networks:
            return
        known.depth -= 1
        if known.hold is not None:
            # Of nothing that it does not learn: a graph of another network may still be open.
            self._guard.apply(known.hold)
        skipped = getattr(optimizer, "found_inf", None)
        if (
            known.depth == 0
            and not known.within
            and not (isinstance(skipped, Tensor) and bool(skipped))
        ):
            self._turn_ends(known.key, known.networks)

    def _meet(self, optimizer: Any) -> Met:
        """Note an optimizer that was not seen before, and mask its moments."""
        plain = not isinstance(optimizer, Optimizer)
        leaves = [leaf for leaf in parameters_of(optimizer) if id(leaf) in self._owners]
        networks = frozenset[str]().union(*(self._owners[id(leaf)] for leaf in leaves))
        if plain and not networks:
            networks = frozenset(self.networks)
        # The same parameters in a new optimizer are the same turn.
        key = frozenset(id(leaf) for leaf in leaves) if leaves else id(optimizer)
        known = self._known[id(optimizer)] = Met(optimizer, key, networks, leaves)
        if networks:
            self._ours = True
            self._fit()
            if self._hold is not None and not plain:
                self._hold.mask_optimizer(optimizer)
            self._guard.watch(optimizer, known.hold)
        return known

    def _strange(self) -> None:
        """Count a step of an optimizer of other modules; ConfigError if nothing else comes."""
        self.foreign += 1
        if self._total is not None and not self._ours and self.foreign > self._total + PATIENCE:
            raise ConfigError(
                f"{self.foreign} optimizer steps, and none of the networks "
                f"{', '.join(self.networks)}; the loop must train the very modules that are given"
            )

    def _turn_begins(self, key: Hashable, networks: frozenset[str]) -> None:
        if self.rounds.over_before(key):
            self._end_round()
        elif self._counted in networks:
            # Of the network that is counted nothing beyond its count may be in what is kept.
            self._reach(self._count())
        if self._total is not None and self.steps >= self._total:
            self._cut_off = True
            raise Stopped

    def _turn_ends(self, key: Hashable, networks: frozenset[str]) -> None:
        for name in networks:
            self.turns[name] += 1
        ended = self.rounds.add(key, networks)
        count = self._count()
        if (self._rewind and self.snapshot is None and count >= self._rewind) or (
            self._total is not None and count >= self._total
        ):
            # What follows the last turn of a round moves buffers, and which is last may not be
            # known yet: so the state after every turn of this round is kept until the next.
            self._latest = self._state()
        if ended:
            self._end_round()
        if self._counted is None:
            self.rounds.check(PATIENCE)

    def _count(self) -> int:
        """Steps if the open round ended now."""
        if self._counted is not None:
            return self.turns[self._counted]
        return self.rounds.done + self.rounds.open

    def _end_round(self) -> None:
        count = self._count()
        self.rounds.end()
        self._reach(count)
        if self._counted is None:
            self.rounds.check(PATIENCE)

    def _reach(self, count: int) -> None:
        """So many steps are done: keep what is asked for at this count."""
        self._whole = count
        if self._rewind and self.snapshot is None and count >= self._rewind:
            self.snapshot = self._latest
        if self._total is not None and self.final is None and count >= self._total:
            self.final = self._latest
        self._latest = None

    def _state(self) -> dict[str, Tensor]:
        state = named_state(self.networks)
        return {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
