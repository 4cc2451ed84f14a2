"""How far is a training loop that Tombola does not own? Steps counted, masks held, states kept.

torch tells of every optimizer step by its global hooks, so a loop need not be changed. An optimizer
belongs to a network by the identity of the parameters that it holds, whatever wraps the network.
Steps are told apart into rounds, the step of design 3.3: every optimizer's turn once, one of them
perhaps several times (n_critic).
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
from tombola.sparsity.guard import Guard
from tombola.sparsity.hold import Hold
from tombola.sparsity.masks import Masks
from tombola.sparsity.names import plain_parameters
from tombola.training.trainer import load_weights, named_state

PATIENCE = 1000
"""After so many optimizer steps without one of a network that could learn, none is expected."""
T = TypeVar("T")


class Stopped(BaseException):
    """Ends a loop that goes on beyond its last step; ``except Exception`` does not swallow it."""


class Rounds:
    """Whole rounds in a sequence of turns; a turn is one step of one optimizer, given by a key.

    A round begins with the key that began the first one. The first round ends where that key comes
    again after all ``expected`` networks had theirs; it tells who is last and how often in a row,
    so that the end of later rounds is known at once.
    """

    def __init__(self, expected: Iterable[str]) -> None:
        self.expected = frozenset(expected)
        self.seen: set[str] = set()
        self.done = 0
        self.open = False
        """Whether a round has begun that is not known to be over."""
        self.turns = 0
        """Turns of the open round."""
        self._first: Hashable = None
        self._last: tuple[Hashable, int] | None = None
        self._key: Hashable = None
        self._run = 0

    def over_before(self, key: Hashable) -> bool:
        """Whether the open round is over, as the turn that is about to begin shows."""
        if not self.open or key != self._first:
            return False
        return self._key != key if self._last is not None else self.expected <= self.seen

    def add(self, key: Hashable, networks: Iterable[str]) -> bool:
        """Note a turn; True if the round is known to end with it."""
        if not self.open:
            self.open, self.turns, self._run = True, 0, 0
        if self._first is None:
            self._first = key
        self._run = self._run + 1 if self.turns and key == self._key else 1
        self._key = key
        self.turns += 1
        self.seen |= set(networks)
        return self._last is not None and self._last == (key, self._run)

    def end(self) -> None:
        """The open round is over."""
        if self._last is None:
            self._last = (self._key, self._run)
        self.open = False
        self.done += 1

    def whole(self) -> bool:
        """Whether the open round can be one that was not cut off, when the loop has ended."""
        if not self.open:
            return False
        return self.expected <= self.seen if self._last is None else self._key == self._last[0]


class Clock:
    """Counts and holds while a ``with`` block trains ``networks`` in any way.

    ``masks``: "network.parameter" -> bool; the pruned weights are zero from the start and after
    each step of an optimizer. ``counted``: the network whose optimizer steps are counted; without
    one, rounds are. ``rewind_steps``: ``snapshot`` gets the weights and buffers of all networks at
    the end of the round in which the count reaches it; 0 = at the start. ``total_steps``:
    ``final`` gets them at the end of the round that reaches it, the loop is stopped if it begins
    another, and the networks are left in that state; what ends by itself is left as it ended, with
    the evaluation weights of optimizers that have ``eval()`` and ``train()``. ``optimizers``:
    objects with ``step()`` that are no torch optimizers. ``pruned``: the weights that are or will
    be pruned, whose layers are looked at when they are first called.

    A skipped step of a gradient scaler is none; of accumulated gradients only the optimizer's
    steps count. ConfigError for an unknown network, also from within the loop if a network that
    requires gradients is never stepped. TicketError if a mask fits no parameter.
    """

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
        self._rewind, self._total = rewind_steps, total_steps
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
        self._whole = 0

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
        return self

    def close(self) -> None:
        """Take the hooks away; the round under way counts if it was not cut off."""
        for hook in self._hooks:
            hook.remove()
        for optimizer in self._wrapped:
            del optimizer.step
        self._hooks, self._wrapped = [], []
        if self.rounds.whole():
            self._end_round()
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
        self._turn_begins(names)
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
            self._turn_begins(known.key)
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

    def _turn_begins(self, key: Hashable) -> None:
        if self.rounds.over_before(key):
            self._end_round()
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
        missing = self.rounds.expected - self.rounds.seen
        if missing and self.rounds.turns > PATIENCE:
            raise ConfigError(
                f"after {self.rounds.turns} optimizer steps, none was of network "
                f"{', '.join(sorted(missing))}; leave it out of the networks, or call "
                "requires_grad_(False) on it before"
            )

    def _count(self) -> int:
        """Steps if the open round ended now."""
        if self._counted is not None:
            return self.turns[self._counted]
        return self.rounds.done + self.rounds.open

    def _end_round(self) -> None:
        count = self._count()
        self.rounds.end()
        self._whole = count
        if self._rewind and self.snapshot is None and count >= self._rewind:
            self.snapshot = self._latest
        if self._total is not None and self.final is None and count >= self._total:
            self.final = self._latest
        self._latest = None

    def _state(self) -> dict[str, Tensor]:
        state = named_state(self.networks)
        return {name: tensor.to("cpu", copy=True) for name, tensor in state.items()}
