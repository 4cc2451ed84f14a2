"""The one line in somebody's script: ``tombola.attach`` makes its training a round of a search.

Within ``tombola run`` the line loads the round's start weights and masks into the script's own
modules, holds them through every optimizer step, and writes what the training ended with. Anywhere
else it does nothing and says so once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping
from multiprocessing import parent_process, util
from pathlib import Path
from types import FrameType
from typing import Any

from torch import Tensor, nn

from tombola.config.runtime import state_hash
from tombola.errors import ConfigError, UserError
from tombola.loops import averages, listening, orders
from tombola.loops.book import TICKET
from tombola.loops.clock import Clock, Stopped
from tombola.loops.draws import leaves, permute
from tombola.loops.ending import Ending
from tombola.loops.measured import Measured
from tombola.loops.modules import checked
from tombola.loops.orders import Order
from tombola.sparsity.masks import Masks, prunable
from tombola.tickets.ticket import load_ticket
from tombola.training.checkpoint import save_weights
from tombola.training.starting import Start
from tombola.training.trainer import named_state

LOOK_SECONDS = 1.0
"""How often it is looked whether ``tombola run`` is still there."""
SAVE_SECONDS = 60.0
"""How often the state is audited and written."""

_active: Attached | None = None
_told = False


class Attached:
    """What ``attach`` gives back: the steps counted so far, and ``apply`` for hand-made updates."""

    def __init__(self, work: _Work | None = None) -> None:
        self._work = work

    @property
    def steps(self) -> int:
        """Whole training steps counted so far; 0 outside of ``tombola run``."""
        return 0 if self._work is None else self._work.clock.steps

    def apply(self, network: str | None = None) -> None:
        """Zero the pruned weights, of one network or all: after each update without ``step()``."""
        if self._work is not None:
            with self._work.faults():
                self._work.applied(network)


def attach(
    networks: Mapping[str, nn.Module],
    *,
    ema: Any = None,
    optimizers: Any = None,
    clock: str | None = None,
    judge: Callable[[], Any] | None = None,
    sample: Callable[[], Tensor] | None = None,
) -> Attached:
    """Make this training a round of ``tombola run``; call it once the networks are initialised.

    ``networks``: all that learn, by name; those that are pruned are chosen by ``--prune``.
    ``ema``: averaged copies (see ``averages.py``): they begin at the round's start weights, and
    count as the trained weights. ``optimizers``: objects with ``step()`` that are no torch
    optimizers. ``clock``: the network whose optimizer steps are counted (default: a step is one
    round of all). ``judge``: called at the end, gives metric -> value; ``sample``: called at the
    end, gives images (N, C, H, W), uint8 or float in [-1, 1]. Outside of ``tombola run`` nothing is
    done, and that is said once. ConfigError or TicketError for what does not fit.
    """
    global _active, _told
    found = orders.current()
    if found is None:
        if not _told:
            _told = True
            warnings.warn(
                "tombola.attach does nothing here: this script was not started by `tombola run`",
                stacklevel=2,
            )
        return Attached()
    if _active is not None and _active._work is not None:
        with _active._work.faults():
            _active._work.expect_same(checked(networks))
        return _active
    part, order = found
    with _kept(part):
        own = checked(networks)
        averaged = averages.averages_of(ema, own)
        ending = Ending(part, order, judge=judge, sample=sample)
        work = _Work(own, part, order, averaged, ending)
        work.begin(_several(optimizers), clock)
    _active = Attached(work)
    return _active


def record(
    metric: str,
    value: Any,
    n: int | None = None,
    *,
    better: str | None = None,
    margin: float | None = None,
) -> None:
    """Note how good the networks are now; the last value of each metric counts for the verdict.

    Metrics that Tombola knows have their own direction and margin; another one needs ``better``,
    "lower" or "higher" (``margin``: how much worse still is a match, as a share of the dense mean,
    default 0.10). ``n``: how many images stand behind the value. Outside of ``tombola run`` and
    ``tombola.draw`` nothing is noted, but what is wrong with it is said all the same. ConfigError
    for what is no number or has no direction, and, within, before ``attach``.
    """
    hear = listening.current()
    if hear is not None:
        hear(metric, value, n, better, margin)
        return
    found = orders.current()
    if found is None:
        Measured().add(metric, value, n, better, margin, step=0)
        return
    with _kept(found[0]):
        if _active is None or _active._work is None:
            raise ConfigError("tombola.record was called before tombola.attach; attach first")
        work = _active._work
        work.ending.measured.add(metric, value, n, better, margin, step=work.clock.running)


@contextlib.contextmanager
def _kept(part: Path) -> Iterator[None]:
    """What the user has to mend is also told to ``tombola run``."""
    try:
        yield
    except UserError as error:
        orders.write_fault(part, str(error))
        raise


def _several(optimizers: Any) -> list[Any]:
    if optimizers is None:
        return []
    if isinstance(optimizers, Mapping):
        return list(optimizers.values())
    return list(optimizers) if isinstance(optimizers, list | tuple) else [optimizers]


class _Watch(Clock):
    """A clock that looks around before each turn, and ends the process where it stops."""

    advice = "attach once the networks are built, initialised and loaded"

    def __init__(self, work: _Work, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._work = work

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> Any:
        with self._work.faults():
            return super()._before(optimizer, args, kwargs)

    def _after(self, optimizer: Any) -> None:
        with self._work.faults():
            super()._after(optimizer)

    def _check_start(self, start: Start) -> None:
        if not self._work.ending.rank():  # wrappers give rank 0's weights to the others
            with self._work.faults():
                self._work.check_resumed(state_hash(named_state(self.networks)))
                super()._check_start(start)

    def _turn_begins(self, key: Hashable, networks: frozenset[str]) -> None:
        self._work.look()
        try:
            super()._turn_begins(key, networks)
        except Stopped:
            sys.exit(0)  # the round is over; close() is called on the way out


class _Work:
    """A round under way in this process."""

    def __init__(
        self,
        networks: dict[str, nn.Module],
        part: Path,
        order: Order,
        averaged: averages.Averages,
        ending: Ending,
    ) -> None:
        self.networks, self.part, self.order = networks, part, order
        self.averaged, self.ending = averaged, ending
        self.masks: Masks | None = None
        self.clock: _Watch
        self._process = os.getpid()
        self._closed = False
        self._last_error = getattr(sys, "last_value", None)
        self._look_at = self._save_at = 0.0
        self._before: Any = signal.SIG_DFL

    def begin(self, optimizers: list[Any], counted: str | None) -> None:
        """Put start weights and masks in place and begin to watch."""
        order = self.order
        pool = prunable(self.networks, order.prune, order.exclude)
        self.ending.prunable = {name: leaf.numel() for name, leaf in pool.items()}
        self.ending.own = own = state_hash(named_state(self.networks))
        self.check_resumed(own)
        if order.start != "own":
            ticket = load_ticket(self.part / TICKET)
            self.masks = ticket.masks
            if order.start == "ticket":
                ticket.start(self.networks)
            else:
                permute(self.networks, order.seed, f"reinit/{order.round}")
        self.clock = _Watch(
            self,
            self.networks,
            masks=self.masks,
            counted=counted,
            rewind_steps=order.rewind_steps if order.start == "own" else None,
            total_steps=order.steps or None,
            optimizers=optimizers,
            pruned=pool,
            rewound=order.start == "ticket",
        )
        self.clock.start()
        if order.start != "own":
            averages.begin(self.averaged, self.networks)
        self.ending.begin()
        now = time.monotonic()
        self._look_at, self._save_at = now + LOOK_SECONDS, now + SAVE_SECONDS
        self._arrange_end()

    def check_resumed(self, weights: str) -> None:
        """ConfigError if weights are those that another training of the search ended with."""
        if weights in self.order.ends and not self.ending.rank():
            raise ConfigError(
                f"the networks have the weights that {self.order.ends[weights]} ended with: the "
                "script goes on from a checkpoint of another training; put {dir}, a folder of each "
                "training, where its command names the folder of its checkpoints"
            )

    def _arrange_end(self) -> None:
        """See to it that ``close`` is called when the process ends, and the state kept if ended."""
        if parent_process() is None:
            atexit.register(self.close)
        else:  # processes of multiprocessing do not come by atexit
            util.Finalize(None, self.close, exitpriority=10)
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._before = signal.signal(signal.SIGTERM, self._ended)

    def faults(self) -> contextlib.AbstractContextManager[None]:
        """Within it, what the user has to mend is also told to ``tombola run``."""
        return _kept(self.part)

    def expect_same(self, networks: Mapping[str, nn.Module]) -> None:
        """ConfigError unless these are the networks that were attached."""
        now = dict(leaves(networks))
        mine = dict(leaves(self.networks))
        if now.keys() != mine.keys() or any(now[name] is not mine[name] for name in mine):
            raise ConfigError(
                "tombola.attach was called twice, with other networks; call it once, with all "
                "networks of the training"
            )

    def applied(self, network: str | None) -> None:
        """An update was made by hand: hold, count, and look, in this order."""
        self.clock.hold([network] if network in self.networks else None)
        self.clock.apply(network)

    def look(self) -> None:
        """Before each turn: what must be seen once a second or a minute."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + LOOK_SECONDS
        if self.order.abandoned():
            self._closed = True
            sys.exit("the tombola run that started this training is gone; so this ends too")
        if now >= self._save_at:
            self._save_at = now + SAVE_SECONDS
            with self.faults():
                self.clock.audit()
            self.save()

    def save(self) -> None:
        """Write the networks as they are, whole or not at all."""
        if not self.ending.rank():
            save_weights(self.part / orders.STATE, self.ending.state(self))

    def _ended(self, number: int, frame: FrameType | None) -> None:
        """A request to end: keep the state, then end as if nothing had listened."""
        del frame
        if os.getpid() == self._process:
            self._closed = True
            self.save()
        signal.signal(number, self._before)
        os.kill(os.getpid(), number)

    def close(self) -> None:
        """The process ends: write what the training came to, or, after an error, the state."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        # A process of multiprocessing comes here while its error is on the way up.
        rising = sys.exc_info()[1]
        failed = rising is not None and not (isinstance(rising, SystemExit) and not rising.code)
        last = getattr(sys, "last_value", None)
        if failed or last is not self._last_error:
            if isinstance(error := rising or last, UserError):  # ours, raised within the loop
                orders.write_fault(self.part, str(error))
            self.clock.close()
            self.save()
            return
        try:
            with self.faults():
                try:
                    self.clock.audit()
                finally:
                    self.clock.close()
                self.ending.write(self)
        except BaseException as error:
            orders.write_fault(self.part, f"{type(error).__name__}: {error}")
            raise
