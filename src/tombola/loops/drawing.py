"""Tickets of networks that a function of the user's trains: ``tombola.draw``.

The function is called once a round: with all weights, then level by level with the ticket's mask
on the weights of the rewind point, and for the controls. It begins at its own step 0 each time
(the restart policy), on the same module objects. Masks are drawn as ``tombola find`` draws them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tombola.config.runtime import generators_as_found, seed_everything, state_hash
from tombola.engine.search import Result, absent, gone_if_refused
from tombola.errors import ConfigError, TicketError
from tombola.loops import averages
from tombola.loops.book import FINAL, GRID, REWIND, TICKET, Book, Round
from tombola.loops.capture import changed
from tombola.loops.clock import Clock
from tombola.loops.draws import chain_ended, ticket_of
from tombola.loops.folder import write_config
from tombola.loops.listening import listening
from tombola.loops.measured import Measured, judged_by, save_images, surroundings
from tombola.loops.modules import Modules, Networks, Weights, copied
from tombola.loops.options import (
    Options,
    arity,
    check_told,
    facts_of,
    given_of,
    options_of,
    pool_of,
)
from tombola.loops.rounds import make_rounds
from tombola.sparsity.hold import Hold
from tombola.store.lock import locked
from tombola.store.tables import read_results
from tombola.tickets.ticket import Ticket, save_ticket
from tombola.training.checkpoint import load_weights_file, save_weights
from tombola.training.trainer import named_state

START = "start.safetensors"
"""File of a dense round: the weights that given networks came with, for the control reinit."""


def draw(
    train: Callable[..., Any],
    networks: Networks | Callable[[], Networks],
    *,
    steps: int,
    out: str | Path | None = None,
    **options: Any,
) -> Result:
    """Draw tickets around a function that trains networks in its own way.

    ``train``: called as ``train()``, ``train(networks)`` or ``train(networks, clock)``, by how many
    arguments it needs; it makes its own optimizers and must take at least ``steps`` steps, after
    which it is stopped. ``networks``: a dict of modules, or a function that makes one (for several
    seeds). ``out``: a folder, by default ``runs/<function's name>-imp``. ``options``: the fields of
    ``Options``. The same call again goes on after the last whole round. Given networks are handed
    back as they came. ConfigError for bad input, also from within the training.
    """
    chosen = options_of(options)
    modules = Modules(networks, 0)
    facts = facts_of(train, modules, steps, chosen)
    folder = Path("runs") / f"{facts.task}-imp" if out is None else Path(out)
    made = absent(folder)
    tell = chosen.tell or (lambda text: None)
    with locked(folder, tell), generators_as_found():
        book = Book(folder, facts)
        with gone_if_refused(made):
            book.check()
            check_told(book.facts)
            book.learn(modules.sizes(), pool_of(modules, chosen))
        book.store.folder.mkdir(exist_ok=True)
        write_config(book)
        drawing = _Drawing(train, networks, modules, book, chosen)
        drawing.given = facts.given
        try:
            summary = make_rounds(book, lambda each, *_: drawing.make(*each), tell)
        finally:
            modules.hand_back()
        return Result(folder, summary, read_results(folder / "results.csv"))


class _Drawing:
    """The rounds of one call."""

    def __init__(
        self,
        train: Callable[..., Any],
        networks: Any,
        modules: Modules,
        book: Book,
        options: Options,
    ) -> None:
        self.train, self.book, self.options = train, book, options
        self._networks, self._seed, self._modules = networks, 0, modules
        self._first = modules
        self.given: Mapping[str, Any] | None = None
        """What the training was given before the first call of it, until that is over."""
        self.averaged = averages.averages_of(options.ema, modules.networks)
        self._counters = averages.counters_of(options.ema, self.averaged)

    def make(self, arm: str, seed: int, level: int) -> None:
        """One round: start weights and masks, the training, what it came to."""
        book = self.book
        part = book.begin(arm, seed, level)
        if chain_ended(book, arm, seed, level):
            book.commit(Round(arm=arm, seed=seed, round=level, steps=0, seconds=0.0, not_run=True))
            return
        modules = self._of(seed)
        modules.restore()
        ticket = None if arm == "dense" else ticket_of(book, arm, seed, level)
        self._put_start(part, modules, ticket, (arm, seed, level))
        measured = Measured()
        began = time.perf_counter()
        clock = self._train(seed, modules.networks, ticket, measured, arm != "reinit")
        seconds = time.perf_counter() - began
        state = self._state(modules.networks, ticket)
        bad = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
        began = time.perf_counter()
        shape: tuple[int, ...] = ()
        if not bad:
            shape = self._judge(part, seed, modules.networks, measured)
            if ticket is None:
                assert clock.snapshot is not None
                save_weights(part / REWIND, clock.snapshot)
            save_weights(part / FINAL, state)
        why = f"not finite: {', '.join(bad[:3])}" if bad else measured.bad()
        made = Round(
            arm=arm,
            seed=seed,
            round=level,
            steps=clock.steps,
            seconds=seconds,
            eval_seconds=time.perf_counter() - began if self.options.judge else None,
            diverged=clock.steps if why else None,
            why=why,
            shape=shape,
            judged=judged_by(clock),
            end="" if bad else state_hash(named_state(modules.networks)),
            idle=clock.rounds.missing,
            **surroundings(modules.networks),
            **measured.told(),
        )
        book.commit(made)
        if self.given is not None:
            now = given_of(self.train, self._first, self.options)
            book.know_state(changed(self.given, now))
            write_config(book)
            self.given = None
        self._tell(made)

    def _put_start(
        self, part: Path, modules: Modules, ticket: Ticket | None, which: tuple[str, int, int]
    ) -> None:
        """Put a round's start weights into the networks, and what they are into its folder."""
        arm, seed, level = which
        book = self.book
        if ticket is None:
            kept = book.path("dense", seed, 0) / START
            if modules.given and kept.exists():  # the round was damaged, perhaps not this file
                with contextlib.suppress(TicketError):
                    modules.start = load_weights_file(kept)
            modules.begin(seed)
            if modules.given:
                save_weights(part / START, modules.start)
        else:
            save_ticket(part / TICKET, ticket)
            if arm == "reinit":
                if modules.given:
                    # In a later call the networks may have come with other weights.
                    modules.start = book.load(("dense", seed, 0), START, load_weights_file)
                modules.begin(seed, f"reinit/{level}")
            else:
                ticket.start(modules.networks)

    def _of(self, seed: int) -> Modules:
        """The networks of a seed; those of the seed before are let go."""
        if seed != self._seed:
            self._modules, self._seed = Modules(self._networks, seed), seed
            self.averaged = averages.averages_of(self.options.ema, self._modules.networks)
        return self._modules

    def _train(
        self,
        seed: int,
        networks: dict[str, nn.Module],
        ticket: Ticket | None,
        measured: Measured,
        rewound: bool,
    ) -> Clock:
        """Call the user's function; ConfigError if it takes too few steps."""
        steps = self.book.facts.steps
        clock = Clock(
            networks,
            masks=None if ticket is None else ticket.masks,
            counted=self.options.clock,
            rewind_steps=self.book.facts.rewind_steps if ticket is None else None,
            total_steps=steps,
            optimizers=self.options.optimizers,
            pruned=self.book.facts.prunable,
            rewound=ticket is not None and rewound,
        )

        def hear(*told: Any) -> None:
            measured.add(*told, step=clock.running)

        seed_everything(seed, "draw")
        with listening(hear), clock:
            averages.begin(self.averaged, networks)  # at weights that are masked by now
            for counter, came in self._counters:
                counter.copy_(came)
            self.train(*(networks, clock)[: arity(self.train)])
        if clock.steps < steps:
            raise ConfigError(
                f"train ended after {clock.steps} of {steps} steps{_hint(clock)}; let it go on for "
                "at least as many, or ask for fewer steps"
            )
        return clock

    @torch.no_grad()
    def _state(self, networks: Networks, ticket: Ticket | None) -> Weights:
        """What the training ended with: averaged where there is an average, masked."""
        hold = Hold(networks, {} if ticket is None else ticket.masks)
        hold.mask_state(self.averaged)
        state = copied(networks) | {k: v.to("cpu", copy=True) for k, v in self.averaged.items()}
        hold.mask_state(state)
        return state

    @torch.no_grad()
    def _judge(
        self, part: Path, seed: int, networks: Networks, measured: Measured
    ) -> tuple[int, ...]:
        """Ask the user's judge and samples, the networks in eval mode; (C, H, W) of the latter."""
        options = self.options
        for network in networks.values():
            network.eval()
        if options.judge is not None:
            seed_everything(seed, "judge")
            found = options.judge(*(networks,)[: arity(options.judge)])
            found = found if isinstance(found, Mapping) else {"score": found}
            for metric, value in found.items():
                better, margin = _of(options.better, metric), _of(options.margin, metric)
                measured.add(metric, value, None, better, margin, step=self.book.facts.steps)
        if options.sample is None:
            return ()
        seed_everything(seed, "sample")
        return save_images(part / GRID, options.sample(*(networks,)[: arity(options.sample)]))

    def _tell(self, made: Round) -> None:
        if self.options.tell is not None:
            end = ", ".join(f"{name} {value:.4g}" for name, value in made.values.items())
            end = f"diverged ({made.why})" if made.why else end or "nothing measured"
            head = f"{made.title}: {made.seconds:.0f} s"
            self.options.tell(", ".join(filter(None, [head, end, made.judged])))


def _of(given: Any, metric: str) -> Any:
    """What is given for a metric: by its name, or for all alike."""
    return given.get(metric) if isinstance(given, Mapping) else given


def _hint(clock: Clock) -> str:
    """What may be the reason that a training seems to be shorter than it is."""
    stepped = [name for name, count in clock.turns.items() if count]
    if not stepped:
        return " (no optimizer of the given networks' parameters was seen)"
    unseen = clock.rounds.missing
    if not unseen:
        return ""
    names = ", ".join(unseen)
    return f" (no step of {names} was seen; if it joins later, give clock={stepped[0]!r})"
